# Sourced by the scripts of the local back end.

. "$(dirname "${BASH_SOURCE[0]}")/../cluster.sh"
# The node's addresses exist only in its own network namespace, so that clusters do not collide.
node_ip=172.30.255.2
service_cidr=10.96.0.0/16 service_dns=10.96.0.10
pod_cidr=10.244.0.0/16
# In each hierarchy of cgroup v1, or in the one of v2.
cgroup=skiff-cluster-$cluster_name

# node_pid: the pid of the node's process 1 on the machine. It fails if that process is gone.
node_pid() {
  local pid since
  read -r pid since 2> /dev/null < "$cluster/init" || return 1
  [ "$(start_time "$pid")" = "$since" ] || return 1
  echo "$pid"
}

# start_time PID: in ticks since the machine's start. A pid alone may be another process by now.
start_time() { sed 's/.*) //' "/proc/$1/stat" 2> /dev/null | cut -d' ' -f20; }

# cgroup_roots: the folders of the node's cgroup.
cgroup_roots() {
  local hierarchy
  if [ -f /sys/fs/cgroup/cgroup.controllers ]; then echo "/sys/fs/cgroup/$cgroup"; return; fi
  for hierarchy in /sys/fs/cgroup/*/; do
    # There are two links to cpu,cpuacct.
    if [ ! -L "${hierarchy%/}" ]; then echo "$hierarchy$cgroup"; fi
  done
}

# make_cgroups: the node's cgroup in each hierarchy.
make_cgroups() {
  local root
  for root in $(cgroup_roots); do
    mkdir -p "$root"
    # A new cpuset of v1 has no processors.
    if [ -f "$root/cpuset.cpus" ] && [ ! -f "$root/cgroup.controllers" ]; then
      cat "$root/../cpuset.cpus" > "$root/cpuset.cpus"; cat "$root/../cpuset.mems" > "$root/cpuset.mems"
    fi
  done
}

# start_init SCRIPT: runs the script as process 1 of new namespaces, and records its pid.
start_init() {
  local outer init=''
  setsid unshare --mount --net --uts --pid --ipc --fork --kill-child=KILL --propagation private \
    bash "$1" > "$cluster/logs/init.log" 2>&1 < /dev/null &
  outer=$!
  until [ -n "$init" ]; do
    kill -0 "$outer" 2> /dev/null || { cat "$cluster/logs/init.log" >&2; say "$1 did not start"; exit 1; }
    init=$(tr -d ' ' < "/proc/$outer/task/$outer/children")
  done
  echo "$init $(start_time "$init")" > "$cluster/init"
}
