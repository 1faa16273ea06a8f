# Sourced by the scripts of the clusters: which cluster they are about, and where it is.

here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
. "$here/../cache.sh"
backend=${SKIFF_CLUSTER_BACKEND:-local}
cluster_name=${SKIFF_CLUSTER_NAME:-skiff}
case $backend in local | kind) ;; *) say "no such back end: $backend"; exit 2 ;; esac
# Everything of the cluster except what is in the memory of its node.
cluster=${cluster:-${SKIFF_CLUSTER_STATE:-$cache/clusters}/$backend-$cluster_name}

# When the outermost script began.
export SKIFF_CLUSTER_BEGAN=${SKIFF_CLUSTER_BEGAN:-$(date +%s%3N)}

# step WORD...: prints how long it has taken so far.
step() {
  local took=$(($(date +%s%3N) - SKIFF_CLUSTER_BEGAN))
  printf '%4d.%d s  %s\n' $((took / 1000)) $((took % 1000 / 100)) "$*" >&2
}

# wait_until SECONDS WHAT COMMAND...: waits until the command succeeds, or names what is missing and exits.
wait_until() {
  local end=$((SECONDS + $1)) what=$2; shift 2
  until "$@" > /dev/null 2>&1; do
    [ "$SECONDS" -lt "$end" ] || { say "not there in time: $what"; exit 1; }
    sleep 0.2
  done
}

# wrapper NAME COMMAND...: makes C/bin/NAME, which runs the command and appends its own arguments. The words are quoted.
wrapper() {
  mkdir -p "$cluster/bin"
  { printf '#!/bin/bash\nexec'; printf ' %q' "${@:2}"; printf ' "$@"\n'; } > "$cluster/bin/$1"
  chmod 755 "$cluster/bin/$1"
}

# daemon_is_up NAME: whether the kubelet or the containerd of the node responds.
daemon_is_up() {
  case $1 in
    containerd) "$cluster/bin/ctr" version ;;
    kubelet) "$cluster/bin/in-net" curl -sf http://127.0.0.1:10248/healthz ;;
  esac
}
