#!/bin/bash
# build.sh [NAME...]: builds or fetches the programs that tests and benchmarks run, each once per version.
# The last line of standard output is a directory that holds a link to every program of the named tools (default: all).
#
#   containerd  containerd, ctr, containerd-shim-runc-v2     runc        static, with seccomp
#   cni         bridge, loopback, host-local, portmap         crictl      the CRI's command line
#   native      hello, pause (static C) and busybox           wasmtime    the reference runtime (`run`, `serve`)
#   wrk         the HTTP load generator, from the distribution
#   apparmor    apparmor_parser, which loads profiles into the kernel
#   criu        for runc's checkpoints, from Debian's newest release: older ones do not support newer kernels
# Only by name, because they take some ten minutes the first time or only `make check` needs them:
#   deny        cargo-deny, which checks the dependencies by deny.toml
#   kubernetes  a control plane, kubelet, kube-proxy, kubectl, kubeadm, etcd and helm in one program, and coredns
#   registry    crane: an image registry and its client
#   kubernetes-oldest, containerd-oldest   the oldest versions that skiff supports
here=$(cd "$(dirname "$0")" && pwd)
. "$here/../cache.sh"

deny_version=0.20.2
go_flags="-trimpath -buildvcs=false -p=2"

build_containerd() { compile_containerd containerd "$1"; }
build_containerd-oldest() { compile_containerd containerd-oldest "$1"; }

# compile_containerd MODULE DIR
compile_containerd() {
  local module=github.com/containerd/containerd/v2
  in_module "$1" CGO_ENABLED=0 go build -tags "no_btrfs no_devmapper no_zfs no_aufs" \
    -ldflags "-s -w -X $module/version.Version=$(version_of "$1" $module)" \
    -o "$2/" $module/cmd/{containerd,ctr,containerd-shim-runc-v2}
}

build_runc() {
  local module=github.com/opencontainers/runc
  in_module runc CGO_ENABLED=1 go build -tags "seccomp netgo osusergo" \
    -ldflags "-s -w -linkmode external -extldflags -static -X main.version=$(version_of runc $module)" \
    -o "$1/" $module
}

build_cni() {
  local plugins=github.com/containernetworking/plugins/plugins
  in_module cni CGO_ENABLED=0 go build -ldflags "-s -w" -o "$1/" \
    $plugins/main/{bridge,loopback} $plugins/ipam/host-local $plugins/meta/portmap
}

build_crictl() {
  local module=sigs.k8s.io/cri-tools
  in_module crictl CGO_ENABLED=0 go build \
    -ldflags "-s -w -X $module/pkg/version.Version=$(version_of crictl $module)" -o "$1/" $module/cmd/crictl
}

build_kubernetes() {
  compile_kubernetes kubernetes "$1"
  in_module kubernetes CGO_ENABLED=0 go build -ldflags "-s -w" -o "$1/" ./coredns
  ln -s .kubernetes "$1/helm"
}
build_kubernetes-oldest() { compile_kubernetes kubernetes-oldest "$1"; }

# compile_kubernetes MODULE DIR
compile_kubernetes() {
  local name version component=k8s.io/component-base/version
  version=$(version_of "$1" k8s.io/kubernetes)
  in_module "$1" CGO_ENABLED=0 go build -o "$2/.kubernetes" -ldflags "-s -w
    -X $component.gitVersion=v$version -X $component.gitMajor=${version%%.*} -X $component.gitMinor=$(cut -d. -f2 <<< "$version")
    -X k8s.io/client-go/pkg/version.gitVersion=v$version" .
  for name in etcd kube-{apiserver,controller-manager,proxy,scheduler} kubeadm kubectl kubelet; do
    ln -s .kubernetes "$2/$name"
  done
}

build_registry() {
  in_module registry CGO_ENABLED=0 go build -ldflags "-s -w" -o "$1/" github.com/google/go-containerregistry/cmd/crane
}

build_native() {
  local program
  for program in hello pause; do gcc -Os -static -s -o "$1/$program" "$here/native/$program.c"; done
  apt_extract "$1/deb" busybox-static
  mv "$1/deb/bin/busybox" "$1/busybox"
  rm -r "$1/deb"
}

build_wasmtime() {
  python3 -m pip install -q --disable-pip-version-check --no-deps --require-hashes --target "$1/lib" \
    -r "$here/wasmtime/requirements.txt"
  mv "$1/lib/wasmtime_cli/wasmtime" "$1/wasmtime"
  rm -r "$1/lib"
  chmod 755 "$1/wasmtime"
}

build_apparmor() {
  apt_extract "$1/deb" apparmor
  mv "$1/deb/sbin/apparmor_parser" "$1/apparmor_parser"
  rm -r "$1/deb"
}

# It is built with its own lock file and little optimization: it reads text and runs for a second.
build_deny() (
  cd "$1"
  env CARGO_TARGET_DIR="$1/.target" CARGO_PROFILE_RELEASE_OPT_LEVEL=1 CARGO_PROFILE_RELEASE_LTO=off \
    CARGO_PROFILE_RELEASE_DEBUG=0 CARGO_PROFILE_RELEASE_CODEGEN_UNITS=16 cargo install \
    --quiet --locked --root "$1/.root" "cargo-deny@$deny_version"
  mv "$1/.root/bin/cargo-deny" "$1/cargo-deny"
  rm -rf "$1/.target" "$1/.root"
)

build_wrk() { cp "$(type -P wrk)" "$1/wrk"; }

# It runs where it was unpacked, with its own loader: nothing is installed. Networks are locked without iptables' programs.
build_criu() {
  local site
  site=$(apt-get indextargets --format '$(SITE)' 'Created-By: Packages' | sed 1q)
  mmdebstrap --quiet --variant=extract --include=criu \
    --aptopt='Acquire::Check-Valid-Until "false"' --aptopt='APT::Install-Recommends "false"' \
    sid "$1/.sid" "deb $site sid main"
  rm -rf "$1"/.sid/{var,dev,tmp,etc,usr/share}
  cat > "$1/criu" << 'EOF'
#!/bin/sh
root=$(dirname "$(readlink -f "$0")")/.sid
for lib in "$root"/usr/lib/*-linux-gnu*; do break; done
exec "$lib"/ld-linux-*.so.* --library-path "$lib" --argv0 criu "$root/usr/sbin/criu" --network-lock nftables "$@"
EOF
  chmod 755 "$1/criu"
}

# in_module NAME VARIABLE=VALUE... COMMAND...: runs the command in the module that pins the tool.
in_module() (
  cd "$here/$1"
  env GOFLAGS="$go_flags" GOTOOLCHAIN=local GOWORK=off "${@:2}"
)

# version_of NAME MODULE: the pinned version without its `v`.
version_of() { sed -n "s|.*$2 v\([^ ]*\).*|\1|p" "$here/$1/go.mod"; }

# identity NAME: everything that the result depends on.
identity() {
  case $1 in
    cni | crictl | registry) go env GOVERSION ;;
    runc) go env GOVERSION; gcc -dumpfullversion ;;
    native) gcc -dumpfullversion ;;
    deny) echo "$deny_version"; rustc --version ;;
  esac
  case $1 in
    containerd*) go env GOVERSION; declare -f compile_containerd ;;
    kubernetes*) go env GOVERSION; declare -f compile_kubernetes; digest kubernetes/*.go ;;
  esac
  declare -f "build_$1" in_module
  printf '%s\n' "$go_flags"
  [ ! -d "$1" ] || digest "$1"
}

packages() {
  case $1 in
    runc) echo gcc libc6-dev pkg-config libseccomp-dev ;;
    native | deny) echo gcc libc6-dev ;;
    wrk) echo wrk ;;
    criu) echo mmdebstrap ;;
  esac
}

main() {
  local name needed dir
  local -a dirs=() files=()
  [ $# -gt 0 ] || set -- containerd runc cni crictl native wasmtime wrk criu apparmor
  needed=$(for name in "$@"; do packages "$name"; done | tr ' ' '\n' | sort -u)
  [ -z "$needed" ] || apt_need $needed
  for name in "$@"; do
    declare -F "build_$name" > /dev/null || { say "no such tool: $name"; exit 2; }
    dir=$cache/tools/$name-$(key "$(cd "$here" && identity "$name")")
    cached "$dir" "build_$name"
    dirs+=("$dir") files+=("$dir"/*)
  done
  dir=$cache/tools/all-$(key "${dirs[@]}")
  linked "$dir" "${files[@]}"
  echo "$dir"
}

main "$@"; exit
