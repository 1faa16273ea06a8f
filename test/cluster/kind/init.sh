#!/bin/bash
# Process 1 of the docker host: makes its root and keeps the docker daemon running. Environment: what up.sh exports.
set -euo pipefail

# own_root: an overlay over docker's Debian whose changes are kept in memory, with the kernel's files, a disk for docker, and
# the folder through which up.sh and the docker host hand files to each other.
own_root() {
  local root=/run/host-root
  # A private /run, for a place to mount on.
  mount -t tmpfs -o mode=755 run /run
  mkdir -p /run/changes /run/work $root
  mount -t overlay -o "lowerdir=$(readlink -f "$parts/docker"),upperdir=/run/changes,workdir=/run/work" overlay $root
  mount --rbind /dev $root/dev
  mount -t proc proc $root/proc
  # What a sysfs says of network devices is that of the namespace it was mounted in.
  mount -t sysfs sysfs $root/sys
  mount --rbind /sys/fs/cgroup $root/sys/fs/cgroup
  mount -t tmpfs -o mode=755 run $root/run
  mount -t tmpfs -o mode=1777 tmp $root/tmp
  mount --bind "$cluster/host" $root/cluster
  # Layers are overlays, which cannot write to an overlay.
  mount --bind "$cluster/disk" $root/var/lib/docker
  if [ -d /lib/modules ]; then mount -o bind,ro /lib/modules $root/lib/modules; fi
  touch $root/usr/local/bin/kind
  mount --bind "$parts/kind" $root/usr/local/bin/kind
  cd $root
  pivot_root . mnt
  umount --lazy /mnt
  mount --make-rshared /
}

# keep_sysctl NAME VALUE: the daemon raises a setting of the whole kernel that it finds too low. It shall find it high enough.
keep_sysctl() {
  [ -e "/proc/sys/$1" ] || return 0
  echo "$2" > "/run/${1//\//.}"
  mount --bind "/run/${1//\//.}" "/proc/sys/$1"
}

main() {
  export PATH=/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin HOME=/tmp
  ip link set lo up
  own_root
  keep_sysctl kernel/keys/root_maxkeys 1000000; keep_sysctl kernel/keys/root_maxbytes 25000000
  dockerd --cgroup-parent "/$cgroup" > /cluster/dockerd.log 2>&1 < /dev/null &
  # Process 1 gets the orphans, and ends when it is told to.
  trap 'exit 0' TERM
  while :; do wait -n || sleep 0.1; done
}

main "$@"; exit
