#!/bin/bash
# images.sh CLUSTER: makes the images of runtime-class/manifests/examples from the guests, as a user would, and pushes them to the
# node's registry as localhost:5000/examples/NAME:1; for tests also the guests in C, by their own names (`c-hello`).
# The second time takes a second.
. "$(dirname "$0")/../cache.sh"
test=$(cd "$(dirname "$0")/.." && pwd)
cluster=$1
programs=${SKIFF_BIN:-$("$test/programs.sh" | tail -n 1)}
guests=${SKIFF_GUESTS:-$("$test/guests/build.sh" c go rust sqlite | tail -n 1)}
native=$("$test/tools/build.sh" native | tail -n 1)

# pack NAME GUEST FILE [OPTION...]: NAME.tar, in which the guest is /FILE.
pack() {
  cp "$guests/$2.wasm" "$work/$3"
  "$programs/skiff" pack "$work/$3" --name "localhost:5000/examples/$1:1" -o "$work/$1.tar" "${@:4}"
}

# native_programs ROOT: busybox, with a link for each of its programs.
native_programs() {
  local applet
  mkdir -p "$1/bin" "$1/tmp"
  cp "$native/busybox" "$1/bin/"
  for applet in $("$native/busybox" --list); do
    [ "$applet" = busybox ] || ln -s busybox "$1/bin/$applet"
  done
}

busybox() {
  native_programs "$work/busybox"
  "$test/image.sh" localhost:5000/examples/busybox:1 "$work/busybox" "$work/busybox.tar" /bin/sh
}

# mixed: a guest as the entry point, more guests in PATH, and native programs.
mixed() {
  local guest
  native_programs "$work/mixed"
  mkdir "$work/mixed/wasm"
  for guest in sleep hello cat trap flood; do cp "$guests/c-$guest.wasm" "$work/mixed/wasm/$guest.wasm"; done
  IMAGE_PATH=/wasm:/bin "$test/image.sh" localhost:5000/examples/mixed:1 "$work/mixed" "$work/mixed.tar" /wasm/sleep.wasm
}

site() {
  mkdir "$work/site"
  echo "from the image of the site" > "$work/site/index.html"
  "$test/image.sh" localhost:5000/examples/site:1 "$work/site" "$work/site.tar"
}

make_images() {
  local guest
  work=$1/.work
  mkdir "$work"
  for guest in "$guests"/c-*.wasm; do
    guest=$(basename "$guest" .wasm)
    # A library runs if the pod names a function.
    pack "$guest" "$guest" "$guest.wasm" --force
  done
  pack http rust-p2-http http.wasm
  pack command rust-p2-hello command.wasm
  pack files c-files files.wasm
  pack artifact c-hello hello.wasm --kind artifact
  pack layer rust-p2-hello hello.wasm --kind layer
  # A service of functions is a library, too.
  pack reactor go-reactor reactor.wasm --force
  pack values rust-values values.wasm --force
  pack sqlite sqlite-shell sqlite.wasm
  busybox
  mixed
  site
  mv "$work"/*.tar "$1/"
  rm -r "$work"
}

used=("$programs/skiff" "$native/busybox" "$test/image.sh" "$guests"/{rust-p2-http,rust-p2-hello,rust-values,go-reactor,sqlite-shell,c-*}.wasm)
images=$cache/examples/$(key "$(declare -f pack native_programs busybox mixed site make_images)" "$(cat "${used[@]}" | sha256sum)")
cached "$images" make_images
[ "$(cat "$cluster/examples" 2> /dev/null)" != "$images" ] || exit 0

# push IMAGE.tar: also removes an older image of that name from the node.
push() {
  local name; name=examples/$(basename "$1" .tar):1
  "$cluster/bin/push" "$1" "$name" && "$cluster/bin/ctr" images rm "localhost:5000/$name"
}

logs=$(mktemp -d); trap 'rm -r "$logs"' EXIT
jobs=()
for image in "$images"/*.tar; do
  push "$image" > "$logs/$(basename "$image")" 2>&1 & jobs+=($!)
done
for job in "${jobs[@]}"; do wait "$job" || { cat "$logs"/* >&2; say "not every image was pushed"; exit 1; }; done
echo "$images" > "$cluster/examples"
