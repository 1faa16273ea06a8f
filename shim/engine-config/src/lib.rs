//! The one `wasmtime::Config` of skiff. Compiler and engine build it here, so that the engine can map what the compiler made.
//!
//! Compiled code depends on settings that wasmtime would take from a crate feature, the environment or its own defaults. All of
//! them are set here, because the compiler is built with more features than the engine. `docs/wasm-features.md` lists the
//! resulting WebAssembly proposals.

use wasmtime::{Collector, Config, ModuleVersionStrategy, WasmBacktraceDetails};

/// The configuration with which code is compiled and run.
///
/// # Errors
/// None in practice: wasmtime refuses only a version string of more than 255 bytes.
pub fn engine_config() -> wasmtime::Result<Config> {
    let mut config = Config::new();
    config
        .epoch_interruption(true)
        .wasm_component_model(true)
        .wasm_component_model_async(true)
        .collector(Collector::Copying)
        // Keeps the debug information of modules that have some, in a section of its own: nothing reads it before a trap or a look.
        // Invariant: a variable of the container's environment must not change what code is accepted.
        .wasm_backtrace_details(WasmBacktraceDetails::Enable)
        .module_version(ModuleVersionStrategy::Custom(skiff_protocol::CODE_ID.into()))?;
    Ok(config)
}
