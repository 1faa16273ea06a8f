#!/bin/bash
# programs.sh: builds the three programs and the installer, one by one: crates that are built together share features, and the
# engine would contain the compiler. The last line of standard output is the directory that they are in.
. "$(dirname "$0")/cache.sh"

cd "$(dirname "$0")/.."
export CARGO_TARGET_DIR=${CARGO_TARGET_DIR:-$cache/target}
# The generator of gRPC clients needs Google's compiler and its standard messages.
apt_need protobuf-compiler libprotobuf-dev
for package in skiff-engine skiff containerd-shim-skiff skiff-node; do
  cargo build --release --locked --quiet -p "$package" >&2
done
echo "$CARGO_TARGET_DIR/$(rustc --print host-tuple)/release"
