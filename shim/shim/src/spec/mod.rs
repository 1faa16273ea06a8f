//! What the shim decides, without doing it: no system calls, clocks, locks or async here.

mod annotations;
pub(crate) mod calls;
pub(crate) mod config;
pub(crate) mod debug;
pub(crate) mod entrypoint;
pub(crate) mod exec;
pub(crate) mod http;
pub(crate) mod launch;
pub(crate) mod limits;
pub(crate) mod pod;
pub(crate) mod pod_files;
pub(crate) mod sandbox;
pub(crate) mod termination;
pub(crate) mod wasm;
