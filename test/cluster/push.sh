#!/bin/bash
# push.sh CLUSTER SOURCE NAME: pushes an OCI archive, or the folder of an OCI layout, to the node's registry as localhost:5000/NAME.
# Standard output is the reference that a manifest pulls it by: the name and the digest.
set -euo pipefail
cluster=$1 source=$2 name=$3
if [ -f "$source" ]; then
  layout=$(mktemp -d); trap 'rm -r "$layout"' EXIT
  tar -C "$layout" -xf "$source"
  source=$layout
fi
said=$("$cluster/bin/crane" push "$source" "localhost:5000/$name" 2>&1) || { echo "$said" >&2; exit 1; }
echo "localhost:5000/$name@${said##*@}"
