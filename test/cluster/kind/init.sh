#!/bin/bash
# Process 1 of the docker host: makes its root and keeps the docker daemon running. Environment: what up.sh exports.
set -euo pipefail
. "$(dirname "$0")/../root.sh"

# own_root: an overlay over docker's Debian whose changes are in memory, with the kernel's file systems, a disk for docker,
# and the folder through which up.sh and the docker host exchange files.
own_root() {
  local root=/run/host-root
  make_root $root "$(readlink -f "$parts/docker")"
  mount --bind "$cluster/host" $root/cluster
  # Layers are overlays, which cannot write to an overlay.
  mount --bind "$cluster/disk" $root/var/lib/docker
  if [ -d /lib/modules ]; then mount -o bind,ro /lib/modules $root/lib/modules; fi
  touch $root/usr/local/bin/kind
  mount --bind "$parts/kind" $root/usr/local/bin/kind
  enter_root $root
}

main() {
  export PATH=/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin HOME=/tmp
  ip link set lo up
  own_root
  keep_sysctl kernel/keys/root_maxkeys 1000000; keep_sysctl kernel/keys/root_maxbytes 25000000
  dockerd --cgroup-parent "/$cgroup" > /cluster/dockerd.log 2>&1 < /dev/null &
  # Process 1 reaps the orphans, and ends on SIGTERM.
  trap 'exit 0' TERM
  while :; do wait -n || sleep 0.1; done
}

main "$@"; exit
