#!/bin/bash
# suites.sh [--node] SUITE... [-- ARGUMENT...]: starts a cluster, installs skiff with the chart, runs suites of test/tests on it
# one after the other, and ends the cluster. With --node all of that happens in a node with cgroup v2. The arguments go to the test
# programs (names of tests, --skip). The exit code is that of the last suite that failed. SKIFF_CLUSTER: a cluster to use instead.
here=$(cd "$(dirname "$0")" && pwd)
. "$here/../cache.sh"
. "$here/../suites.sh"
cd "$here/../.."
export CARGO_TARGET_DIR=${CARGO_TARGET_DIR:-$cache/target}

# run PROGRAM... [-- ARGUMENT...]: runs the programs on SKIFF_CLUSTER, or on a cluster that ends with them.
run() {
  local -a suites=()
  while [ $# -gt 0 ] && [ "$1" != -- ]; do suites+=("$1"); shift; done
  [ $# = 0 ] || shift
  if [ -z "${SKIFF_CLUSTER:-}" ]; then
    export SKIFF_CLUSTER_NAME=test-$$
    trap '"$here/down.sh"; rm -rf "$SKIFF_CLUSTER"' EXIT
    trap 'exit 130' INT TERM
    SKIFF_CLUSTER=$("$here/up.sh" | tail -n 1)
    export SKIFF_CLUSTER
    "$here/equip.sh" "$SKIFF_CLUSTER"
  fi
  local suite status=0
  cd test
  for suite in "${suites[@]}"; do
    echo "${suite##*/}"
    "$suite" "$@" || status=$?
  done
  return "$status"
}

main() {
  local node=''
  local -a suites=() programs=()
  if [ "${1:-}" = --run ]; then shift; run "$@"; return; fi
  if [ "${1:-}" = --node ]; then node=yes; shift; fi
  while [ $# -gt 0 ] && [ "$1" != -- ]; do suites+=("$1"); shift; done
  provide
  export RUST_TEST_THREADS=${RUST_TEST_THREADS:-3}
  test/tools/build.sh containerd runc cni crictl native kubernetes registry > /dev/null
  build_suites "${suites[@]}"
  if [ -z "$node" ]; then
    run "${programs[@]}" "$@"
  else
    # Of the node's file systems only those in memory can hold snapshots.
    SKIFF_CLUSTER_STATE=/tmp/clusters exec "$here/../nodes/run.sh" --mem 6144 --timeout 1500 -- \
      "$here/suites.sh" --run "${programs[@]}" "$@"
  fi
}

main "$@"; exit
