#!/bin/bash
# page.sh SCRIPT: runs the commands by which a page of docs/ builds a program, once per content and toolchain, as its reader would:
# with the network, in an empty directory. The last line of standard output is a directory that holds `NAME/app.wasm`.
here=$(cd "$(dirname "$0")" && pwd)
. "$here/../cache.sh"

# stand_in NAME TEXT: a program that does what the command of that name would.
stand_in() { printf '#!/bin/bash\n%s\n' "$2" > "$bin/$1"; chmod 755 "$bin/$1"; }

build() {
  local script=$1 rust=$2 bin work
  bin=$(mktemp -d); work=$(mktemp -d)
  trap "rm -r '$bin' '$work'" EXIT
  # Packages that are there are not upgraded.
  stand_in apt-get ". '$here/../cache.sh'; [ \"\$1 \$2\" = 'install --yes' ] && apt_need \"\${@:3}\""
  # Debian's rustc comes with the libraries for wasm.
  stand_in rustup '[ "$1 $2" = "target add" ]'
  export PATH=$bin:$rust/bin:$PATH RUSTC=$rust/bin/rustc CARGO_BUILD_JOBS=2 GOTOOLCHAIN=local GOFLAGS=-p=2
  export CARGO_TARGET_WASM32_WASIP1_LINKER=wasm-ld CARGO_TARGET_WASM32_WASIP2_LINKER=wasm-component-ld
  export PIP_DISABLE_PIP_VERSION_CHECK=1 npm_config_audit=false npm_config_fund=false npm_config_update_notifier=false
  unset CARGO_TARGET_DIR RUSTFLAGS CARGO_ENCODED_RUSTFLAGS
  cd "$work"
  bash -euo pipefail "$script"
  cp --parents */app.wasm "$3/"
}

rust=$("$here/build.sh" --rust-toolchain)
python3 -c 'import ensurepip' 2> /dev/null || apt_need python3-venv
versions=$(go env GOVERSION; node --version; python3 --version; dpkg-query -W clang lld wasi-libc 2> /dev/null || true)
dir=$cache/guests/page-$(key "$(cat "$1")" "$(declare -f build)" "$rust" "$versions")
cached "$dir" build "$(readlink -f "$1")" "$rust"
echo "$dir"
