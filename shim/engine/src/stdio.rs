//! The guest's stdout and stderr: the container's own descriptors, written without a buffer in between. A write blocks
//! while the reader is slow, and loses nothing.

use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::pin::Pin;
use std::task::{Context, Poll};

use hyper::body::Bytes;
use nix::errno::Errno;
use nix::fcntl::{FcntlArg, OFlag, fcntl};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use tokio::io::AsyncWrite;
use wasmtime_wasi::cli::{IsTerminal, StdoutStream};
use wasmtime_wasi::p2::{OutputStream, Pollable, StreamError, StreamResult};

/// How much a guest may write at once.
const PERMIT_BYTES: usize = 64 << 10;
/// What a pipe that is ready takes without blocking; see pipe(7).
const PIPE_BYTES: usize = 4096;

/// Which descriptor a stream writes to.
#[derive(Clone, Copy)]
pub(crate) enum Target {
    Stdout,
    Stderr,
}

/// Who is writing.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Writer {
    /// A core module of a command: it is told `EPIPE` as an error.
    Module,
    /// A component of a command: for it a broken pipe is a closed stream.
    Component,
    /// An instance of a server: while it waits for a reader, another thread takes over the requests of its own.
    Server,
}

/// An output stream of the guest.
#[derive(Clone, Copy)]
pub(crate) struct Output {
    pub(crate) target: Target,
    pub(crate) writer: Writer,
}

impl Output {
    fn write_all(self, mut bytes: &[u8]) -> io::Result<()> {
        while !bytes.is_empty() {
            let written = self.write_some(bytes)?;
            bytes = bytes.get(written..).unwrap_or_default();
        }
        Ok(())
    }

    fn write_some(self, bytes: &[u8]) -> io::Result<usize> {
        if self.writer != Writer::Server {
            return self.write_blocking(bytes);
        }
        let first = bytes.get(..PIPE_BYTES).unwrap_or(bytes);
        if wait_writable(self.as_fd(), PollTimeout::ZERO)? {
            return self.write_blocking(first);
        }
        tokio::task::block_in_place(|| self.write_blocking(first))
    }

    fn write_blocking(self, bytes: &[u8]) -> io::Result<usize> {
        loop {
            match nix::unistd::write(self, bytes) {
                Ok(written) => return Ok(written),
                Err(Errno::EINTR) => {}
                Err(Errno::EAGAIN) => {
                    wait_writable(self.as_fd(), PollTimeout::NONE)?;
                }
                Err(error) => return Err(error.into()),
            }
        }
    }
}

/// Makes reads of stdin block, whoever opened it: another end of the same descriptor may have asked for the contrary.
pub(crate) fn block_stdin() {
    let stdin = std::io::stdin();
    // A stdin that cannot be asked cannot be read either: the guest gets that error when it tries.
    if let Ok(flags) = fcntl(&stdin, FcntlArg::F_GETFL).map(OFlag::from_bits_retain)
        && flags.contains(OFlag::O_NONBLOCK)
    {
        let _set = fcntl(&stdin, FcntlArg::F_SETFL(flags - OFlag::O_NONBLOCK));
    }
}

/// Whether a write would not block, after waiting for it.
fn wait_writable(fd: BorrowedFd<'_>, timeout: PollTimeout) -> io::Result<bool> {
    match poll(&mut [PollFd::new(fd, PollFlags::POLLOUT)], timeout) {
        Ok(ready) => Ok(ready > 0),
        Err(Errno::EINTR) => Ok(false),
        Err(error) => Err(error.into()),
    }
}

impl AsFd for Output {
    fn as_fd(&self) -> BorrowedFd<'_> {
        let number = match self.target {
            Target::Stdout => libc::STDOUT_FILENO,
            Target::Stderr => libc::STDERR_FILENO,
        };
        // SAFETY: the runtime of Rust has made sure that 0 to 2 are open, and nothing in the engine closes them.
        unsafe { BorrowedFd::borrow_raw(number) }
    }
}

impl IsTerminal for Output {
    fn is_terminal(&self) -> bool {
        nix::unistd::isatty(self).unwrap_or(false)
    }
}

impl StdoutStream for Output {
    fn p2_stream(&self) -> Box<dyn OutputStream> {
        Box::new(*self)
    }

    fn async_stream(&self) -> Box<dyn AsyncWrite + Send + Sync> {
        Box::new(*self)
    }
}

#[wasmtime_wasi::async_trait]
impl Pollable for Output {
    async fn ready(&mut self) {}
}

impl OutputStream for Output {
    fn write(&mut self, bytes: Bytes) -> StreamResult<()> {
        self.write_all(&bytes).map_err(|error| {
            if error.kind() == io::ErrorKind::BrokenPipe && self.writer != Writer::Module {
                StreamError::Closed
            } else {
                StreamError::LastOperationFailed(error.into())
            }
        })
    }

    fn flush(&mut self) -> StreamResult<()> {
        Ok(())
    }

    fn check_write(&mut self) -> StreamResult<usize> {
        Ok(PERMIT_BYTES)
    }
}

impl AsyncWrite for Output {
    fn poll_write(self: Pin<&mut Self>, _: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        Poll::Ready(self.write_some(bytes))
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }
}
