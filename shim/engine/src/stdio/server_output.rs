//! What the instances of a server write to stdout and stderr. A slow reader makes the guest wait and nothing is lost, but
//! no thread waits: however many guests write to a log that nobody reads, the others are served.

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use hyper::body::Bytes;
use tokio::io::AsyncWrite;
use wasmtime_wasi::cli::{IsTerminal, StdoutStream};
use wasmtime_wasi::p2::{OutputStream, Pollable, StreamError, StreamResult};

use super::streams::Streams;
use super::tail::Tail;
use super::target::Target;
use super::write::PIPE_BYTES;

/// An output stream of a server's instances.
pub(crate) struct ServerOutput {
    target: Target,
    streams: Arc<Streams>,
    tail: Arc<Tail>,
}

impl ServerOutput {
    /// A stream of `streams`. What goes to stderr ends in `tail`.
    pub(crate) fn new(target: Target, streams: &Arc<Streams>, tail: &Arc<Tail>) -> Self {
        streams.never_wait();
        Self { target, streams: Arc::clone(streams), tail: Arc::clone(tail) }
    }
}

impl IsTerminal for ServerOutput {
    fn is_terminal(&self) -> bool {
        self.target.is_terminal()
    }
}

impl StdoutStream for ServerOutput {
    fn p2_stream(&self) -> Box<dyn OutputStream> {
        Box::new(Stream::new(self))
    }

    fn async_stream(&self) -> Box<dyn AsyncWrite + Send + Sync> {
        Box::new(Stream::new(self))
    }
}

/// One instance's end of it.
struct Stream {
    target: Target,
    streams: Arc<Streams>,
    tail: Arc<Tail>,
    /// What was taken from the guest while others filled the room that there was for it.
    rest: Bytes,
    /// Whether the guest's last write is done, so that it need not wait for the room of its next one.
    is_done: bool,
    room: Option<Pin<Box<dyn Future<Output = ()> + Send + Sync>>>,
}

impl Stream {
    fn new(output: &ServerOutput) -> Self {
        let (streams, tail) = (Arc::clone(&output.streams), Arc::clone(&output.tail));
        Self { target: output.target, streams, tail, rest: Bytes::new(), is_done: false, room: None }
    }

    fn has_room(&self) -> bool {
        self.streams.has_room(self.target)
    }

    /// Writes some; `None` if it would have to wait.
    fn try_write(&self, bytes: &[u8]) -> io::Result<Option<usize>> {
        let written = self.streams.try_write(self.target, bytes)?;
        if let (Target::Stderr, Some(written)) = (self.target, written) {
            self.tail.hear(bytes.get(..written).unwrap_or(bytes));
        }
        Ok(written)
    }

    /// Writes what is left, as far as there is room.
    fn push(&mut self) -> StreamResult<()> {
        while !self.rest.is_empty() {
            match self.try_write(&self.rest) {
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
        // The next call reports an error.
        while self.push().is_ok() && (!self.rest.is_empty() || !self.has_room()) {
            self.streams.room(self.target).await;
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
        Ok(if self.rest.is_empty() && self.has_room() { PIPE_BYTES } else { 0 })
    }
}

impl AsyncWrite for Stream {
    fn poll_write(mut self: Pin<&mut Self>, context: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        loop {
            if let Some(written) = self.try_write(bytes)? {
                return Poll::Ready(Ok(written));
            }
            if self.room.is_none() {
                let (streams, target) = (Arc::clone(&self.streams), self.target);
                self.room = Some(Box::pin(async move { streams.room(target).await }));
            }
            if let Some(room) = &mut self.room {
                ready!(room.as_mut().poll(context));
            }
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
