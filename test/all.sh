#!/bin/bash
# all.sh [check] [unit] [suites] [nodes] [cluster] [soak]: runs these levels of tests and ends with the sum, `N passed, N failed`.
here=$(cd "$(dirname "$0")" && pwd)
. "$here/cache.sh"
cd "$here/.."
export CARGO_TARGET_DIR=${CARGO_TARGET_DIR:-$cache/target}
packages=(skiff-protocol skiff-linux skiff-engine-config skiff-stage skiff-engine skiff containerd-shim-skiff skiff-node skiff-test skiff-bench)
passed=0 failed=0 panics=

# A suite is a file of test/tests, or a folder with a main.rs. Four kinds have a level of their own.
suites=()
for file in test/tests/*.rs test/tests/*/main.rs; do
  name=${file#test/tests/} name=${name%/main.rs} name=${name%.rs}
  case $name in tidy | apparmor | soak | kube_*) ;; *) suites+=(--test "$name") ;; esac
done

# one NAME COMMAND...: a command that counts as one test.
one() {
  local name=$1; shift
  if "$@"; then say "ok: $name"; passed=$((passed + 1)); else say "FAILED: $name"; failed=$((failed + 1)); fi
}

# many NAME COMMAND...: a test runner, whose `test result` lines are added up. One that fails without such a line counts as one
# failed test. How its tests failed is told once more at the end, where it is found.
many() {
  local name=$1 log status=0; shift
  log=$(mktemp)
  "$@" 2>&1 | tee "$log" || status=$?
  local sum
  sum=$(sed -n 's/^test result: .* \([0-9]*\) passed; \([0-9]*\) failed;.*/\1 \2/p' "$log" |
    awk '{ p += $1; f += $2 } END { print p + 0, f + 0 }')
  passed=$((passed + ${sum% *})) failed=$((failed + ${sum#* }))
  if [ "$status" != 0 ] && [ "${sum#* }" = 0 ]; then say "FAILED: $name ended with $status"; failed=$((failed + 1)); fi
  [ "$status" = 0 ] || panics+=$(sed -En "/^thread '.* panicked at /,/^(stack backtrace:|note: run with)/ {
    /^(stack|note:)/d; s/^(.{600}).*/\1 …/; p }" "$log")$'\n'
  rm -f "$log"
}

# dependencies: checks licences, sources and bans by deny.toml. What is only a warning there is not shown.
dependencies() {
  local tools
  tools=$(test/tools/build.sh deny | tail -n 1)
  "$tools/cargo-deny" --locked --log-level error check bans licenses sources
}

lint() { cargo clippy --release --locked --quiet -p "$1" --all-targets -- -D warnings; }

check() {
  local package
  apt_need protobuf-compiler libprotobuf-dev shellcheck
  one formatting cargo fmt --check
  one "shell scripts" shellcheck -s bash -S error test/*.sh test/*/*.sh test/*/*/*.sh
  for package in "${packages[@]}"; do one "lints of $package" lint "$package"; done
  one dependencies dependencies
  one "the chart" test/charts.sh
  many tidy cargo test --release --locked --quiet -p skiff-test --test tidy
}

# prepare: builds what the tests need: programs, tools and guests. The second time it takes no time.
prepare() {
  # Attacks build libraries and are watched with strace.
  apt_need gcc libc6-dev strace
  SKIFF_BIN=$(test/programs.sh | tail -n 1)
  SKIFF_TOOLS=$(test/tools/build.sh | tail -n 1)
  SKIFF_GUESTS=$(test/guests/build.sh | tail -n 1)
  export SKIFF_BIN SKIFF_TOOLS SKIFF_GUESTS
}

unit() {
  local package
  prepare
  for package in "${packages[@]}"; do
    # Its own tests are in the level `suites`.
    [ "$package" = skiff-test ] || many "$package" cargo test --release --locked --quiet --no-fail-fast -p "$package"
  done
}

suites() {
  prepare
  # Tests mostly wait for containerd, and each runs in containers of its own.
  export RUST_TEST_THREADS=4
  many skiff-test cargo test --release --locked --quiet --no-fail-fast -p skiff-test --lib "${suites[@]}"
  # The walls and the lives of containers again where the OCI runtime makes all of them.
  many "the OCI runtime" env SKIFF_OCI_LAUNCHER=yes cargo test --release --locked --quiet --no-fail-fast -p skiff-test \
    --test attacks --test attacks_engine --test cleanup --test exec --test files --test process --test terminal
  # Pods again where the shim makes their sandboxes.
  many "the Sandbox API" env SKIFF_SANDBOXER=shim cargo test --release --locked --quiet --no-fail-fast -p skiff-test \
    --test attacks_cri --test cri --test limits_cri
}

# nodes: the suites that depend on the node's cgroups, again on cgroup v2, and again where systemd manages the cgroups.
nodes() {
  prepare
  many "cgroup v2" test/nodes/suites.sh --mem 3072 --timeout 1500 apparmor attacks attacks_cri attacks_engine attacks_shim exit files files_listings files_paths limits_annotations \
    limits_clients limits_cpu limits_cri limits_memory limits_oom limits_resources memory native outgoing process
  many "skiff's own launcher on cgroup v2" test/nodes/suites.sh --mem 3072 --timeout 900 launcher \
    -- --exact both_launchers_make_the_same_containers
  # Others find a pod by its sandbox's cgroup.
  local sandbox=(a_pod_is_as_its_description_says_without_a_pause_process
    a_pods_network_is_found_by_a_process_of_its_cgroup_until_the_sandbox_ends)
  many "pods on cgroup v2" test/nodes/suites.sh --mem 3072 --timeout 300 cri -- --exact "${sandbox[@]}"
  many "pods on cgroup v2 of systemd" test/nodes/suites.sh --systemd --mem 3072 --timeout 300 cri -- --exact "${sandbox[@]}"
  # systemd removes the cgroup of a killed container, and its last limit with it.
  many "cgroup v2 of systemd" test/nodes/suites.sh --systemd --timeout 600 limits_oom memory process \
    -- --skip a_limit_written_below_what_is_in_use
}

# cluster: Kubernetes, with skiff installed by the chart; the suite that depends on cgroups again on version 2. `kube_install`
# changes the node and therefore comes last.
cluster() {
  prepare
  many "Kubernetes" test/cluster/suites.sh kube_examples kube_overhead kube_pods kube_exec kube_probes kube_terminal kube_attacks kube_services kube_limits kube_documents kube_node kube_install
  [ "${SKIFF_CLUSTER_BACKEND:-local}" != local ] || many "Kubernetes on cgroup v2" test/cluster/suites.sh --node kube_limits
}

# soak: the suite `soak` alone, which shows its figures.
soak() {
  prepare
  many "the soak" env RUST_TEST_THREADS=4 cargo test --release --locked --quiet -p skiff-test --test soak -- --nocapture
}

for level in "$@"; do
  since=$SECONDS
  "$level"
  say "$level took $((SECONDS - since)) s"
done
[ -z "$panics" ] || say "$panics"
echo "$passed passed, $failed failed"
[ "$failed" = 0 ] && [ "$passed" != 0 ]
