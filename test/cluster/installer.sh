#!/bin/bash
# installer.sh CLUSTER [TAG]: makes the image of runtime-class/installer/Containerfile without a builder, and pushes it to the node's registry
# as localhost:5000/skiff/node:TAG (default: a hash of its content). Standard output is a file of values for `helm install` on
# this cluster.
# installer.sh --context: prints a folder with the content of the image, for a builder.
. "$(dirname "$0")/../cache.sh"
test=$(cd "$(dirname "$0")/.." && pwd)

# context: makes the folder, under a hash of its content.
context() {
  local programs guests files
  programs=${SKIFF_BIN:-$("$test/programs.sh" | tail -n 1)}
  guests=${SKIFF_GUESTS:-$("$test/guests/build.sh" c | tail -n 1)}
  files=("$programs"/{containerd-shim-skiff-v1,skiff-engine,skiff,skiff-node} "$guests/c-hello.wasm")
  folder=$cache/installers/$(cat "${files[@]}" | sha256sum | cut -c1-16)
  cached "$folder" make_context
}

make_context() {
  install -m 755 "${files[@]:0:4}" "$1/"
  install -m 644 "${files[4]}" "$1/hello.wasm"
}

# values: containerd is restarted by what keeps it running, which is not systemd on the local back end.
values() {
  local program
  printf 'image:\n  repository: localhost:5000/skiff/node\n  tag: "%s"\n' "$tag"
  if ! "$cluster/bin/in-node" test -d /run/systemd/system; then
    program=$("$cluster/bin/in-node" sh -c 'readlink -f "/proc/$(cat /run/node/containerd.pid)/exe"')
    printf 'restart:\n  by: signal\ncontainerd:\n  program: %s\n' "$program"
  fi
}

context
[ "$1" != --context ] || { echo "$folder"; exit; }
cluster=$1
tag=${2:-$(basename "$folder")}
work=$(mktemp -d); trap 'rm -r "$work"' EXIT
"$test/image.sh" "localhost:5000/skiff/node:$tag" "$folder" "$work/node.tar" /skiff-node
"$cluster/bin/push" "$work/node.tar" "skiff/node:$tag" > /dev/null
values
