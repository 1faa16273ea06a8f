//! The two descriptors that output goes to. They are the process's own, open as long as it lives.

use std::os::fd::{AsFd, BorrowedFd};

use nix::fcntl::{FcntlArg, OFlag, fcntl};
use skiff_linux::descriptors::watch_static;
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

/// Which descriptor a stream writes to.
#[derive(Clone, Copy)]
pub(crate) enum Target {
    /// Descriptor 1.
    Stdout,
    /// Descriptor 2.
    Stderr,
}

impl Target {
    /// The descriptor.
    pub(super) fn as_static_fd(self) -> BorrowedFd<'static> {
        match self {
            Self::Stdout => rustix::stdio::stdout(),
            Self::Stderr => rustix::stdio::stderr(),
        }
    }

    /// Watches when a write would not block; `None` if it cannot be watched because it is a file, which always has room.
    pub(super) fn watch(self) -> Option<AsyncFd<BorrowedFd<'static>>> {
        watch_static(self.as_static_fd(), Interest::WRITABLE).ok()
    }

    /// Lets no write wait if this is a terminal. A pipe that is ready takes some bytes at once, but a terminal may have less room
    /// than that, and keep the writer until its reader has taken the rest.
    pub(super) fn never_wait_for_terminal(self) {
        if self.is_terminal()
            && let Ok(flags) = fcntl(self, FcntlArg::F_GETFL).map(OFlag::from_bits_retain)
        {
            // One that cannot be set is written to as a pipe is.
            let _set = fcntl(self, FcntlArg::F_SETFL(flags | OFlag::O_NONBLOCK));
        }
    }

    /// Whether it is a terminal.
    pub(super) fn is_terminal(self) -> bool {
        nix::unistd::isatty(self).unwrap_or(false)
    }
}

impl AsFd for Target {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.as_static_fd()
    }
}
