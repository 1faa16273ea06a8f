//! How an interface comes into a linker.

use wasmtime::component::Linker;

use crate::store::State;

/// Defines one interface. It fails if the interface is defined already.
pub(crate) type Add = fn(&mut Linker<State>) -> wasmtime::Result<()>;
