//! The second wall, behind wasmtime's: what this process gives up before the first instruction of a guest. Whoever breaks
//! out of the guest finds a process that can use the guest's files and the network, and do nothing else.
//!
//! The container around it (namespaces, cgroup, what its runtime set up) stays as it is. Whatever needs new code later
//! starts a new engine: no page of this process ever becomes executable again.

mod calls;
mod capabilities;
mod filter;
mod landlock;
pub(crate) mod view;

use std::io;

use nix::sys::prctl;

use self::view::View;

/// Hides the process from others of the same user: its `/proc/PID` shows and opens nothing for them. Call it first.
///
/// # Errors
/// Never in practice.
pub(crate) fn hide() -> io::Result<()> {
    Ok(prctl::set_dumpable(false)?)
}

/// Raises the wall around the only thread that there is. All later threads are behind it as well.
///
/// # Errors
/// If the kernel refuses a part that must hold; the sentence names it. What depends on the kernel's build (Landlock) or on
/// the container's own capabilities (the bounding set) is done as far as possible.
pub(crate) fn raise(view: &View<'_>) -> Result<(), String> {
    let failed = |what: &str, error: io::Error| format!("cannot raise the wall around the guest: {what}: {error}");
    prctl::set_no_new_privs().map_err(|error| failed("no new privileges", error.into()))?;
    landlock::restrict(view);
    capabilities::drop_unneeded().map_err(|error| failed("the capabilities", error))?;
    filter::install().map_err(|error| failed("the filter of system calls", error))
}
