//! The bodies of requests and responses, with what is noticed of them on their way.

use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use http_body_util::{BodyExt, Empty};
use hyper::body::{Body, Bytes, Frame, Incoming, SizeHint};
use tokio::sync::oneshot;
use tokio::time::{Interval, interval};
use wasmtime_wasi_http::{Error, WasiBody};

use super::failure::explain_response;
use super::room::Reserved;
use super::seats::InUse;

/// A request's body, whose end is reported.
pub(super) struct RequestBody {
    body: WasiBody,
    ended: Option<oneshot::Sender<Result<(), Error>>>,
}

impl RequestBody {
    /// The body, and what receives its end. Nothing is received of a body that is dropped before its end.
    pub(super) fn new(body: WasiBody) -> (Self, oneshot::Receiver<Result<(), Error>>) {
        let (ended, end) = oneshot::channel();
        (Self { body, ended: Some(ended) }, end)
    }

    /// The body of a request that has none.
    pub(super) fn empty() -> Self {
        Self { body: Empty::new().map_err(Error::from).boxed_unsync(), ended: None }
    }

    fn end(&mut self, result: Result<(), Error>) {
        if let Some(ended) = self.ended.take() {
            // A guest that does not ask is not told.
            drop(ended.send(result));
        }
    }
}

impl Body for RequestBody {
    type Data = Bytes;
    type Error = Error;

    fn poll_frame(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Error>>> {
        let polled = ready!(Pin::new(&mut self.body).poll_frame(context));
        Poll::Ready(match polled {
            Some(Ok(frame)) => Some(Ok(frame)),
            Some(Err(error)) => {
                self.end(Err(error));
                // hyper only passes it on as the cause of its own error.
                Some(Err(Error::HttpProtocolError))
            }
            None => {
                self.end(Ok(()));
                None
            }
        })
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

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
}

impl Body for ResponseBody {
    type Data = Bytes;
    type Error = Error;

    fn poll_frame(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Error>>> {
        match Pin::new(&mut self.incoming).poll_frame(context) {
            Poll::Ready(None) => {
                self.held = None;
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
