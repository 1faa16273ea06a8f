//! The one `wasmtime::Config` of skiff. Compiler and engine build it here, so that what one compiles the other maps.

use wasmtime::{Config, ModuleVersionStrategy};

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
        .module_version(ModuleVersionStrategy::Custom(skiff_plan::CODE_ID.into()))?;
    Ok(config)
}
