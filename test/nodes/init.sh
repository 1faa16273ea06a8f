#!/bin/bash
# Process 1 of a node until the job starts; run.sh boots it. Its environment, from the kernel's command line:
# NODE_RUN, the folder of this run on the machine; NODE_SYSTEMD, the tree whose systemd becomes process 1, or empty.
set -eu
export PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin
here=$(dirname "$0")

attach() { mkdir -p "${*: -1}"; mount -i "$@"; }

# throw_away TREE NAME: mounts an overlay over the tree. Its changes are in memory and end with the node.
throw_away() {
  mkdir "/run/$2" "/run/$2.changes" "/run/$2.work"
  mount -i -t overlay -o "lowerdir=$1,upperdir=/run/$2.changes,workdir=/run/$2.work" overlay "/run/$2"
}

# kernel_files ROOT: mounts the kernel's file systems, and others for files that end with the node.
kernel_files() {
  local nosuid=nosuid,nodev,noexec link controller
  attach -t proc -o $nosuid proc "$1/proc"
  attach -t sysfs -o $nosuid sysfs "$1/sys"
  attach -t cgroup2 -o $nosuid,nsdelegate,memory_recursiveprot cgroup2 "$1/sys/fs/cgroup"
  attach -t securityfs -o $nosuid securityfs "$1/sys/kernel/security"
  attach -t bpf -o $nosuid,mode=700 bpf "$1/sys/fs/bpf"
  attach -t devtmpfs -o nosuid,mode=755 dev "$1/dev"
  attach -t devpts -o nosuid,noexec,gid=5,mode=620,ptmxmode=666 devpts "$1/dev/pts"
  attach -t tmpfs -o nosuid,nodev shm "$1/dev/shm"
  attach -t mqueue -o $nosuid mqueue "$1/dev/mqueue"
  attach -t tmpfs -o nosuid,nodev,mode=755 run "$1/run"
  attach -t tmpfs -o mode=1777 tmp "$1/tmp"
  ln -sfn /proc/self/fd "$1/dev/fd"
  for link in 0:stdin 1:stdout 2:stderr; do ln -sfn "fd/${link%:*}" "$1/dev/${link#*:}"; done
  for controller in $(< "$1/sys/fs/cgroup/cgroup.controllers"); do
    echo "+$controller" > "$1/sys/fs/cgroup/cgroup.subtree_control"
  done
}

# show_repository ROOT: makes this clone visible if it is in a place that is otherwise empty.
show_repository() {
  local repository
  repository=$(dirname "$(dirname "$here")")
  case $repository in /tmp/* | /run/* | /dev/shm/*) attach --bind "$repository" "$1$repository" ;; esac
}

mount -i -t tmpfs run /run
throw_away / machine
# containerd's snapshots are overlays, which cannot write to an overlay: this place and /tmp are not on one.
attach -t tmpfs -o mode=755 containerd /run/machine/var/lib/containerd
root=/run/machine
if [ -n "${NODE_SYSTEMD:-}" ]; then
  throw_away "$NODE_SYSTEMD" systemd
  root=/run/systemd
fi
kernel_files "$root"
show_repository "$root"
# mount(8) hands options over by name since util-linux 2.39; before, the kernel takes all of them for the folder.
attach -t hostfs -o "hostfs=$NODE_RUN" job "$root/run/node" 2> /dev/null ||
  attach -t hostfs -o "$NODE_RUN" job "$root/run/node"
ip link set lo up
echo node > "$root/proc/sys/kernel/hostname"
echo 1 > "$root/proc/sys/net/ipv4/ip_forward"

if [ -z "${NODE_SYSTEMD:-}" ]; then
  mkdir "$root/sys/fs/cgroup/job"
  echo 1 > "$root/sys/fs/cgroup/job/cgroup.procs"
  cd "$root"
  pivot_root . mnt
  exec chroot . bash "$here/job.sh"
fi

mount --move /run/machine "$root/machine"
for place in proc sys dev run tmp; do mount --rbind "$root/$place" "$root/machine/$place"; done
mkdir -p "$root/run/systemd/system"
cat > "$root/run/systemd/system/node-job.service" << EOF
[Unit]
Wants=dbus.socket
After=dbus.socket
[Service]
ExecStart=unshare --mount --propagation private bash -c 'cd /machine && pivot_root . mnt && exec chroot . bash $here/job.sh'
Delegate=yes
EOF
cd "$root"
pivot_root . mnt
exec chroot . /lib/systemd/systemd --unit=node-job.service
