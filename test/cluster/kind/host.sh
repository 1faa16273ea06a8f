# Sourced by the scripts of the kind back end. The docker host is a set of namespaces in which a docker daemon runs; the node
# is a container of that daemon. What local/node.sh calls the node's process 1 is the docker host's here: everything ends with it.

export SKIFF_CLUSTER_BACKEND=kind
. "$(dirname "${BASH_SOURCE[0]}")/../local/node.sh"
cgroup=skiff-kind-$cluster_name
node=$cluster_name-control-plane

# in_host COMMAND...: runs the command in the docker host, where the cluster's folder `host` is /cluster.
in_host() {
  local pid; pid=$(node_pid)
  nsenter -t "$pid" --mount --net --uts --pid --ipc --wd=/ -- \
    env -i PATH=/usr/local/bin:/usr/sbin:/usr/bin HOME=/tmp TERM=dumb "$@"
}
