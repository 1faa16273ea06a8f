//! What a command writes to stdout and stderr: without a buffer in between. A write blocks while the reader is slow, and
//! loses nothing.

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use hyper::body::Bytes;
use tokio::io::AsyncWrite;
use wasmtime_wasi::cli::{IsTerminal, StdoutStream};
use wasmtime_wasi::p2::{OutputStream, Pollable, StreamError, StreamResult};

use super::streams::{PERMIT_BYTES, Streams};
use super::tail::Tail;
use super::target::Target;
use crate::role::Role;

/// An output stream of a command: its only thread waits for a slow reader.
#[derive(Clone)]
pub(crate) struct Output {
    target: Target,
    role: Role,
    streams: Arc<Streams>,
    tail: Arc<Tail>,
}

impl Output {
    /// A stream of `streams` for a command of this role. What goes to stderr ends in `tail`.
    pub(crate) fn new(target: Target, role: Role, streams: &Arc<Streams>, tail: &Arc<Tail>) -> Self {
        Self { target, role, streams: Arc::clone(streams), tail: Arc::clone(tail) }
    }

    fn write_all(&self, mut bytes: &[u8]) -> io::Result<()> {
        while !bytes.is_empty() {
            let written = self.write_some(bytes)?;
            bytes = bytes.get(written..).unwrap_or_default();
        }
        Ok(())
    }

    fn write_some(&self, bytes: &[u8]) -> io::Result<usize> {
        let written = self.streams.write_some(self.target, bytes)?;
        if matches!(self.target, Target::Stderr) {
            self.tail.hear(bytes.get(..written).unwrap_or(bytes));
        }
        Ok(written)
    }
}

impl IsTerminal for Output {
    fn is_terminal(&self) -> bool {
        self.target.is_terminal()
    }
}

impl StdoutStream for Output {
    fn p2_stream(&self) -> Box<dyn OutputStream> {
        Box::new(self.clone())
    }

    fn async_stream(&self) -> Box<dyn AsyncWrite + Send + Sync> {
        Box::new(self.clone())
    }
}

#[wasmtime_wasi::async_trait]
impl Pollable for Output {
    async fn ready(&mut self) {}
}

impl OutputStream for Output {
    fn write(&mut self, bytes: Bytes) -> StreamResult<()> {
        self.write_all(&bytes).map_err(|error| {
            if error.kind() == io::ErrorKind::BrokenPipe && self.role != Role::Module {
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
