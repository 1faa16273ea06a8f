//! Maps compiled code into this process, and nothing else. This is the only place where skiff loads code.

use std::fs::File;
use std::num::NonZeroUsize;
use std::os::fd::AsRawFd;

use skiff_protocol::{Limits, Refusal};
use wasmtime::component::Component;
use wasmtime::{Config, Engine, Module, Precompiled};

use crate::error::sentence;
use crate::trap::CALLS_MAX;

/// What host functions get of a call's stack, beyond the guest's part.
const HOST_STACK_BYTES: usize = 3 << 19;

/// Mapped code. A clone is the same code.
#[derive(Clone)]
pub(crate) enum Code {
    /// A core module.
    Module(Module),
    /// A component.
    Component(Component),
}

impl Code {
    /// The engine that it runs in.
    pub(crate) fn engine(&self) -> &Engine {
        match self {
            Self::Module(module) => module.engine(),
            Self::Component(component) => component.engine(),
        }
    }
}

/// The configuration of the engine for a guest with these limits.
///
/// # Errors
/// Those of [`skiff_engine_config::engine_config`].
pub(crate) fn config(limits: &Limits) -> wasmtime::Result<Config> {
    let mut config = skiff_engine_config::engine_config()?;
    config.wasm_backtrace_max_frames(NonZeroUsize::new(CALLS_MAX));
    config.max_wasm_stack(limits.stack_bytes).async_stack_size(limits.stack_bytes.saturating_add(HOST_STACK_BYTES));
    Ok(config)
}

/// Maps the code in `file`. Its pages are the file's own, shared by all containers that run it. wasmtime keeps a
/// descriptor of its own, from which it maps the first contents of memories, copied on write.
///
/// # Errors
/// [`Refusal::Incompatible`] if the code is for another engine: it must be compiled again.
pub(crate) fn load(engine: &Engine, file: &File) -> Result<Code, Refusal> {
    // wasmtime maps a component by its path only. The descriptor's path works whatever happened to the file's own name.
    let path = format!("/proc/self/fd/{}", file.as_raw_fd());
    let kind = Engine::detect_precompiled_file(&path).map_err(|error| incompatible(&error))?;
    let loaded = match kind {
        Some(Precompiled::Module) => {
            // SAFETY: the shim hands over what skiff's own compiler wrote into root's cache, never what came from an
            // image, and nobody writes to a file of the cache.
            unsafe { Module::deserialize_file(engine, &path) }.map(Code::Module)
        }
        Some(Precompiled::Component) => {
            // SAFETY: as above.
            unsafe { Component::deserialize_file(engine, &path) }.map(Code::Component)
        }
        None => return Err(Refusal::Incompatible("this is not compiled code".to_owned())),
    };
    loaded.map_err(|error| incompatible(&error))
}

fn incompatible(error: &wasmtime::Error) -> Refusal {
    Refusal::Incompatible(format!("the compiled code is for another engine: {}", sentence(error)))
}
