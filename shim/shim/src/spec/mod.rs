//! What the shim decides, without doing it: no system calls, clocks, locks or async here.

pub(crate) mod config;
pub(crate) mod entrypoint;
pub(crate) mod http;
pub(crate) mod limits;
pub(crate) mod sandbox;
pub(crate) mod wasm;
