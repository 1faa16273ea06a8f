//! What the instances of a server write to stdout and stderr. A slow reader makes the guest wait and loses nothing, but no
//! thread waits with it: however many guests write to a log that nobody reads, the others are served.

use std::io;
use std::os::fd::BorrowedFd;
use std::pin::Pin;
use std::sync::OnceLock;
use std::task::{Context, Poll, ready};

use hyper::body::Bytes;
use tokio::io::unix::AsyncFd;
use tokio::io::{AsyncWrite, Interest};
use wasmtime_wasi::cli::{IsTerminal, StdoutStream};
use wasmtime_wasi::p2::{OutputStream, Pollable, StreamError, StreamResult};

use crate::stdio::{PIPE_BYTES, Target, has_room, is_writable, pace_delay, try_write};

/// An output stream of a server's instances.
#[derive(Clone, Copy)]
pub(crate) struct ServerOutput(pub(crate) Target);

impl IsTerminal for ServerOutput {
    fn is_terminal(&self) -> bool {
        nix::unistd::isatty(self.0).unwrap_or(false)
    }
}

impl StdoutStream for ServerOutput {
    fn p2_stream(&self) -> Box<dyn OutputStream> {
        Box::new(Stream::new(self.0))
    }

    fn async_stream(&self) -> Box<dyn AsyncWrite + Send + Sync> {
        Box::new(Stream::new(self.0))
    }
}

/// One instance's end of it.
struct Stream {
    target: Target,
    /// What was taken from the guest while others wrote what there was room for.
    rest: Bytes,
    /// Whether the guest's last write is done, so that it need not wait for the room of its next one.
    is_done: bool,
    room: Option<Pin<Box<dyn Future<Output = ()> + Send + Sync>>>,
}

impl Stream {
    fn new(target: Target) -> Self {
        Self { target, rest: Bytes::new(), is_done: false, room: None }
    }

    /// Writes what is left, as far as there is room.
    fn push(&mut self) -> StreamResult<()> {
        while !self.rest.is_empty() {
            match try_write(self.target, &self.rest) {
                Ok(Some(written)) => drop(self.rest.split_to(written)),
                Ok(None) => return Ok(()),
                Err(error) => {
                    self.rest.clear();
                    return Err(stream_error(error));
                }
            }
        }
        Ok(())
    }
}

fn stream_error(error: io::Error) -> StreamError {
    match error.kind() {
        io::ErrorKind::BrokenPipe => StreamError::Closed,
        _ => StreamError::LastOperationFailed(error.into()),
    }
}

#[wasmtime_wasi::async_trait]
impl Pollable for Stream {
    async fn ready(&mut self) {
        if std::mem::take(&mut self.is_done) {
            return;
        }
        // An error is what the next call tells.
        while self.push().is_ok() && (!self.rest.is_empty() || !has_room(self.target)) {
            room(self.target).await;
        }
    }
}

impl OutputStream for Stream {
    fn write(&mut self, bytes: Bytes) -> StreamResult<()> {
        if !self.rest.is_empty() {
            return Err(StreamError::trap("write without a permit"));
        }
        self.rest = bytes;
        self.push()?;
        self.is_done = self.rest.is_empty();
        Ok(())
    }

    fn flush(&mut self) -> StreamResult<()> {
        Ok(())
    }

    fn check_write(&mut self) -> StreamResult<usize> {
        self.push()?;
        Ok(if self.rest.is_empty() && has_room(self.target) { PIPE_BYTES } else { 0 })
    }
}

impl AsyncWrite for Stream {
    fn poll_write(mut self: Pin<&mut Self>, context: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        loop {
            if let Some(written) = try_write(self.target, bytes)? {
                return Poll::Ready(Ok(written));
            }
            let target = self.target;
            let room = self.room.get_or_insert_with(|| Box::pin(room(target)));
            ready!(room.as_mut().poll(context));
            self.room = None;
        }
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }
}

impl Drop for Stream {
    fn drop(&mut self) {
        // An instance that is ended does not wait for its output.
        let _pushed = self.push();
    }
}

/// Waits until a write may find room.
async fn room(target: Target) {
    static STDOUT: OnceLock<Option<AsyncFd<BorrowedFd<'static>>>> = OnceLock::new();
    static STDERR: OnceLock<Option<AsyncFd<BorrowedFd<'static>>>> = OnceLock::new();
    tokio::time::sleep(pace_delay()).await;
    let watched = match target {
        Target::Stdout => &STDOUT,
        Target::Stderr => &STDERR,
    };
    let watch = || {
        // SAFETY: the descriptor is open, and the same, for as long as the process lives.
        unsafe { AsyncFd::register_with_interest(target.as_static_fd(), Interest::WRITABLE) }.ok()
    };
    // What cannot be watched is a file, which always has room.
    let Some(watched) = watched.get_or_init(watch) else { return };
    if let Ok(mut guard) = watched.writable().await
        && !is_writable(&target, 0)
    {
        guard.clear_ready();
    }
}
