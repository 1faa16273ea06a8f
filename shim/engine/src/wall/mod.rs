//! The second wall, behind wasmtime's: what this process gives up before the first instruction of a guest. Whoever breaks
//! out of the guest finds a process that can use the guest's files and the network, and do nothing else.
//!
//! The first wall of the container (namespaces, cgroup, what its runtime set up) stands around it as before. What later
//! needs new code starts a new engine: no page of this process ever becomes executable again.

mod calls;
mod capabilities;
mod filter;
mod landlock;

use std::io;
use std::os::fd::OwnedFd;

use nix::sys::prctl;

/// What of the container's files stays in reach.
pub(crate) struct View<'a> {
    /// Open directories, each with everything below it, and whether they may be changed.
    pub(crate) directories: &'a [(OwnedFd, Access)],
    /// Single files, to be read.
    pub(crate) files: &'a [&'a str],
}

/// What may be done with the files of a directory.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Access {
    /// Only read them.
    Read,
    /// Change them, too.
    Write,
}

/// Hides the process from others of the same user: their `/proc/PID` of it shows and opens nothing. To be called first.
///
/// # Errors
/// Never in practice.
pub(crate) fn hide() -> io::Result<()> {
    Ok(prctl::set_dumpable(false)?)
}

/// Raises the wall around the only thread that there is; all later ones are behind it, too.
///
/// # Errors
/// When the kernel refuses a part that must hold; the sentence says which. What depends on the kernel's build
/// (Landlock) or on the container's own capabilities (the bounding set) is done as far as it goes.
pub(crate) fn raise(view: &View<'_>) -> Result<(), String> {
    let failed = |what: &str, error: io::Error| format!("cannot raise the wall around the guest: {what}: {error}");
    prctl::set_no_new_privs().map_err(|error| failed("no new privileges", error.into()))?;
    landlock::restrict(view);
    capabilities::drop_unneeded().map_err(|error| failed("the capabilities", error))?;
    filter::install().map_err(|error| failed("the filter of system calls", error))
}
