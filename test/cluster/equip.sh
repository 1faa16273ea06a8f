#!/bin/bash
# equip.sh CLUSTER: installs skiff on a cluster as an operator does, with the chart and the installer's image, and pushes the
# images of the examples. `skiff` joins the cluster's clients.
cluster=$1
. "$(dirname "$0")/cluster.sh"

programs=${SKIFF_BIN:-$("$here/../programs.sh" | tail -n 1)}
wrapper skiff "$programs/skiff"
"$here/images.sh" "$cluster" & images=$!
"$here/installer.sh" "$cluster" > "$cluster/values.yaml"
# Who makes the sandboxes of pods; by default the chart decides.
[ -z "${SKIFF_SANDBOXER:-}" ] || echo "sandboxer: $SKIFF_SANDBOXER" >> "$cluster/values.yaml"
step "the installer's image is in the node's registry"
"$cluster/bin/helm" upgrade --install skiff "$here/../../charts/skiff" --namespace skiff-system --create-namespace \
  --wait --timeout 5m --values "$cluster/values.yaml" > "$cluster/logs/helm.log" || { cat "$cluster/logs/helm.log" >&2; exit 1; }
step "the chart is installed"
wait "$images"
step "the examples' images are in the node's registry"
