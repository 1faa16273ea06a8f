# What can be done here; each target is one command that also works by itself.
export CARGO_TARGET_DIR ?= $(HOME)/.cache/skiff/target

.PHONY: help build check test run bench clean
help: ## say what can be done
	@sed -n 's/^\([a-z]*\):.*## /make \1\t/p' $(MAKEFILE_LIST)
build: ## build the three programs; the last line says where they are
	@test/programs.sh
check: ## formatting, lints and the tidy test
	@test/all.sh check
test: ## everything that is tested, ending with `N passed, N failed`
	@test/all.sh check unit suites nodes
run: ## run a guest in a private containerd: WASM=path.wasm or IMAGE=archive.tar or IMAGE=reference, ARGS="..."
	@test/run.sh
bench: ## measure skiff beside runc, a shim of the usual kind and wasmtime
	@cargo run --release --locked --quiet -p skiff-bench --
clean: ## remove what was built and cached
	rm -rf $(CARGO_TARGET_DIR) $(HOME)/.cache/skiff
