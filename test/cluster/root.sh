# Sourced by process 1 of a cluster's namespaces: a root of its own, whose changes are in memory.

# make_root ROOT LOWER: an overlay over the folder LOWER, with the kernel's file systems, /run and /tmp.
make_root() {
  # A private /run, to have a place to mount on.
  mount -t tmpfs -o mode=755 run /run
  mkdir -p /run/changes /run/work "$1"
  mount -t overlay -o "lowerdir=$2,upperdir=/run/changes,workdir=/run/work" overlay "$1"
  mount --rbind /dev "$1/dev"
  mount -t proc proc "$1/proc"
  # A sysfs shows the network devices of the namespace in which it was mounted.
  mount -t sysfs sysfs "$1/sys"
  mount --rbind /sys/fs/cgroup "$1/sys/fs/cgroup"
  mount -t tmpfs -o mode=755 run "$1/run"
  mount -t tmpfs -o mode=1777 tmp "$1/tmp"
}

# enter_root ROOT: makes it the root, below which mounts propagate in both directions.
enter_root() {
  mkdir -p "$1/mnt"
  cd "$1"
  pivot_root . mnt
  umount --lazy /mnt
  mount --make-rshared /
}

# keep_sysctl NAME VALUE: daemons set sysctls of the whole kernel, and so of the machine. They read before they write, so they get
# the value that they want from a file of the node's.
keep_sysctl() {
  [ -e "/proc/sys/$1" ] || return 0
  echo "$2" > "/run/sysctl.${1//\//.}"
  mount --bind "/run/sysctl.${1//\//.}" "/proc/sys/$1"
}
