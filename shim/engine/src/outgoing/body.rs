//! The bodies of requests and responses, with what is noticed of them on their way.

use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, Waker, ready};
use std::time::Duration;

use hyper::body::{Body, Bytes, Frame, Incoming, SizeHint};
use tokio::sync::oneshot;
use tokio::time::{Interval, interval};
use wasmtime_wasi_http::{Error, WasiBody};

use super::failure::explain_response;
use super::room::Reserved;
use super::seats::InUse;

/// A request's body, whose end is reported. As long as nothing of it was sent, it can be sent with another request.
pub(super) struct RequestBody(Arc<Mutex<Sending>>);

struct Sending {
    /// `None` after its end.
    body: Option<WasiBody>,
    has_begun: bool,
    ended: Option<oneshot::Sender<Result<(), Error>>>,
}

impl RequestBody {
    /// The body, and what receives its end. Nothing is received of a body that is dropped before its end.
    pub(super) fn new(body: WasiBody) -> (Self, oneshot::Receiver<Result<(), Error>>) {
        let (ended, end) = oneshot::channel();
        let sending = Sending { body: Some(body), has_begun: false, ended: Some(ended) };
        (Self(Arc::new(Mutex::new(sending))), end)
    }

    /// Another handle of the same body.
    pub(super) fn share(&self) -> Self {
        Self(Arc::clone(&self.0))
    }

    /// The body for another request, if nothing of it was sent; other handles lose it.
    pub(super) fn again(&self) -> Option<Self> {
        let mut sending = self.sending();
        if sending.has_begun {
            return None;
        }
        let lost = Sending { body: None, has_begun: true, ended: None };
        Some(Self(Arc::new(Mutex::new(std::mem::replace(&mut *sending, lost)))))
    }

    fn sending(&self) -> MutexGuard<'_, Sending> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Sending {
    fn end(&mut self, result: Result<(), Error>) {
        self.body = None;
        if let Some(ended) = self.ended.take() {
            // A guest that does not ask is not told.
            drop(ended.send(result));
        }
    }
}

impl Body for RequestBody {
    type Data = Bytes;
    type Error = Error;

    fn poll_frame(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Error>>> {
        let mut sending = self.sending();
        let Some(body) = &mut sending.body else { return Poll::Ready(None) };
        Poll::Ready(match ready!(Pin::new(body).poll_frame(context)) {
            Some(Ok(frame)) => {
                sending.has_begun = true;
                Some(Ok(frame))
            }
            Some(Err(error)) => {
                sending.has_begun = true;
                sending.end(Err(error));
                // hyper only passes it on as the cause of its own error.
                Some(Err(Error::HttpProtocolError))
            }
            None => {
                sending.end(Ok(()));
                None
            }
        })
    }

    fn is_end_stream(&self) -> bool {
        self.sending().body.as_ref().is_none_or(Body::is_end_stream)
    }

    fn size_hint(&self) -> SizeHint {
        self.sending().body.as_ref().map_or_else(|| SizeHint::with_exact(0), Body::size_hint)
    }
}

/// The most frames of a response that hyper has received ahead of its reader: one of data, and trailers. One more tells
/// the end.
const FRAMES_MAX: usize = 3;

/// A response's body that fails if nothing of it arrives for too long. Until its end the connection is in use, and the
/// request's memory is reserved.
pub(super) struct ResponseBody {
    incoming: Incoming,
    silence: Interval,
    held: Option<(Reserved, Option<InUse>)>,
}

impl ResponseBody {
    /// The body of a response that holds `reserved` and `in_use`.
    pub(super) fn new(incoming: Incoming, between_bytes: Duration, reserved: Reserved, in_use: Option<InUse>) -> Self {
        // An interval must not be zero.
        let mut silence = interval(between_bytes.max(Duration::from_nanos(1)));
        silence.reset();
        Self { incoming, silence, held: Some((reserved, in_use)) }
    }

    fn end(&mut self) {
        if let Some((_, Some(in_use))) = self.held.take() {
            in_use.finish();
        }
    }
}

impl Drop for ResponseBody {
    /// A response that is dropped unread may have arrived whole, and its connection may serve another request by now.
    fn drop(&mut self) {
        let mut context = Context::from_waker(Waker::noop());
        for _ in 0..FRAMES_MAX {
            if self.held.is_none() {
                return;
            }
            match Pin::new(&mut self.incoming).poll_frame(&mut context) {
                Poll::Ready(Some(Ok(_))) => {}
                Poll::Ready(None) => self.end(),
                Poll::Ready(Some(Err(_))) | Poll::Pending => return,
            }
        }
    }
}

impl Body for ResponseBody {
    type Data = Bytes;
    type Error = Error;

    fn poll_frame(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Error>>> {
        match Pin::new(&mut self.incoming).poll_frame(context) {
            Poll::Ready(None) => {
                self.end();
                Poll::Ready(None)
            }
            Poll::Ready(Some(Ok(frame))) => {
                self.silence.reset();
                Poll::Ready(Some(Ok(frame)))
            }
            Poll::Ready(Some(Err(error))) => Poll::Ready(Some(Err(explain_response(&error)))),
            Poll::Pending => {
                ready!(self.silence.poll_tick(context));
                Poll::Ready(Some(Err(Error::ConnectionReadTimeout)))
            }
        }
    }

    fn is_end_stream(&self) -> bool {
        self.incoming.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.incoming.size_hint()
    }
}
