# The targets of this repository; each runs one command that also works by itself.
export CARGO_TARGET_DIR ?= $(HOME)/.cache/skiff/target

.PHONY: help build check test soak run cluster cluster-down demo kind bench trace clean
help: ## list the targets
	@sed -n 's/^\([a-z-]*\):.*## /make \1\t/p' $(MAKEFILE_LIST)
build: ## build the three programs; the last line shows where they are
	@test/programs.sh
check: ## check formatting and lints, and run the tidy test
	@test/all.sh check
test: ## run every test, including those on Kubernetes; ends with `N passed, N failed`
	@test/all.sh check unit suites soak nodes cluster
soak: ## run 2,000 containers beside 30 minutes of HTTP load: nothing may grow
	@SKIFF_SOAK=whole test/all.sh soak
run: ## run a guest in a private containerd: WASM=path.wasm or IMAGE=archive.tar or IMAGE=reference, ARGS="...", PORT=...
	@test/run.sh
demo: ## start a Kubernetes, install skiff with its chart, and run a wasm pod behind a Service; shows the time of each step
	@test/cluster/demo.sh
cluster: ## start a Kubernetes of one node with skiff on it; the last line shows where its kubectl is
	@C=$$(test/cluster/up.sh | tail -n 1) && test/cluster/equip.sh "$$C" && echo "$$C/bin/kubectl"
cluster-down: ## stop what `make cluster` or `make demo` started
	@test/cluster/down.sh
kind: ## run the Kubernetes suites on kind
	@SKIFF_CLUSTER_BACKEND=kind test/all.sh cluster
bench: ## compare skiff with runc, a shim of the usual kind and wasmtime, and with the last figures
	@cargo run --release --locked --quiet -p skiff-bench -- --against docs/benchmark.json
trace: ## show where the time of a container's start and end goes, step by step
	@cargo run --release --locked --quiet -p skiff-bench -- --trace
clean: cluster-down ## remove everything that was built or cached, and the cluster
	rm -rf $(CARGO_TARGET_DIR) $(HOME)/.cache/skiff
