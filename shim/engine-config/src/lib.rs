//! The one `wasmtime::Config` of skiff. Compiler and engine build it here, so that what one compiles the other maps.
//!
//! Everything that wasmtime would take from a crate feature, from the environment or from its own defaults, and that
//! code depends on, is said here: the compiler is built with more features than the engine.
//! `docs/wasm-features.md` is the list of WebAssembly proposals that follows from it.

use wasmtime::{Collector, Config, ModuleVersionStrategy, WasmBacktraceDetails};

/// The configuration with which code is compiled and run.
///
/// # Errors
/// Never in practice: wasmtime refuses only a version string of more than 255 bytes.
pub fn engine_config() -> wasmtime::Result<Config> {
    let mut config = Config::new();
    config
        .epoch_interruption(true)
        .wasm_component_model(true)
        .wasm_component_model_async(true)
        .collector(Collector::Copying)
        // Invariant: a variable of the container's environment must not change what code is accepted.
        .wasm_backtrace_details(WasmBacktraceDetails::Disable)
        .module_version(ModuleVersionStrategy::Custom(skiff_protocol::CODE_ID.into()))?;
    Ok(config)
}
