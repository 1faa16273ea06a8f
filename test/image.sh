#!/bin/bash
# image.sh NAME:TAG ROOT OUT.tar [ENTRYPOINT...]: packs the folder ROOT into an OCI image archive of one layer, without any
# builder. Equal content gives an equal archive. PATH of the image: $IMAGE_PATH, by default the usual one.
set -euo pipefail
name=$1 root=$2 out=$3; shift 3
work=$(mktemp -d); trap 'rm -rf "$work"' EXIT
mkdir -p "$work/image/blobs/sha256"

# blob FILE: moves it among the blobs and prints the members that every descriptor has.
blob() {
  local digest size
  digest=$(sha256sum < "$1" | cut -d' ' -f1); size=$(stat -c %s "$1")
  mv "$1" "$work/image/blobs/sha256/$digest"
  printf '{"digest":"sha256:%s","size":%s}' "$digest" "$size"
}

tar --sort=name --owner=0 --group=0 --numeric-owner --mtime=@0 -C "$root" -cf "$work/layer" .
layer=$(blob "$work/layer")
architecture=$(dpkg --print-architecture)
jq -cn --argjson layer "$layer" --arg architecture "$architecture" \
  --arg path "PATH=${IMAGE_PATH:-/usr/local/bin:/usr/bin:/bin:/usr/sbin:/sbin}" '{
    created: "1970-01-01T00:00:00Z", architecture: $architecture, os: "linux",
    config: {Env: [$path], Entrypoint: $ARGS.positional},
    rootfs: {type: "layers", diff_ids: [$layer.digest]}
  }' --args -- "$@" > "$work/config"
config=$(blob "$work/config")
oci=application/vnd.oci.image
jq -cn --argjson config "$config" --argjson layer "$layer" --arg oci "$oci" '{
    schemaVersion: 2, mediaType: "\($oci).manifest.v1+json",
    config: ({mediaType: "\($oci).config.v1+json"} + $config),
    layers: [{mediaType: "\($oci).layer.v1.tar"} + $layer]
  }' > "$work/manifest"
manifest=$(blob "$work/manifest")
jq -cn --argjson manifest "$manifest" --arg oci "$oci" --arg name "$name" --arg architecture "$architecture" '{
    schemaVersion: 2, mediaType: "\($oci).index.v1+json",
    manifests: [{
      mediaType: "\($oci).manifest.v1+json", platform: {os: "linux", architecture: $architecture},
      annotations: {"io.containerd.image.name": $name, "org.opencontainers.image.ref.name": ($name | split(":") | last)}
    } + $manifest]
  }' > "$work/image/index.json"
echo '{"imageLayoutVersion":"1.0.0"}' > "$work/image/oci-layout"
tar --sort=name --owner=0 --group=0 --numeric-owner --mtime=@0 -C "$work/image" -cf "$out" .
