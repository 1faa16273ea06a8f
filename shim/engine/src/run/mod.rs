//! Guests that run once: core modules of WASI 0.1 and components of `wasi:cli`, or one function of either.

mod call;
pub(crate) mod command;
pub(crate) mod component;
pub(crate) mod module;
pub(crate) mod text;
