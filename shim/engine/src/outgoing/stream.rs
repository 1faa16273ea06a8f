//! The transport of one connection: TCP or TLS, on its seat. When it must give way, its end seems to have come, as if the
//! server had closed it; nothing more is written then, so that a server that does not read keeps nothing open.

use std::io::{self, ErrorKind};
use std::pin::Pin;
use std::task::{Context, Poll};

use hyper::rt::{Read, ReadBufCursor, Write};
use hyper_util::client::legacy::connect::{Connected, Connection};
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::sync::oneshot;

use super::seats::Taken;

/// Bytes in both directions.
pub(super) trait Socket: AsyncRead + AsyncWrite + Send + Unpin {}

impl<T: AsyncRead + AsyncWrite + Send + Unpin> Socket for T {}

/// What was found out about a connection while it was made.
#[derive(Clone, Copy)]
pub(super) struct Facts {
    /// The server has chosen HTTP/2, or is known to speak it.
    pub(super) is_http2: bool,
    /// At the other end is a proxy that is sent whole URIs.
    pub(super) is_proxied: bool,
}

/// The transport of one connection.
pub(super) struct Stream {
    socket: TokioIo<Box<dyn Socket>>,
    facts: Facts,
    seat: Taken,
    close: Option<oneshot::Receiver<()>>,
}

impl Stream {
    /// A stream on `seat`, until it is told to close.
    pub(super) fn new(socket: Box<dyn Socket>, facts: Facts, mut seat: Taken, close: oneshot::Receiver<()>) -> Self {
        seat.connected(facts.is_http2);
        Self { socket: TokioIo::new(socket), facts, seat, close: Some(close) }
    }

    /// Whether it must close.
    fn must_close(&mut self, context: &mut Context<'_>) -> bool {
        if self.close.as_mut().is_some_and(|close| Pin::new(close).poll(context).is_ready()) {
            self.close = None;
        }
        self.close.is_none()
    }

    /// Its socket, to write to it.
    fn writer(&mut self, context: &mut Context<'_>) -> io::Result<Pin<&mut TokioIo<Box<dyn Socket>>>> {
        if self.must_close(context) { Err(ErrorKind::BrokenPipe.into()) } else { Ok(Pin::new(&mut self.socket)) }
    }
}

impl Connection for Stream {
    fn connected(&self) -> Connected {
        let connected = Connected::new().proxy(self.facts.is_proxied).extra(self.seat.pass());
        if !self.seat.may_stay() {
            connected.poison();
        }
        if self.facts.is_http2 { connected.negotiated_h2() } else { connected }
    }
}

impl Read for Stream {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: ReadBufCursor<'_>,
    ) -> Poll<io::Result<()>> {
        if self.must_close(context) {
            return Poll::Ready(Ok(()));
        }
        Pin::new(&mut self.socket).poll_read(context, buffer)
    }
}

impl Write for Stream {
    fn poll_write(mut self: Pin<&mut Self>, context: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        self.writer(context)?.poll_write(context, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.writer(context)?.poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.writer(context)?.poll_shutdown(context)
    }

    fn is_write_vectored(&self) -> bool {
        self.socket.is_write_vectored()
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        slices: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        self.writer(context)?.poll_write_vectored(context, slices)
    }
}
