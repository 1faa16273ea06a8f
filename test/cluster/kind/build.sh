#!/bin/bash
# build.sh [NAME...]: makes the parts of the kind back end, each once per version of its sources.
# The last line of standard output is a directory that holds a link to each of them (default: all).
#
#   docker  a small Debian, of the newest packages, with a docker daemon and its client; nothing of it is installed
#   kind    kind, from its Go module
#   debian  the Debian that kind's node image is made of: older than docker's, since its systemd still knows cgroup v1
#   node    the node image, to be imported: kind's own recipe with what tools/build.sh builds in it
here=$(cd "$(dirname "$0")" && pwd)
. "$here/../../cache.sh"

site() { apt-get indextargets --format '$(SITE)' 'Created-By: Packages' | sed 1q; }

build_docker() {
  local name
  mmdebstrap --quiet --variant=extract --include=base-files,bash,coreutils,docker.io,docker-cli,iptables,mount \
    --aptopt='Acquire::Check-Valid-Until "false"' --aptopt='APT::Install-Recommends "false"' \
    sid "$1/docker" "deb $(site) sid main"
  # Unpacked only: what the packages' own scripts would have linked.
  for name in {iptables,ip6tables}{,-save,-restore}; do ln -s xtables-nft-multi "$1/docker/usr/sbin/$name"; done
  mkdir -p "$1"/docker/{cluster,lib/modules,mnt,proc,run,sys,tmp,usr/local/bin,var/lib/docker}
  rm -rf "$1"/docker/{dev/*,var/cache/apt,var/lib/apt/lists,usr/share/{doc,locale,man}}
}

build_kind() { in_module CGO_ENABLED=0 go build -ldflags "-s -w" -o "$1/" sigs.k8s.io/kind; }

# The packages that kind's recipe names, but for what only network storage needs.
build_debian() {
  mmdebstrap --quiet --variant=minbase \
    --include=ca-certificates,conntrack,curl,e2fsprogs,ethtool,iproute2,iptables,jq,kmod,mount,nftables,pigz,procps,systemd \
    --aptopt='APT::Install-Recommends "false"' --dpkgopt='path-exclude=/usr/share/man/*' \
    --dpkgopt='path-exclude=/usr/share/doc/*' --dpkgopt='path-exclude=/usr/share/locale/*' \
    bookworm "$1/debian" "deb $(site) bookworm main"
  rm -rf "$1"/debian/var/{cache/apt,lib/apt/lists}/*
}

# The steps are those of images/base/Dockerfile and pkg/build/nodeimage in kind's module.
build_node() {
  local root=$1/root version
  version=$("$tools/kubeadm" version -o short)
  cp -a "$(readlink "$parts/debian")" "$root"
  add_kind_files "$root"
  add_programs "$root"
  add_images "$root" "$version"
  echo "$version" > "$root/kind/version"
  tar -C "$root" --numeric-owner -cf "$1/node" .
  rm -r "$root"
}

add_kind_files() {
  local root=$1 recipe units=$1/lib/systemd/system
  recipe=$(in_module go list -m -f '{{.Dir}}' sigs.k8s.io/kind)/images/base/files
  cp -r --no-preserve=mode,ownership "$recipe/." "$root/"
  rm -f "$units"/{multi-user,local-fs,basic}.target.wants/* "$root"/etc/systemd/system/*.wants/* \
    "$units"/sockets.target.wants/*{udev,initctl}* "$units/sysinit.target.wants/systemd-tmpfiles-setup.service"
  echo ReadKMsg=no >> "$root/etc/systemd/journald.conf"
  ln -sf /usr/lib/systemd/systemd "$root/sbin/init"
  chroot "$root" systemctl enable --quiet kubelet containerd undo-mount-hacks
  chroot "$root" systemctl mask --quiet systemd-binfmt
  # What kind's image brings as images of its own: the pods' network, here for a cluster of one node, and a class for volumes.
  install -D -m 644 "$here/node/cni.conflist" "$root/etc/cni/net.d/10-pods.conflist"
  install -D -m 644 "$here/node/network.yaml" "$root/kind/manifests/default-cni.yaml"
  install -D -m 644 "$here/node/storage.yaml" "$root/kind/manifests/default-storage.yaml"
  install -m 755 "$here/node/start" "$root/kind/bin/"
  chmod 755 "$root"/usr/local/bin/* "$root"/kind/bin/*
  mkdir -p "$root/etc/kubernetes/manifests"
}

add_programs() {
  local root=$1 name
  mkdir -p "$root/opt/cni/bin"
  cp -L "$tools"/{containerd,containerd-shim-runc-v2,ctr,crictl} "$root/usr/local/bin/"
  cp -L "$tools/runc" "$root/usr/local/sbin/"
  cp -L "$tools"/{bridge,host-local,loopback,portmap} "$root/opt/cni/bin/"
  cp -L "$tools/kubelet" "$root/usr/bin/kubelet"
  for name in kubeadm kubectl; do ln -s kubelet "$root/usr/bin/$name"; done
  chroot "$root" ctr oci spec | jq '.hooks.createContainer += [{path: "/kind/bin/mount-product-files.sh"}] | del(.process.rlimits)' \
    > "$root/etc/containerd/cri-base.json"
}

# add_images ROOT VERSION: puts into containerd's store what kubeadm asks for. All programs of Kubernetes are one image.
add_images() {
  local root=$1 images=$1/tmp/images work=$1.work list name
  mkdir -p "$images" "$work"/{kubernetes/{bin,usr/local/bin,tmp},coredns/{bin,etc},pause}
  list=$("$tools/kubeadm" config images list --kubernetes-version "$2" 2> /dev/null)

  cp -L "$tools/kubelet" "$work/kubernetes/usr/local/bin/.kubernetes"
  for name in etcd kube-{apiserver,controller-manager,proxy,scheduler}; do
    ln -s .kubernetes "$work/kubernetes/usr/local/bin/$name"
  done
  add_with_libraries "$root" /usr/sbin/nft "$work/kubernetes"
  "$here/../../image.sh" kubernetes:1 "$work/kubernetes" "$images/kubernetes.tar"

  # Kubeadm's Corefile asks for plugins that this CoreDNS has not, so the image has its own and ignores arguments.
  cp -L "$tools"/{busybox,coredns} "$work/coredns/bin/"; ln -s busybox "$work/coredns/bin/sh"
  cp "$here/node/Corefile" "$work/coredns/etc/"
  "$here/../../image.sh" "$(grep /coredns: <<< "$list")" "$work/coredns" "$images/coredns.tar" \
    /bin/sh -c 'exec /bin/coredns -conf /etc/Corefile'

  cp -L "$tools/pause" "$work/pause/"
  name=$(grep /pause: <<< "$list")
  "$here/../../image.sh" "$name" "$work/pause" "$images/pause.tar" /pause
  sed -i "s|^  sandbox_image = .*|  sandbox_image = \"$name\"|" "$root/etc/containerd/config.toml"

  rm -r "$work"
  unshare --mount --pid --net --fork --kill-child --propagation private chroot "$root" bash -s kubernetes:1 \
    $(grep -v -e /coredns: -e /pause: <<< "$list") < "$here/node/import.sh"
  rm -r "$images"
}

# add_with_libraries ROOT PROGRAM TO: copies a program of the tree, with the libraries that it is linked to.
add_with_libraries() {
  local file
  for file in "$2" $(chroot "$1" ldd "$2" | grep -o '/[^ ]*'); do install -D "$1$(chroot "$1" readlink -f "$file")" "$3$file"; done
}

# in_module VARIABLE=VALUE... COMMAND...: runs the command in the module that pins kind.
in_module() (
  cd "$here/tool"
  env GOFLAGS="-trimpath -buildvcs=false -p=2" GOTOOLCHAIN=local GOWORK=off "$@"
)

identity() {
  declare -f "build_$1"
  case $1 in
    kind) go env GOVERSION; declare -f in_module; digest tool ;;
    node)
      declare -f add_{kind_files,programs,images,with_libraries}
      digest node tool ../../image.sh
      readlink "$parts/debian"; echo "$tools"
      ;;
  esac
}

part() {
  local dir
  dir=$cache/kind/$1-$(key "$(cd "$here" && identity "$1")")
  cached "$dir" "build_$1"
  echo "$dir/$1"
}

main() {
  local name dir
  local -a files=()
  [ $# -gt 0 ] || set -- docker kind node
  apt_need mmdebstrap jq
  for name in "$@"; do
    declare -F "build_$name" > /dev/null || { say "no such part: $name"; exit 2; }
    if [ "$name" = node ]; then
      parts=$(main debian)
      tools=$("$here/../../tools/build.sh" containerd runc cni crictl native kubernetes | tail -n 1)
    fi
    files+=("$(part "$name")")
  done
  dir=$cache/kind/all-$(key "${files[@]}")
  linked "$dir" "${files[@]}"
  echo "$dir"
}

main "$@"; exit
