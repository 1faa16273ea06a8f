#!/bin/bash
# build.sh [NAME...]: makes the parts of a node with cgroup v2, each once per version of its sources.
# The last line of standard output is a directory that holds a link to each of them (default: all).
#
#   linux    a user-mode kernel, from the newest source that Debian packages
#   systemd  a small Debian whose process 1 is systemd
here=$(cd "$(dirname "$0")" && pwd)
. "$here/../cache.sh"

site() { apt-get indextargets --format '$(SITE)' 'Created-By: Packages' | sed 1q; }

# Other architectures and most drivers are half of the source. Their Kconfig files are still read.
unneeded=(
  '*/Documentation/[a-z]*' '*/arch/[a-tv-wyz]*/*.[chS]' '*.dts*' '*/sound/*.[ch]' '*/tools/testing/*'
  '*/drivers/gpu/*.[ch]' '*/drivers/media/*.[ch]' '*/drivers/net/ethernet/*.[ch]' '*/drivers/net/wireless/*.[ch]'
)

build_linux() {
  local source
  mkdir -p "$1"/apt/{lists,archives}/partial "$1/source"
  echo "deb $(site) sid main" > "$1/apt/sources.list"
  # The machine's own package lists stay as they are.
  cat > "$1/apt/apt.conf" <<EOF
Dir::Etc::SourceList "$1/apt/sources.list";
Dir::Etc::SourceParts "/dev/null";
Dir::State::Lists "$1/apt/lists";
Dir::Cache "$1/apt";
Acquire::Check-Valid-Until "false";
Acquire::Languages "none";
EOF
  export APT_CONFIG=$1/apt/apt.conf
  apt-get update -qq
  source=$(apt-cache depends linux-source | sed -n 's/.*Depends: //p' | sed 1q)
  (cd "$1/apt" && apt-get download -q "$source")
  dpkg-deb --fsys-tarfile "$1"/apt/linux-source-*.deb | tar -xO --wildcards './usr/src/*.tar.xz' | xz -dc |
    tar -x -C "$1/source" --strip-components=1 "${unneeded[@]/#/--exclude=}"
  rm -r "$1/apt"
  cd "$1/source"
  cat "$here"/kernel/*.patch | patch -s -p1
  make -s ARCH=um x86_64_defconfig
  scripts/kconfig/merge_config.sh -m -O . .config "$here/kernel/config" > /dev/null
  make -s ARCH=um olddefconfig
  make -s ARCH=um -j2 linux
  strip -o "$1/linux" linux
  rm -r "$1/source"
}

build_systemd() {
  mmdebstrap --quiet --variant=minbase --include=systemd-sysv,dbus \
    --aptopt='APT::Install-Recommends "false"' --dpkgopt='path-exclude=/usr/share/man/*' \
    --dpkgopt='path-exclude=/usr/share/doc/*' --dpkgopt='path-exclude=/usr/share/locale/*' \
    bookworm "$1/systemd" "deb $(site) bookworm main"
  mkdir "$1/systemd/machine"
  rm -rf "$1"/systemd/var/{cache/apt,lib/apt/lists}/*
}

identity() {
  declare -f "build_$1"
  case $1 in
    linux) gcc -dumpfullversion; printf '%s\n' "${unneeded[@]}"; digest kernel ;;
  esac
}

packages() {
  case $1 in
    linux) echo bc bison flex gcc libc6-dev make patch xz-utils iproute2 ;;
    systemd) echo mmdebstrap ;;
  esac
}

main() {
  local name needed dir
  local -a files=()
  [ $# -gt 0 ] || set -- linux systemd
  needed=$(for name in "$@"; do packages "$name"; done | tr ' ' '\n' | sort -u)
  apt_need $needed
  for name in "$@"; do
    declare -F "build_$name" > /dev/null || { say "no such part: $name"; exit 2; }
    dir=$cache/nodes/$name-$(key "$(cd "$here" && identity "$name")")
    cached "$dir" "build_$name"
    files+=("$dir/$name")
  done
  dir=$cache/nodes/all-$(key "${files[@]}")
  linked "$dir" "${files[@]}"
  echo "$dir"
}

main "$@"; exit
