#!/bin/bash
# down.sh: kills process 1 of what up.sh started, with which the kernel ends every process of the cluster; then removes its cgroups
# and its disk. Its logs stay until the next cluster of that name.
. "$(dirname "$0")/cluster.sh"
case $backend in
  local) . "$here/local/node.sh" ;;
  kind) . "$here/kind/host.sh" ;;
esac

end() {
  local pid root
  if pid=$(node_pid); then
    kill -KILL "$pid"
    wait_until 60 "the end of process $pid" test ! -e "/proc/$pid"
  fi
  for root in $(cgroup_roots); do wait_until 20 "the end of $root" remove_cgroup "$root"; done
  [ ! -d "$cluster" ] || find "$cluster" -mindepth 1 -maxdepth 1 ! -name logs -exec rm -rf --one-file-system {} +
}

remove_cgroup() {
  [ ! -d "$1" ] || find "$1" -depth -type d -exec rmdir {} + 2> /dev/null
  [ ! -d "$1" ]
}

with_lock "cluster-$backend-$cluster_name" end
