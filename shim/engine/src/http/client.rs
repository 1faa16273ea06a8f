//! The client's end of a connection: bytes, and whether the client has left.
//!
//! hyper notices that a client left only while it wants to read. It does not want to while a request is served after which
//! another one has already arrived, or whose body the guest does not read.

use std::io;
use std::net::Shutdown;
use std::os::fd::AsFd;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use skiff_linux::network::unsent_bytes;
use socket2::SockRef;
use tokio::io::{AsyncRead, AsyncWrite, Interest, ReadBuf};
use tokio::net::TcpStream;
use tokio::sync::Notify;
use tokio::time::Instant;

/// How long a client that sends no more is waited for while nothing is sent to it: it may have closed only its own
/// direction, as `nc -N` does.
const HALF_CLOSED_GRACE: Duration = Duration::from_secs(1);

/// How soon to look whether it has taken the rest, at first and later.
const PART_PAUSE: Duration = Duration::from_millis(2);
const PART_PAUSE_MAX: Duration = Duration::from_millis(100);

/// A connection's client. Clones are the same client.
#[derive(Clone)]
pub(super) struct Client(Arc<Inner>);

struct Inner {
    stream: TcpStream,
    written_bytes: AtomicU64,
    /// Whether bytes wait for the client to read.
    is_full: AtomicBool,
}

impl Client {
    /// The client at the other end of `stream`.
    pub(super) fn new(stream: TcpStream) -> Self {
        Self(Arc::new(Inner { stream, written_bytes: AtomicU64::new(0), is_full: AtomicBool::new(false) }))
    }

    /// Its bytes, for whoever only looks at them.
    pub(super) fn stream(&self) -> &TcpStream {
        &self.0.stream
    }

    /// Waits until the client has left: its connection is reset, or it closed its direction and nothing could be sent to it
    /// for a while. It is not waited for while others wait for an instance (`crowded`).
    pub(super) async fn left(&self, crowded: &Notify) {
        let stream = &self.0.stream;
        // The kernel reports the end of the client's direction with every interest; this one has no bytes that could be
        // there already.
        let _closed = stream.ready(Interest::PRIORITY | Interest::ERROR).await;
        let half_closed = async {
            loop {
                let before = self.0.written_bytes.load(Ordering::Relaxed);
                tokio::select! {
                    () = tokio::time::sleep(HALF_CLOSED_GRACE) => {}
                    () = crowded.notified() => {}
                }
                let is_full = self.0.is_full.load(Ordering::Relaxed);
                if !is_full && self.0.written_bytes.load(Ordering::Relaxed) == before {
                    return;
                }
            }
        };
        tokio::select! {
            _reset = stream.ready(Interest::ERROR) => {}
            () = half_closed => {}
        }
    }

    /// Waits until the client has everything that the kernel keeps for it, and cuts it off if it takes nothing for as long as
    /// `patience`. Otherwise a closed connection would go on to take memory, as many of them as clients please.
    pub(super) async fn part(self, patience: Duration) {
        let stream = &self.0.stream;
        let mut unsent = (usize::MAX, Instant::now());
        let mut pause = PART_PAUSE;
        while let Ok(bytes @ 1..) = unsent_bytes(stream.as_fd()) {
            if bytes != unsent.0 {
                unsent = (bytes, Instant::now());
            } else if unsent.1.elapsed() >= patience {
                let _ends_at_once = SockRef::from(stream).set_linger(Some(Duration::ZERO));
                return;
            }
            // A connection that is reset keeps what it had to send, and cannot be shut down.
            if SockRef::from(stream).shutdown(Shutdown::Write).is_err() {
                return;
            }
            tokio::time::sleep(pause).await;
            pause = (pause * 2).min(PART_PAUSE_MAX);
        }
    }
}

impl AsyncRead for Client {
    fn poll_read(self: Pin<&mut Self>, context: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let stream = &self.0.stream;
        loop {
            ready!(stream.poll_read_ready(context))?;
            let (before, room) = (buffer.filled().len(), buffer.remaining());
            let read = stream.try_io(Interest::READABLE, || match stream.try_read_buf(buffer) {
                // Nothing more is there. Saying so here saves the call that would find it out.
                Ok(length) if length > 0 && length < room => Err(io::ErrorKind::WouldBlock.into()),
                other => other,
            });
            match read {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock && buffer.filled().len() == before => {}
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Poll::Ready(Ok(())),
                other => return Poll::Ready(other.map(drop)),
            }
        }
    }
}

impl AsyncWrite for Client {
    fn poll_write(self: Pin<&mut Self>, context: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        let Inner { stream, written_bytes, is_full } = &*self.0;
        loop {
            if stream.poll_write_ready(context)?.is_pending() {
                is_full.store(true, Ordering::Relaxed);
                return Poll::Pending;
            }
            match stream.try_write(bytes) {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                written => {
                    is_full.store(false, Ordering::Relaxed);
                    written_bytes.fetch_add(*written.as_ref().unwrap_or(&0) as u64, Ordering::Relaxed);
                    return Poll::Ready(written);
                }
            }
        }
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(SockRef::from(&self.0.stream).shutdown(Shutdown::Write))
    }
}
