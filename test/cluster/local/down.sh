#!/bin/bash
# down.sh: ends the node's process 1, and with it, by the kernel, every process of the node; then removes its cgroups and its disk.
. "$(dirname "$0")/node.sh"

end() {
  local pid root
  if pid=$(node_pid); then
    kill -KILL "$pid"
    wait_until 60 "the end of the node's process $pid" test ! -e "/proc/$pid"
  fi
  for root in $(cgroup_roots); do wait_until 20 "the end of $root" remove_cgroup "$root"; done
  [ ! -d "$cluster" ] || find "$cluster" -mindepth 1 -maxdepth 1 ! -name logs -exec rm -rf --one-file-system {} +
}

remove_cgroup() {
  [ ! -d "$1" ] || find "$1" -depth -type d -exec rmdir {} + 2> /dev/null
  [ ! -d "$1" ]
}

with_lock "cluster-$cluster_name" end
