//! Writes to the process's two output descriptors, and the engine's own messages among them.

use std::io;
use std::os::fd::AsFd;
use std::sync::{Mutex, PoisonError};

use nix::errno::Errno;
use nix::poll::PollTimeout;

use super::poll::wait_writable;
use super::target::Target;

/// What a pipe that is ready takes without blocking; see pipe(7).
pub(super) const PIPE_BYTES: usize = 4096;

/// Writes some of `bytes`, however long the reader takes.
pub(super) fn write_blocking(target: Target, bytes: &[u8]) -> io::Result<usize> {
    loop {
        match nix::unistd::write(target, bytes) {
            Ok(written) => return Ok(written),
            Err(Errno::EINTR) => {}
            Err(Errno::EAGAIN) => {
                wait_writable(target.as_fd(), PollTimeout::NONE)?;
            }
            Err(error) => return Err(error.into()),
        }
    }
}

/// Writes what a pipe that is ready takes; `None` if it is not ready. Only one thread of this process does so at a time:
/// two that see the same room would both fill it, and one of them would wait.
pub(super) fn write_into_room(target: Target, bytes: &[u8]) -> io::Result<Option<usize>> {
    /// Of the process, as its descriptors are: both may lead into one pipe.
    static WRITING: Mutex<()> = Mutex::new(());
    let _alone = WRITING.lock().unwrap_or_else(PoisonError::into_inner);
    if !wait_writable(target.as_fd(), PollTimeout::ZERO)? {
        return Ok(None);
    }
    write_blocking(target, bytes.get(..PIPE_BYTES).unwrap_or(bytes)).map(Some)
}

/// Writes a whole message of the engine itself to stderr, however long its reader takes.
///
/// # Errors
/// Those of `write(2)`.
pub(crate) fn say(mut bytes: &[u8]) -> io::Result<()> {
    while !bytes.is_empty() {
        match write_into_room(Target::Stderr, bytes)? {
            Some(written) => bytes = bytes.get(written..).unwrap_or_default(),
            None => drop(wait_writable(Target::Stderr.as_fd(), PollTimeout::NONE)?),
        }
    }
    Ok(())
}
