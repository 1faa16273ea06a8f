# Sourced by what becomes process 1 of a cluster's namespaces: a root of its own, whose changes are kept in memory.

# make_root ROOT LOWER: an overlay over the folder LOWER, with the kernel's files and places for sockets and temporary files.
make_root() {
  # A private /run, for a place to mount on.
  mount -t tmpfs -o mode=755 run /run
  mkdir -p /run/changes /run/work "$1"
  mount -t overlay -o "lowerdir=$2,upperdir=/run/changes,workdir=/run/work" overlay "$1"
  mount --rbind /dev "$1/dev"
  mount -t proc proc "$1/proc"
  # What a sysfs says of network devices is that of the namespace it was mounted in.
  mount -t sysfs sysfs "$1/sys"
  mount --rbind /sys/fs/cgroup "$1/sys/fs/cgroup"
  mount -t tmpfs -o mode=755 run "$1/run"
  mount -t tmpfs -o mode=1777 tmp "$1/tmp"
}

# enter_root ROOT: makes it the root; mounts are seen in both directions below it from then on.
enter_root() {
  mkdir -p "$1/mnt"
  cd "$1"
  pivot_root . mnt
  umount --lazy /mnt
  mount --make-rshared /
}

# keep_sysctl NAME VALUE: daemons set what is the whole kernel's, and so the machine's. They read before they write: they shall
# read what they want, in a file of the node's.
keep_sysctl() {
  [ -e "/proc/sys/$1" ] || return 0
  echo "$2" > "/run/sysctl.${1//\//.}"
  mount --bind "/run/sysctl.${1//\//.}" "/proc/sys/$1"
}
