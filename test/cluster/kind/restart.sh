#!/bin/bash
# restart.sh CLUSTER PROGRAM: restarts the kubelet or the containerd of the node, and waits until it responds.
cluster=$1 program=$2
. "$(dirname "$0")/../cluster.sh"

"$cluster/bin/in-node" systemctl restart "$program"
wait_until 60 "$program" daemon_is_up "$program"
