# Sourced, at the top of the repository, by the scripts that run suites of test/tests in a node or on a cluster.

# provide: sets what the suites would otherwise build, which they cannot do in such a place.
provide() {
  : "${SKIFF_BIN:=$(test/programs.sh | tail -n 1)}"
  : "${SKIFF_TOOLS:=$(test/tools/build.sh | tail -n 1)}"
  : "${SKIFF_GUESTS:=$(test/guests/build.sh | tail -n 1)}"
  export SKIFF_BIN SKIFF_TOOLS SKIFF_GUESTS
}

# build_suites SUITE...: fills `programs` with the test programs of the suites, in this order.
build_suites() {
  local suite built program
  local -a targets=()
  for suite in "$@"; do targets+=(--test "$suite"); done
  built=$(cargo test --release --locked --no-run --quiet --message-format=json -p skiff-test "${targets[@]}")
  programs=()
  for suite in "$@"; do
    program=$(sed -n 's/.*"name":"'"$suite"'".*"executable":"\([^"]*\)".*/\1/p' <<< "$built")
    [ -n "$program" ] || { say "the suite $suite was not built"; exit 1; }
    programs+=("$program")
  done
}
