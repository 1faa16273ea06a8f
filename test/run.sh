#!/bin/bash
# run.sh: runs a guest under a private containerd, the way a user would: `ctr run --runtime io.containerd.skiff.v1`.
# WASM=path.wasm, with ARGS="..." for the guest; or IMAGE=archive.tar or IMAGE=reference (which is pulled), with ARGS="..." in
# place of the image's command line. The default is a C guest that is built first. The exit code is the guest's.
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
programs=$("$here/programs.sh" | tail -n 1)
tools=$("$here/tools/build.sh" containerd runc | tail -n 1)
export PATH=$programs:$tools:$PATH

state=$(mktemp -d /tmp/skiff-run.XXXXXX)
containerd_pid=
clean_up() {
  [ -z "$containerd_pid" ] || kill "$containerd_pid" 2> /dev/null || true
  [ -z "$containerd_pid" ] || wait "$containerd_pid" 2> /dev/null || true
  rm -rf "$state"
}
trap clean_up EXIT
trap 'exit 130' INT TERM

cat > "$state/config.toml" <<TOML
version = 3
root = "$state/root"
state = "$state/state"
disabled_plugins = ["io.containerd.grpc.v1.cri", "io.containerd.cri.v1.runtime", "io.containerd.cri.v1.images"]
[grpc]
address = "$state/containerd.sock"
[ttrpc]
address = "$state/containerd.sock.ttrpc"
TOML
cat > "$state/options.toml" <<TOML
Root = "$state/runc"
CacheDir = "${SKIFF_CACHE:-$HOME/.cache/skiff}/code"
TOML
containerd --config "$state/config.toml" > "$state/containerd.log" 2>&1 &
containerd_pid=$!
export CONTAINERD_ADDRESS=$state/containerd.sock
for _ in $(seq 100); do ctr version > /dev/null 2>&1 && break; sleep 0.1; done
ctr version > /dev/null 2>&1 || { tail -n 20 "$state/containerd.log" >&2; echo "containerd does not start" >&2; exit 1; }

image=localhost/guest:1
case ${IMAGE:-} in
  '')
    wasm=${WASM:-$("$here/guests/build.sh" c | tail -n 1)/c-hello.wasm}
    skiff pack --force "$wasm" --name "$image" -o "$state/image.tar" > /dev/null
    ctr images import --local "$state/image.tar" > /dev/null 2>&1
    # `ctr run` takes the words after the image's name as the whole command line.
    [ -z "${ARGS:-}" ] || ARGS="/$(basename "$wasm") $ARGS" ;;
  *.tar)
    image=$(ctr images import --local "$IMAGE" 2> /dev/null | sed -n 's/^unpacking \([^ ]*\).*/\1/p' | head -n 1) ;;
  *)
    image=$IMAGE; ctr images pull "$image" > /dev/null ;;
esac
status=0
# shellcheck disable=SC2086 # ARGS is a list of words
ctr run --rm --runtime io.containerd.skiff.v1 --runtime-config-path "$state/options.toml" \
  "$image" "run-$$" ${ARGS:-} 2> >(grep -v 'DEPRECATION' >&2) || status=$?
exit "$status"
