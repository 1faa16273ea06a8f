//! The time that a request may take until its response begins.

use std::future::poll_fn;
use std::pin::{Pin, pin};
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use tokio::time::{Instant, Sleep, sleep_until};

/// How often it is looked whether work has begun, at most.
const LOOK_MIN: Duration = Duration::from_millis(1);
/// Longer than any process lives.
pub(super) const NEVER: Duration = Duration::from_secs(30 * 365 * 86_400);

/// The timer of a connection. Its requests use it one after the other, and it is set again only once it has fired: setting
/// a timer for each request costs a noticeable part of a short one.
#[derive(Clone, Default)]
pub(super) struct Timer(Arc<Mutex<Option<Pin<Box<Sleep>>>>>);

/// The timer while a request has it.
struct Taken<'a> {
    timer: &'a Timer,
    sleep: Option<Pin<Box<Sleep>>>,
}

impl Timer {
    /// Does `work` for no longer than `limit` after it has begun, which is not after `latest`; `None` if that is over. Nobody need
    /// be woken when it begins.
    pub(super) async fn within<T>(
        &self,
        limit: Option<Duration>,
        begun: impl Fn() -> Option<Instant>,
        latest: Instant,
        work: impl Future<Output = T>,
    ) -> Option<T> {
        let Some(limit) = limit else { return Some(work.await) };
        let mut work = pin!(work);
        let mut taken = Taken { timer: self, sleep: None };
        poll_fn(|context| {
            if let Poll::Ready(done) = work.as_mut().poll(context) {
                return Poll::Ready(Some(done));
            }
            loop {
                let now = Instant::now();
                let begun = begun();
                let over = after(begun.unwrap_or(latest), limit);
                if now >= over {
                    return Poll::Ready(None);
                }
                // What has not begun yet has all of its time left.
                let look = if begun.is_some() { over } else { over.min(after(now, limit.max(LOOK_MIN))) };
                ready!(poll_until(taken.until(look), context, look));
            }
        })
        .await
    }

    fn slot(&self) -> std::sync::MutexGuard<'_, Option<Pin<Box<Sleep>>>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Taken<'_> {
    fn until(&mut self, deadline: Instant) -> &mut Pin<Box<Sleep>> {
        let timer = self.timer;
        self.sleep.get_or_insert_with(|| timer.slot().take().unwrap_or_else(|| Box::pin(sleep_until(deadline))))
    }
}

impl Drop for Taken<'_> {
    fn drop(&mut self) {
        if let Some(sleep) = self.sleep.take() {
            *self.timer.slot() = Some(sleep);
        }
    }
}

/// Waits until `deadline`. Deadlines usually move before they are reached, so the timer is reset only when it has fired or
/// would fire too late.
pub(super) fn poll_until(timer: &mut Pin<Box<Sleep>>, context: &mut Context<'_>, deadline: Instant) -> Poll<()> {
    if timer.deadline() > deadline {
        timer.as_mut().reset(deadline);
    }
    while timer.as_mut().poll(context).is_ready() {
        if timer.deadline() >= deadline {
            return Poll::Ready(());
        }
        timer.as_mut().reset(deadline);
    }
    Poll::Pending
}

/// The end of `limit` after `start`. A time beyond all clocks is never reached.
pub(super) fn after(start: Instant, limit: Duration) -> Instant {
    start.checked_add(limit).unwrap_or(start + NEVER)
}

#[cfg(test)]
mod tests {
    use std::future::pending;

    use super::*;

    #[test]
    fn no_limit_is_too_long_for_a_deadline() {
        let start = Instant::now();
        for (limit, expected) in
            [(Duration::ZERO, Duration::ZERO), (Duration::from_secs(u64::MAX), NEVER), (Duration::MAX, NEVER)]
        {
            assert_eq!(after(start, limit) - start, expected, "{limit:?}");
        }
    }

    #[tokio::test]
    async fn a_timer_serves_one_request_after_the_other() {
        let timer = Timer::default();
        let (short, long) = (Duration::from_millis(20), Duration::from_secs(3600));
        let begun = Instant::now();
        let now = || Some(begun);
        assert_eq!(timer.within(Some(long), now, begun, tokio::time::sleep(short)).await, Some(()));
        let begun = Instant::now();
        assert_eq!(timer.within(Some(short), || Some(begun), begun, pending::<()>()).await, None, "an earlier end");
        let begun = Instant::now();
        let later = tokio::time::sleep(2 * short);
        assert_eq!(timer.within(Some(long), || Some(begun), begun, later).await, Some(()), "a later end");
        assert_eq!(timer.within(None, || Some(begun), begun, tokio::time::sleep(short)).await, Some(()));
    }

    #[tokio::test]
    async fn what_has_not_begun_is_late_only_when_it_should_have() {
        let short = Duration::from_millis(20);
        for limit in [short, Duration::ZERO] {
            let latest = Instant::now() + 5 * short;
            assert_eq!(Timer::default().within(Some(limit), || None, latest, pending::<()>()).await, None);
            assert!(Instant::now() >= latest + limit);
        }
    }

    #[tokio::test]
    async fn work_that_begins_in_silence_is_over_in_time() {
        let (asked, short) = (Instant::now(), Duration::from_millis(20));
        let latest = asked + Duration::from_secs(3600);
        let begun = || Some(asked + short).filter(|begun| Instant::now() >= *begun);
        assert_eq!(Timer::default().within(Some(5 * short), begun, latest, pending::<()>()).await, None);
        assert!(Instant::now() >= asked + 6 * short);
    }
}
