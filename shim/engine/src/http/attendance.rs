//! Who still waits for the requests of an instance that serves several.
//!
//! A single request of such an instance cannot be ended: wasmtime does not offer that. So an instance with a request
//! that nobody waits for any more takes no further ones, and ends as soon as nobody waits for any of its requests.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Waker};

use tokio::time::Instant;

/// The requests of one instance.
#[derive(Default)]
pub(super) struct Attendance(Mutex<Attending>);

#[derive(Default)]
struct Attending {
    waited_for: usize,
    has_abandoned: bool,
    /// Whether the instance ended before its time.
    has_failed: bool,
    /// When somebody last stopped waiting.
    since: Option<Instant>,
    /// Wakes the instance when nobody waits any more.
    waker: Option<Waker>,
}

/// How an instance is attended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Attended {
    /// Somebody waits for one of its requests.
    Yes,
    /// All its requests have their responses, the last one since then.
    Complete(Option<Instant>),
    /// Nobody waits, and some of its requests are not complete.
    Abandoned,
}

impl Attendance {
    /// Whether an instance should take further requests.
    pub(super) fn has_abandoned(&self) -> bool {
        self.lock().has_abandoned
    }

    /// How it is attended now. The task of `context` is woken when nobody waits any more.
    pub(super) fn poll(&self, context: &Context<'_>) -> Attended {
        let mut attending = self.lock();
        if attending.waited_for > 0 {
            match &mut attending.waker {
                Some(waker) => waker.clone_from(context.waker()),
                none => *none = Some(context.waker().clone()),
            }
            Attended::Yes
        } else if attending.has_abandoned {
            Attended::Abandoned
        } else {
            Attended::Complete(attending.since)
        }
    }

    /// Notes that the instance ended before its time.
    pub(super) fn fail(&self) {
        self.lock().has_failed = true;
    }

    fn leave(&self, is_complete: bool) {
        let mut attending = self.lock();
        attending.waited_for -= 1;
        attending.has_abandoned |= !is_complete;
        attending.since = Some(Instant::now());
        let waker = if attending.waited_for == 0 { attending.waker.take() } else { None };
        drop(attending);
        if let Some(waker) = waker {
            waker.wake();
        }
    }

    fn lock(&self) -> MutexGuard<'_, Attending> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A request, for the instance that will serve it.
#[derive(Default)]
pub(super) struct Ticket(Mutex<Stage>);

#[derive(Default)]
enum Stage {
    #[default]
    Queued,
    Served(Arc<Attendance>, Instant),
    /// Nobody waits for it any more.
    Over,
}

/// Whoever waits for a request. Unless it was complete, the request is abandoned with this.
pub(super) struct Waiting {
    ticket: Arc<Ticket>,
    is_complete: bool,
}

impl Ticket {
    /// Notes that an instance serves the request now.
    pub(super) fn serve(&self, attendance: &Arc<Attendance>) {
        let mut stage = self.lock();
        let mut attending = attendance.lock();
        if matches!(*stage, Stage::Over) {
            attending.has_abandoned = true;
        } else {
            attending.waited_for += 1;
            *stage = Stage::Served(Arc::clone(attendance), Instant::now());
        }
    }

    /// When an instance began to serve the request.
    pub(super) fn begun(&self) -> Option<Instant> {
        match *self.lock() {
            Stage::Served(_, begun) => Some(begun),
            Stage::Queued | Stage::Over => None,
        }
    }

    fn lock(&self) -> MutexGuard<'_, Stage> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Waiting {
    /// Waits for the request of `ticket`.
    pub(super) fn new(ticket: &Arc<Ticket>) -> Self {
        Self { ticket: Arc::clone(ticket), is_complete: false }
    }

    /// Whether the instance ended before it had finished the response.
    pub(super) fn has_failed(&self) -> bool {
        matches!(&*self.ticket.lock(), Stage::Served(attendance, _) if attendance.lock().has_failed)
    }

    /// Notes that the response is complete.
    pub(super) fn complete(&mut self) {
        self.is_complete = true;
    }
}

impl Drop for Waiting {
    fn drop(&mut self) {
        let stage = std::mem::replace(&mut *self.ticket.lock(), Stage::Over);
        if let Stage::Served(attendance, _) = stage {
            attendance.leave(self.is_complete);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_instance_is_abandoned_with_its_last_request() {
        let attendance = Arc::new(Attendance::default());
        let attended = || attendance.poll(&Context::from_waker(Waker::noop()));
        let begin = || {
            let ticket = Arc::new(Ticket::default());
            let waiting = Waiting::new(&ticket);
            ticket.serve(&attendance);
            waiting
        };
        let (mut first, second, mut third) = (begin(), begin(), begin());
        first.complete();
        drop(first);
        assert!(attended() == Attended::Yes && !attendance.has_abandoned());
        drop(second);
        assert!(attended() == Attended::Yes && attendance.has_abandoned());
        third.complete();
        drop(third);
        assert_eq!(attended(), Attended::Abandoned);
    }

    #[test]
    fn complete_requests_abandon_nothing() {
        let attendance = Arc::new(Attendance::default());
        let ticket = Arc::new(Ticket::default());
        let mut waiting = Waiting::new(&ticket);
        assert_eq!(ticket.begun(), None);
        ticket.serve(&attendance);
        assert!(ticket.begun().is_some());
        waiting.complete();
        drop(waiting);
        assert!(matches!(attendance.poll(&Context::from_waker(Waker::noop())), Attended::Complete(Some(_))));
        assert!(!attendance.has_abandoned());
    }

    #[test]
    fn a_request_that_was_given_up_in_the_queue_is_abandoned() {
        let attendance = Arc::new(Attendance::default());
        let ticket = Arc::new(Ticket::default());
        drop(Waiting::new(&ticket));
        ticket.serve(&attendance);
        assert_eq!(attendance.poll(&Context::from_waker(Waker::noop())), Attended::Abandoned);
    }
}
