//! When an instance goes.

use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use tokio::sync::watch;
use tokio::time::{Sleep, sleep};
use wasmtime_wasi_http::handler::{WorkerExpiration, WorkerStatus};

/// How long an instance without a request is kept.
const IDLE: Duration = Duration::from_secs(1);
/// Longer than any process lives.
const NEVER: Duration = Duration::from_secs(30 * 365 * 86_400);
/// How long an instance over the time of a request may take to yield.
const YIELD_GRACE: Duration = Duration::from_millis(50);

/// Ends an instance that has been idle for a while, is idle while the server ends, or is over the time of a request and
/// does not yield: the handler ends only requests whose instance yields to it.
pub(super) struct Expiration {
    timer: Pin<Box<Sleep>>,
    ending: Pin<Box<dyn Future<Output = ()> + Send + Sync>>,
    request_time: Option<Duration>,
    timed_out: Arc<AtomicBool>,
}

impl Expiration {
    /// The end of one instance. `timed_out` is set if a request took too long.
    pub(super) fn new(
        request_time: Option<Duration>,
        timed_out: &Arc<AtomicBool>,
        mut ending: watch::Receiver<bool>,
    ) -> Self {
        Self {
            timer: Box::pin(sleep(IDLE)),
            ending: Box::pin(async move {
                // Without a sender the server has ended.
                drop(ending.wait_for(|ending| *ending).await);
            }),
            request_time,
            timed_out: Arc::clone(timed_out),
        }
    }

    /// Waits until `deadline`. Deadlines usually move before they are reached, so the timer is reset only when it has fired
    /// or would fire too late.
    fn poll_until(&mut self, context: &mut Context<'_>, deadline: tokio::time::Instant) -> Poll<()> {
        if self.timer.deadline() > deadline {
            self.timer.as_mut().reset(deadline);
        }
        while self.timer.as_mut().poll(context).is_ready() {
            if self.timer.deadline() >= deadline {
                return Poll::Ready(());
            }
            self.timer.as_mut().reset(deadline);
        }
        Poll::Pending
    }
}

/// When an instance has gone on for too long after `start`. A time beyond all clocks is never reached.
fn deadline(start: Instant, limit: Duration) -> tokio::time::Instant {
    start.checked_add(limit.saturating_add(YIELD_GRACE)).unwrap_or(start + NEVER).into()
}

impl WorkerExpiration for Expiration {
    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>, status: WorkerStatus, start: Instant) -> Poll<()> {
        match (status, self.request_time) {
            (WorkerStatus::Idle, _) => {
                if self.ending.as_mut().poll(context).is_ready() {
                    return Poll::Ready(());
                }
                self.poll_until(context, (start + IDLE).into())
            }
            (WorkerStatus::Requests | WorkerStatus::PostReturn, Some(limit)) => {
                let expired = self.poll_until(context, deadline(start, limit));
                self.timed_out.store(expired.is_ready(), Ordering::Relaxed);
                expired
            }
            (WorkerStatus::Requests | WorkerStatus::PostReturn, None) => Poll::Pending,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_limit_is_too_long_for_a_deadline() {
        let start = Instant::now();
        for (limit, expected) in
            [(Duration::ZERO, YIELD_GRACE), (Duration::from_secs(u64::MAX), NEVER), (Duration::MAX, NEVER)]
        {
            assert_eq!(deadline(start, limit).into_std() - start, expected, "{limit:?}");
        }
    }
}
