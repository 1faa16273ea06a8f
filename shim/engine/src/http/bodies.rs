//! The bodies of requests and responses: how long they wait for the client, and whom a response waits for.

use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use hyper::body::{Body, Bytes, Frame, Incoming, SizeHint};
use tokio::sync::Notify;
use tokio::sync::futures::OwnedNotified;
use tokio::time::{Instant, Sleep, sleep};
use wasmtime_wasi_http::Error;

use super::activity::{Activity, STALLED_MIN};

/// A request's body that fails if the guest waits for too long for more of it.
pub(super) struct Arriving {
    incoming: Incoming,
    patience: Duration,
    /// Notified while others wait for an instance.
    crowded: Arc<Notify>,
    silence: Option<Silence>,
    is_waiting: bool,
}

struct Silence {
    /// Until when the guest waits if nobody else does.
    end: Pin<Box<Sleep>>,
    /// Until when it waits in any case.
    sure: Instant,
    crowded: Pin<Box<OwnedNotified>>,
}

impl Arriving {
    /// `incoming`, of which something must come within `patience` once the guest waits, and within ten seconds while
    /// others wait for an instance (`crowded`).
    pub(super) fn new(incoming: Incoming, patience: Duration, crowded: Arc<Notify>) -> Self {
        Self { incoming, patience, crowded, silence: None, is_waiting: false }
    }
}

impl Body for Arriving {
    type Data = Bytes;
    type Error = Error;

    fn poll_frame(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Error>>> {
        let this = &mut *self;
        if let Poll::Ready(frame) = Pin::new(&mut this.incoming).poll_frame(context) {
            this.is_waiting = false;
            return Poll::Ready(frame.map(|frame| frame.map_err(Into::into)));
        }
        let patience = this.patience;
        let crowded = || Box::pin(Arc::clone(&this.crowded).notified_owned());
        let now = Instant::now();
        let silence = this.silence.get_or_insert_with(|| Silence {
            end: Box::pin(sleep(patience)),
            sure: now,
            crowded: crowded(),
        });
        if !std::mem::replace(&mut this.is_waiting, true) {
            silence.end.as_mut().reset(now + patience);
            silence.sure = now + STALLED_MIN;
        }
        while silence.crowded.as_mut().poll(context).is_ready() {
            if now >= silence.sure {
                return Poll::Ready(Some(Err(Error::ConnectionReadTimeout)));
            }
            silence.crowded = crowded();
        }
        ready!(silence.end.as_mut().poll(context));
        Poll::Ready(Some(Err(Error::ConnectionReadTimeout)))
    }

    fn is_end_stream(&self) -> bool {
        self.incoming.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.incoming.size_hint()
    }
}

/// A request under way, from its head to the end of its response.
pub(super) struct Exchange {
    activity: Arc<Activity>,
    awaits_guest: bool,
}

impl Exchange {
    /// A request that has come and waits for the guest.
    pub(super) fn begin(activity: &Arc<Activity>) -> Self {
        activity.begin_request();
        activity.await_guest(true);
        Self { activity: Arc::clone(activity), awaits_guest: true }
    }

    fn await_guest(&mut self, awaits: bool) {
        if self.awaits_guest != awaits {
            self.awaits_guest = awaits;
            self.activity.await_guest(awaits);
        }
    }
}

impl Drop for Exchange {
    fn drop(&mut self) {
        self.await_guest(false);
        self.activity.end_request();
    }
}

/// A response's body that knows whether it waits for the guest or for the client.
pub(super) struct Departing<B> {
    body: B,
    exchange: Exchange,
}

impl<B> Departing<B> {
    /// The body of the response of `exchange`.
    pub(super) fn new(body: B, mut exchange: Exchange) -> Self {
        exchange.await_guest(false);
        Self { body, exchange }
    }
}

impl<B: Body + Unpin> Body for Departing<B> {
    type Data = B::Data;
    type Error = B::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<B::Data>, B::Error>>> {
        let frame = Pin::new(&mut self.body).poll_frame(context);
        // A frame that is taken is progress, even if one was waited for neither before nor after.
        self.exchange.await_guest(true);
        self.exchange.await_guest(frame.is_pending());
        frame
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}
