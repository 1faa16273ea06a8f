//! The engine's ends of what goes between it and the shim, and what it inherits from it.

use std::ffi::CString;
use std::fs::File;
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};
use std::os::unix::net::UnixStream;

use nix::fcntl::{FcntlArg, FdFlag, fcntl};
use skiff_protocol::{CONTROL_FD, ENGINE_FD, Message, Refusal, Reply};

use crate::report;

/// The control socket. Messages come through it, nothing goes back. Invariant: no guest code runs while it is open.
pub(crate) struct Control(UnixStream);

impl Control {
    /// Takes the socket over from the process that executed the engine, and closes everything else that was handed down:
    /// the engine's own file, and what nobody meant to.
    ///
    /// # Errors
    /// When descriptor [`CONTROL_FD`] is not open.
    pub(crate) fn inherit() -> io::Result<Self> {
        // SAFETY: `fcntl` on a number that may not be open answers `EBADF`; nothing is closed through this borrow.
        let number = unsafe { BorrowedFd::borrow_raw(CONTROL_FD) };
        fcntl(number, FcntlArg::F_SETFD(FdFlag::FD_CLOEXEC))?;
        // Closing fails when nothing is there, as in a test that starts the engine by its path: nothing to do then.
        let _closed = nix::unistd::close(ENGINE_FD);
        close_above(CONTROL_FD);
        // SAFETY: the descriptor is open, was made for the engine, and nothing else in this process uses it.
        Ok(Self(UnixStream::from(unsafe { OwnedFd::from_raw_fd(number.as_raw_fd()) })))
    }

    /// Waits for the next message of the shim.
    ///
    /// # Errors
    /// Those of [`skiff_protocol::receive_message`].
    pub(crate) fn receive(&self) -> io::Result<Message> {
        loop {
            match skiff_protocol::receive_message(&self.0) {
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                received => return received,
            }
        }
    }
}

/// Closes what this process was born with beyond `number`. Kernels before 5.9 cannot, and runtimes leave nothing there.
fn close_above(number: RawFd) {
    let first = number.cast_unsigned() + 1;
    // SAFETY: at its start the process has opened nothing yet, so that no descriptor of Rust's is among these.
    let _closed = unsafe { libc::syscall(libc::SYS_close_range, first, libc::c_uint::MAX, 0) };
}

/// The pipe for what the shim is told of one message. It is all that a starting guest's engine holds of the shim.
pub(crate) struct Replies(File);

impl Replies {
    /// Through the pipe that came with a message.
    pub(crate) fn through(pipe: File) -> Self {
        Self(pipe)
    }

    /// Says that the code is loaded.
    ///
    /// # Errors
    /// When the shim is gone.
    pub(crate) fn loaded(&self) -> io::Result<()> {
        Reply::Loaded.write_to(&self.0)
    }

    /// Says that the guest is about to run, and closes the pipe.
    ///
    /// # Errors
    /// Those of writing, but for a shim that waits no longer: it has reported a guest with a long start function as started.
    pub(crate) fn ready(self) -> io::Result<()> {
        match Reply::Ready.write_to(&self.0) {
            Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Ok(()),
            written => written,
        }
    }

    /// Says why the guest does not run: to the shim, or on stderr when that waits no longer.
    ///
    /// # Errors
    /// Those of writing.
    pub(crate) fn refuse(&self, refusal: Refusal) -> io::Result<()> {
        let reply = Reply::Refused(refusal);
        match (reply.write_to(&self.0), reply) {
            (Err(error), Reply::Refused(Refusal::Guest(sentence) | Refusal::Host(sentence)))
                if error.kind() == io::ErrorKind::BrokenPipe =>
            {
                report::line(&sentence);
                Ok(())
            }
            (written, _) => written,
        }
    }
}

/// Names the process, as `ps` and the kernel's messages show it; the kernel keeps 15 bytes.
pub(crate) fn name_process(name: &str) {
    if let Ok(name) = CString::new(name) {
        // A name is a convenience: a kernel that refuses it changes nothing.
        let _named = nix::sys::prctl::set_name(&name);
    }
}
