//! A response's body that knows whether all of it was taken.

use std::pin::Pin;
use std::task::{Context, Poll};

use hyper::body::{Body, Bytes, Frame, SizeHint};
use hyper::header::CONTENT_LENGTH;
use hyper::{Response, StatusCode};
use wasmtime_wasi_http::{Error, WasiBody};

use super::alone;
use super::attendance::Waiting;
use super::turns::Turn;
use crate::metrics::CountedRequest;

/// What is told when a response is complete. Dropped without that, it has no client any more.
pub(super) enum Rest {
    /// Nobody.
    Nothing,
    /// An instance that serves this request alone.
    Alone(alone::Rest),
    /// An instance that serves others as well.
    Shared(Waiting),
}

/// A response's body, with what its request holds.
pub(super) struct Tracked {
    body: WasiBody,
    /// How many bytes are left, if the response's head says so.
    left_bytes: Option<u64>,
    rest: Rest,
    _turn: Turn,
    _counted: CountedRequest,
}

impl Tracked {
    /// Gives a response its body. hyper takes no body for an answer to HEAD (`is_head`).
    pub(super) fn new(
        response: Response<WasiBody>,
        rest: Rest,
        turn: Turn,
        counted: CountedRequest,
        is_head: bool,
    ) -> Response<Self> {
        let length = response.headers().get(CONTENT_LENGTH);
        let length = length.and_then(|length| length.to_str().ok()?.parse().ok());
        let is_bodiless = is_head || matches!(response.status(), StatusCode::NO_CONTENT | StatusCode::NOT_MODIFIED);
        let left_bytes = if is_bodiless { Some(0) } else { length };
        response.map(|body| {
            let mut tracked = Self { body, left_bytes, rest, _turn: turn, _counted: counted };
            if left_bytes == Some(0) || tracked.body.is_end_stream() {
                tracked.complete();
            }
            tracked
        })
    }

    fn complete(&mut self) {
        match &mut self.rest {
            Rest::Nothing => {}
            Rest::Alone(rest) => rest.complete(),
            Rest::Shared(waiting) => waiting.complete(),
        }
    }

    fn taken(&mut self, frame: &Frame<Bytes>) {
        let Some(left_bytes) = &mut self.left_bytes else { return };
        let length = frame.data_ref().map_or(0, Bytes::len);
        *left_bytes = left_bytes.saturating_sub(length as u64);
        if *left_bytes == 0 {
            self.complete();
        }
    }

    fn has_failed(&self) -> bool {
        self.left_bytes != Some(0)
            && match &self.rest {
                Rest::Nothing => false,
                Rest::Alone(rest) => rest.has_failed(),
                Rest::Shared(waiting) => waiting.has_failed(),
            }
    }
}

impl Body for Tracked {
    type Data = Bytes;
    type Error = Error;

    fn poll_frame(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Error>>> {
        let polled = Pin::new(&mut self.body).poll_frame(context);
        match &polled {
            Poll::Ready(Some(Ok(frame))) if frame.is_trailers() => self.complete(),
            Poll::Ready(Some(Ok(frame))) => self.taken(frame),
            // A body that was cut must not look like a whole one.
            Poll::Ready(None) if self.has_failed() => return Poll::Ready(Some(Err(Error::HttpResponseIncomplete))),
            Poll::Ready(None) => self.complete(),
            Poll::Ready(Some(Err(_))) | Poll::Pending => {}
        }
        polled
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream() && !self.has_failed()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}
