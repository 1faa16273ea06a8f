#!/bin/bash
# build.sh: builds the shim that skiff is measured against, once per version of its sources.
# The last line of standard output is the path of the program.
here=$(cd "$(dirname "$0")" && pwd)
. "$here/../cache.sh"

# Without the flags of skiff's own programs: it is linked dynamically, as the field ships it.
build_baseline() {
  local target=$cache/baseline-target
  cd "$here"
  CARGO_TARGET_DIR=$target RUSTFLAGS='' cargo build --release --locked -j2
  cp "$target/$(rustc --print host-tuple)/release/containerd-shim-baseline-v1" "$1/"
}

identity() {
  rustc --version
  declare -f build_baseline
  digest .
}

main() {
  local dir
  apt_need protobuf-compiler libprotobuf-dev libseccomp-dev pkg-config gcc libc6-dev
  dir=$cache/baseline/$(key "$(cd "$here" && identity)")
  cached "$dir" build_baseline
  echo "$dir/containerd-shim-baseline-v1"
}

main "$@"; exit
