//! Whether a write would block.

use std::io;
use std::os::fd::{AsFd, BorrowedFd};

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

/// Whether a write would not block, after waiting for it up to `milliseconds`.
pub(crate) fn is_writable(file: &impl AsFd, milliseconds: u8) -> bool {
    wait_writable(file.as_fd(), milliseconds.into()).unwrap_or(false)
}

/// The same, with the error of `poll(2)`.
pub(super) fn wait_writable(fd: BorrowedFd<'_>, timeout: PollTimeout) -> io::Result<bool> {
    match poll(&mut [PollFd::new(fd, PollFlags::POLLOUT)], timeout) {
        Ok(ready) => Ok(ready > 0),
        Err(Errno::EINTR) => Ok(false),
        Err(error) => Err(error.into()),
    }
}
