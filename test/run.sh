#!/bin/bash
# run.sh: runs a guest under a private containerd, the way a user would: `ctr run --runtime io.containerd.skiff.v1`.
# WASM=path.wasm, with ARGS="..." for the guest; or IMAGE=archive.tar or IMAGE=reference (which is pulled), with ARGS="..." in
# place of the image's command line. The default is a C guest that is built first. The exit code is the guest's.
# A component that serves HTTP gets the machine's network and PORT (8080); so does an image if PORT is set. However it ends, also
# by Ctrl-C or a signal, nothing is left of it.
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
programs=${SKIFF_BIN:-$("$here/programs.sh" | tail -n 1)}
tools=${SKIFF_TOOLS:-$("$here/tools/build.sh" containerd runc | tail -n 1)}
export PATH=$programs:$tools:$PATH

state=$(mktemp -d "${TMPDIR:-/tmp}/skiff-run.XXXXXX")
id=run-$$
containerd_pid=
guest_pid=

# within SECONDS COMMAND...: waits until the command succeeds, at most this long.
within() {
  local end=$((SECONDS + $1))
  until "${@:2}"; do
    [ "$SECONDS" -lt "$end" ] || return 1
    sleep 0.1
  done
}

# The guest's `ctr run`, which removes the container at its end, has ended.
is_over() { ! kill -0 "$guest_pid" 2> /dev/null; }

# No process of the container is left: its shim and whatever that has started have this place in their command lines.
is_without_processes() {
  [ -z "$(grep -lsFf - /proc/[0-9]*/cmdline <<< "$state" | grep -vx "/proc/$containerd_pid/cmdline")" ]
}

# The container is gone, whatever state it was in. A task that is still being made cannot be deleted until it is there, and needs
# its container for that; if whoever wants it is gone, containerd ends its shim a moment later.
is_removed() {
  ctr tasks delete --force "$id" > /dev/null 2>&1 || true
  is_without_processes || return 1
  ctr containers delete "$id" > /dev/null 2>&1 || true
  [ -z "$(ctr containers list --quiet 2> /dev/null)" ]
}

# The container goes before its containerd: nobody else would end it.
clean_up() {
  trap '' INT TERM HUP
  if [ -n "$guest_pid" ]; then
    if ! is_over; then
      ctr tasks kill --signal SIGTERM "$id" > /dev/null 2>&1 || true
      within 3 is_over || ctr tasks kill --signal SIGKILL "$id" > /dev/null 2>&1 || true
      within 3 is_over || kill -KILL "$guest_pid" 2> /dev/null || true
    fi
    within 20 is_removed || echo "cannot remove the container $id" >&2
  fi
  [ -z "$containerd_pid" ] || kill "$containerd_pid" 2> /dev/null || true
  [ -z "$containerd_pid" ] || wait "$containerd_pid" 2> /dev/null || true
  rm -rf "$state"
}
trap clean_up EXIT
trap 'exit 129' HUP
trap 'exit 130' INT
trap 'exit 143' TERM

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
# A session of its own keeps a Ctrl-C from it, which reaches all processes of the terminal's group.
setsid containerd --config "$state/config.toml" > "$state/containerd.log" 2>&1 &
containerd_pid=$!
export CONTAINERD_ADDRESS=$state/containerd.sock
for _ in $(seq 100); do ctr version > /dev/null 2>&1 && break; sleep 0.1; done
ctr version > /dev/null 2>&1 || { tail -n 20 "$state/containerd.log" >&2; echo "containerd does not start" >&2; exit 1; }

image=localhost/guest:1
case ${IMAGE:-} in
  '')
    wasm=${WASM:-$("$here/guests/build.sh" c | tail -n 1)/c-hello.wasm}
    # What does not run is refused by the engine, in the words that a pod's owner sees.
    skiff pack --force "$wasm" --name "$image" -o "$state/image.tar" > /dev/null
    if skiff inspect "$wasm" | grep -q '^kind .*, http server$'; then PORT=${PORT:-8080}; fi
    ctr images import --local "$state/image.tar" > /dev/null 2>&1
    # `ctr run` takes the words after the image's name as the whole command line.
    [ -z "${ARGS:-}" ] || ARGS="/$(basename "$wasm") $ARGS" ;;
  *.tar)
    image=$(ctr images import --local "$IMAGE" 2> /dev/null | sed -n 's/^unpacking \([^ ]*\).*/\1/p' | head -n 1) ;;
  *)
    image=$IMAGE; ctr images pull "$image" > /dev/null ;;
esac
network=()
if [ -n "${PORT:-}" ]; then
  network=(--net-host --env "PORT=$PORT")
  echo "try it: curl http://127.0.0.1:$PORT/ (Ctrl-C ends it)" >&2
fi
# In the background, because the shell notices a signal only while it waits; with the script's own input, nevertheless.
# shellcheck disable=SC2086 # ARGS is a list of words
ctr run --rm --runtime io.containerd.skiff.v1 --runtime-config-path "$state/options.toml" "${network[@]}" \
  "$image" "$id" ${ARGS:-} <&0 2> >(trap '' INT TERM; exec grep --line-buffered -v 'DEPRECATION' >&2) &
guest_pid=$!
status=0
wait "$guest_pid" || status=$?
exit "$status"
