//! Writes to the process's two output descriptors, and the engine's own messages among them.

use std::io::{self, Write};
use std::os::fd::AsFd;
use std::sync::{Mutex, PoisonError};

use nix::errno::Errno;
use nix::poll::PollTimeout;

use super::poll::wait_writable;
use super::target::Target;

/// Where output goes, and what that is called.
pub(crate) struct NamedOutput {
    pub(crate) writer: Box<dyn Write>,
    /// In a sentence about an error.
    pub(crate) name: String,
}

impl NamedOutput {
    /// The output of an answer.
    pub(crate) fn answer(writer: Box<dyn Write>) -> Self {
        Self { writer, name: "the answer".to_owned() }
    }
}

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
    match nix::unistd::write(target, bytes.get(..PIPE_BYTES).unwrap_or(bytes)) {
        Ok(written) => Ok(Some(written)),
        // Only a terminal has less room than it seems; see `Target::never_wait_for_terminal`.
        Err(Errno::EINTR | Errno::EAGAIN) => Ok(None),
        Err(error) => Err(error.into()),
    }
}

/// One of the output descriptors of a process that runs no guest. It is written to however long its reader takes.
pub(crate) struct Whole(pub(crate) Target);

impl Write for Whole {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        write_blocking(self.0, bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
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
