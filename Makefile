# What can be done here; each target is one command that also works by itself.
export CARGO_TARGET_DIR ?= $(HOME)/.cache/skiff/target

.PHONY: help build check test run cluster cluster-down demo kind bench clean
help: ## say what can be done
	@sed -n 's/^\([a-z-]*\):.*## /make \1\t/p' $(MAKEFILE_LIST)
build: ## build the three programs; the last line says where they are
	@test/programs.sh
check: ## formatting, lints and the tidy test
	@test/all.sh check
test: ## everything that is tested, on Kubernetes too, ending with `N passed, N failed`
	@test/all.sh check unit suites nodes cluster
run: ## run a guest in a private containerd: WASM=path.wasm or IMAGE=archive.tar or IMAGE=reference, ARGS="..."
	@test/run.sh
demo: ## a Kubernetes, skiff on it by its chart, and a wasm pod that answers through a Service; each step with its time
	@test/cluster/demo.sh
cluster: ## a Kubernetes of one node with skiff on it; the last line says where its kubectl is
	@C=$$(test/cluster/up.sh | tail -n 1) && test/cluster/equip.sh "$$C" && echo "$$C/bin/kubectl"
cluster-down: ## end what `make cluster` or `make demo` started
	@test/cluster/down.sh
kind: ## the suites of Kubernetes, on kind
	@SKIFF_CLUSTER_BACKEND=kind test/all.sh cluster
bench: ## measure skiff beside runc, a shim of the usual kind and wasmtime
	@cargo run --release --locked --quiet -p skiff-bench --
clean: cluster-down ## remove what was built and cached, and the cluster
	rm -rf $(CARGO_TARGET_DIR) $(HOME)/.cache/skiff
