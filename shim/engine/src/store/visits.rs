//! Visits to stores while their guests run. Whoever looks at a guest leaves a visitor here and advances the epoch; the guest's own
//! thread calls it at the next beginning of a function or of a loop's round. Nothing of this costs a guest anything that nobody looks
//! at: its deadline is one tick away, and the epoch of a command stands still.
//!
//! A guest that waits in a call of the host is visited there if that call knows of it ([`Waiting`]), and otherwise when it goes on.

use std::pin::pin;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::Duration;

use tokio::sync::Notify;
use wasmtime::{AsContextMut as _, Result, StoreContextMut, UpdateDeadline};

use crate::load::Code;

/// What is done at a store, whose guest computes, or waits in the call of the host that is named. It must be short: the guest stands
/// still meanwhile.
pub(crate) type Visitor<T> = dyn Fn(StoreContextMut<'_, T>, Option<&'static str>) + Send + Sync;

/// Who visits the stores of this process.
pub(crate) struct Visits<T: 'static> {
    code: OnceLock<Code>,
    /// Counts the calls of all visitors. Changed under the lock only.
    round: AtomicU64,
    visitors: Mutex<Vec<Called<T>>>,
    /// Wakes who waits in a call that blocks its thread, and who waits in another one.
    blocked: Condvar,
    waiting: Notify,
}

impl<T> Default for Visits<T> {
    fn default() -> Self {
        let (blocked, waiting) = (Condvar::new(), Notify::new());
        Self { code: OnceLock::new(), round: AtomicU64::new(0), visitors: Mutex::new(Vec::new()), blocked, waiting }
    }
}

/// A guest that waits in a call of the host, where it can be visited.
pub(crate) struct Waiting<T: 'static> {
    visits: Arc<Visits<T>>,
    seen: u64,
    call: &'static str,
}

/// A visitor, and the round in which it was called last.
struct Called<T: 'static> {
    visitor: Arc<Visitor<T>>,
    round: u64,
}

/// A visitor that is called, until this is dropped.
pub(crate) struct Visiting<'a, T: 'static> {
    visits: &'a Visits<T>,
    visitor: Arc<Visitor<T>>,
}

impl<T> Visits<T> {
    /// Notes the code that the guests of all stores run.
    pub(crate) fn set_code(&self, code: Code) {
        self.code.get_or_init(|| code);
    }

    /// The code that the guests of all stores run.
    pub(crate) fn code(&self) -> Option<&Code> {
        self.code.get()
    }

    /// Calls `visitor` at each store whenever [`Visiting::call`] says so.
    pub(crate) fn begin(&self, visitor: Arc<Visitor<T>>) -> Visiting<'_, T> {
        self.lock().push(Called { visitor: Arc::clone(&visitor), round: 0 });
        Visiting { visits: self, visitor }
    }

    /// What a store does when the epoch reaches its deadline: it lets itself be visited by whom was called since, and goes on as `then`
    /// says.
    pub(super) fn attend(
        self: Arc<Self>,
        then: fn() -> UpdateDeadline,
    ) -> impl FnMut(StoreContextMut<'_, T>) -> Result<UpdateDeadline> + Send + Sync + 'static {
        let mut seen = self.round.load(Ordering::Acquire);
        move |mut store| {
            if self.round.load(Ordering::Acquire) != seen {
                self.called_since(&mut seen).iter().for_each(|visitor| visitor(store.as_context_mut(), None));
            }
            Ok(then())
        }
    }

    /// The visitors that were called after the round `seen`, which becomes the latest.
    fn called_since(&self, seen: &mut u64) -> Vec<Arc<Visitor<T>>> {
        let visitors = self.lock();
        let since = std::mem::replace(seen, self.round.load(Ordering::Acquire));
        visitors.iter().filter(|called| called.round > since).map(|called| Arc::clone(&called.visitor)).collect()
    }

    /// Has `visitor` called in a new round.
    fn call(&self, visitor: &Arc<Visitor<T>>) {
        let mut visitors = self.lock();
        let round = self.round.fetch_add(1, Ordering::Release) + 1;
        if let Some(called) = visitors.iter_mut().find(|called| Arc::ptr_eq(&called.visitor, visitor)) {
            called.round = round;
        }
    }

    fn lock(&self) -> MutexGuard<'_, Vec<Called<T>>> {
        self.visitors.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl<T> Waiting<T> {
    /// A guest that is about to wait in `call`.
    pub(super) fn begin(visits: &Arc<Visits<T>>, call: &'static str) -> Self {
        Self { visits: Arc::clone(visits), seen: visits.round.load(Ordering::Acquire), call }
    }

    /// Waits until a visitor is called.
    pub(crate) async fn called(&self) {
        let mut woken = pin!(self.visits.waiting.notified());
        woken.as_mut().enable();
        if self.is_seen() {
            woken.await;
        }
    }

    /// Blocks the thread for `time`, or until a visitor is called. Returns whether one is.
    pub(crate) fn sleep(&self, time: Duration) -> bool {
        let slept = self.visits.blocked.wait_timeout_while(self.visits.lock(), time, |_| self.is_seen());
        let (_visitors, slept) = slept.unwrap_or_else(PoisonError::into_inner);
        !slept.timed_out()
    }

    /// Has the guest of `store` visited by whom was called meanwhile.
    pub(crate) fn visit(&mut self, mut store: StoreContextMut<'_, T>) {
        let visitors = self.visits.called_since(&mut self.seen);
        visitors.iter().for_each(|visitor| visitor(store.as_context_mut(), Some(self.call)));
    }

    fn is_seen(&self) -> bool {
        self.visits.round.load(Ordering::Acquire) == self.seen
    }
}

impl<T> Visiting<'_, T> {
    /// Has this visitor called once at each store that there is now, as soon as its guest runs, or at once if it waits where it can be
    /// visited.
    pub(crate) fn call(&self) {
        self.call_running();
        self.visits.blocked.notify_all();
        self.visits.waiting.notify_waiters();
    }

    /// Has this visitor called once at each store that there is now, as soon as its guest runs.
    pub(crate) fn call_running(&self) {
        self.visits.call(&self.visitor);
        if let Some(code) = self.visits.code() {
            code.engine().increment_epoch();
        }
    }
}

impl<T> Drop for Visiting<'_, T> {
    fn drop(&mut self) {
        self.visits.lock().retain(|other| !Arc::ptr_eq(&other.visitor, &self.visitor));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_store_is_visited_by_whom_was_called_since_its_last_visit() {
        let visits = Visits::<()>::default();
        let (first, second) = (visits.begin(Arc::new(|_, _| {})), visits.begin(Arc::new(|_, _| {})));
        let mut seen = 0;
        let mut called = || {
            let called = visits.called_since(&mut seen);
            [&first, &second].map(|one| called.iter().any(|visitor| Arc::ptr_eq(visitor, &one.visitor)))
        };
        assert_eq!(called(), [false, false]);
        second.call();
        assert_eq!((called(), called()), ([false, true], [false, false]));
        first.call();
        first.call();
        second.call();
        assert_eq!((called(), called()), ([true, true], [false, false]));
    }

    #[test]
    fn a_guest_that_sleeps_wakes_for_a_visitor_and_sleeps_on() {
        let visits = Arc::new(Visits::<()>::default());
        let visiting = visits.begin(Arc::new(|_, _| {}));
        let mut waiting = Waiting::begin(&visits, "a call");
        assert!(!waiting.sleep(Duration::from_millis(1)), "nobody is called");
        visiting.call();
        assert!(waiting.sleep(Duration::MAX), "it was called before");
        waiting.visits.called_since(&mut waiting.seen);
        assert!(!waiting.sleep(Duration::from_millis(1)));
        std::thread::scope(|scope| {
            let sleeping = scope.spawn(|| waiting.sleep(Duration::MAX));
            visiting.call();
            assert!(sleeping.join().unwrap());
        });
    }
}
