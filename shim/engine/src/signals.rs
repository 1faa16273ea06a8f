//! Signals. A guest cannot see them. Each signal that ends a native process ends the engine, also while the guest spins or
//! blocks in a host call; a guest may have a little time before.

use std::io;
use std::os::fd::OwnedFd;
use std::time::Duration;

use nix::sys::signal::Signal;
use skiff_linux::termination;

/// How long a command may go on after SIGTERM or SIGINT: this is for one that is almost done.
pub(crate) const GRACE: Duration = Duration::from_millis(250);

const HANDLED: [Signal; 6] =
    [Signal::SIGTERM, Signal::SIGINT, Signal::SIGHUP, Signal::SIGQUIT, Signal::SIGUSR1, Signal::SIGUSR2];

/// Installs the handlers. Until [`grant_grace`] or [`notify`] every signal ends the process at once.
///
/// # Errors
/// Never: the kernel knows all of these signals.
pub(crate) fn install() -> io::Result<()> {
    termination::install(&HANDLED)
}

/// From now on SIGTERM and SIGINT leave the guest [`GRACE`].
pub(crate) fn grant_grace() {
    termination::grant_grace(GRACE);
}

/// From now on the first SIGTERM or SIGINT only makes the returned pipe readable.
///
/// # Errors
/// Those of `pipe2(2)`.
pub(crate) fn notify() -> io::Result<OwnedFd> {
    termination::notify()
}
