//! WASI 0.1, for core modules: preview 1 and the snapshot before it.

use skiff_protocol::interfaces::{PREVIEW_0, PREVIEW_1};
use wasmtime::{Caller, Linker, Result};
use wasmtime_wasi::{p0, p1};

use super::cli::exit;
use super::filesystem::{p1_listings, p1_paths};
use super::waiting;
use crate::store::State;

/// Defines the functions of preview 1.
///
/// # Errors
/// Never if the linker allows shadowing.
pub(crate) fn add_1(linker: &mut Linker<State>) -> Result<()> {
    p1::add_to_linker_async(linker, |state: &mut State| &mut state.wasi)?;
    p1_paths::replace(linker, &PREVIEW_1)?;
    p1_listings::replace(linker, &PREVIEW_1)?;
    waiting::replace_p1(linker)?;
    linker.func_wrap(PREVIEW_1.module, "proc_exit", proc_exit)?;
    Ok(())
}

/// Defines the functions of the snapshot before preview 1.
///
/// # Errors
/// Never if the linker allows shadowing.
pub(crate) fn add_0(linker: &mut Linker<State>) -> Result<()> {
    p0::add_to_linker_async(linker, |state: &mut State| &mut state.wasi)?;
    p1_paths::replace(linker, &PREVIEW_0)?;
    p1_listings::replace(linker, &PREVIEW_0)?;
    linker.func_wrap(PREVIEW_0.module, "proc_exit", proc_exit)?;
    Ok(())
}

/// wasmtime-wasi's own `proc_exit` refuses codes from 126 on.
fn proc_exit(caller: Caller<'_, State>, code: i32) -> Result<()> {
    Err(exit(code, caller.engine()))
}
