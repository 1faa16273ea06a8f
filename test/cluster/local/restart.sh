#!/bin/bash
# restart.sh CLUSTER PROGRAM: restarts the kubelet or the containerd of the node, and waits until it responds.
cluster=$1 program=$2
. "$(dirname "$0")/../cluster.sh"

pid=$("$cluster/bin/in-node" cat "/run/node/$program.pid")
# shellcheck disable=SC2016 # the node's shell expands it
"$cluster/bin/in-node" bash -c 'kill "$1" && tail -s 0.1 --pid="$1" -f /dev/null' restart "$pid"
wait_until 60 "$program" daemon_is_up "$program"
