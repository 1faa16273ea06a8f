#!/bin/bash
# suites.sh [OPTION-OF-run.sh...] SUITE... [-- ARGUMENT...]: runs suites of test/tests in a node. The arguments go to the test
# programs (names of tests, --skip). The suites are built on the machine, and so are SKIFF_BIN, SKIFF_TOOLS and SKIFF_GUESTS unless
# they are set. The exit code is that of the last suite that failed.
here=$(cd "$(dirname "$0")" && pwd)
. "$here/../cache.sh"
. "$here/../suites.sh"
cd "$here/../.."
export CARGO_TARGET_DIR=${CARGO_TARGET_DIR:-$cache/target}

options=() suites=()
while [ $# -gt 0 ]; do
  case $1 in
    --systemd) options+=("$1"); export SKIFF_TEST_SYSTEMD=yes ;;
    --mem | --timeout) options+=("$1" "$2"); shift ;;
    --) shift; break ;;
    *) suites+=("$1") ;;
  esac
  shift
done

provide
export RUST_TEST_THREADS=${RUST_TEST_THREADS:-2}
build_suites "${suites[@]}"

cd test
# shellcheck disable=SC2016 # the node's shell expands it
exec "$here/run.sh" "${options[@]}" -- bash -c '
  count=$1 status=0
  for program in "${@:2:count}"; do
    echo "${program##*/}"
    "$program" "${@:count+2}" || status=$?
  done
  exit "$status"' suites "${#programs[@]}" "${programs[@]}" "$@"
