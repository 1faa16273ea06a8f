//! Signals. A guest cannot see them. Each signal that ends a native process ends the engine, also while the guest spins or
//! blocks in a host call; a command has a little time before, and a server finishes its requests.
//!
//! An image names any signal as the one that stops its container, and the specification does not say which it is. So the first
//! signal that somebody sends asks the guest to end, whichever it is, and a second one ends it. In a pod only the container's stop
//! signal and SIGKILL are ever sent. Elsewhere a client may forward those of its terminal, such as SIGWINCH: signals that do not
//! end a native process are ignored there.

use std::io;
use std::os::fd::OwnedFd;
use std::time::Duration;

use skiff_linux::termination;

/// How long a command may go on after a signal: this is for one that is almost done.
pub(crate) const GRACE: Duration = Duration::from_millis(250);

/// Installs the handlers. Until [`grant_grace`] or [`notify`] every signal ends the process at once.
///
/// # Errors
/// Never: the kernel knows all of these signals.
pub(crate) fn install() -> io::Result<()> {
    termination::install()
}

/// From now on a signal that does not end a native process is like any other.
///
/// # Errors
/// Never: the kernel knows all of these signals.
pub(crate) fn let_each_stop() -> io::Result<()> {
    termination::install_for_harmless()
}

/// From now on a signal leaves the guest [`GRACE`].
pub(crate) fn grant_grace() {
    termination::grant_grace(GRACE);
}

/// From now on the first signal only makes the returned pipe readable.
///
/// # Errors
/// Those of `pipe2(2)`.
pub(crate) fn notify() -> io::Result<OwnedFd> {
    termination::notify()
}
