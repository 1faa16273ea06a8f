//! Something that is done by one at a time, for which the others wait as long as they may.

use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

/// Whose turn it is.
#[derive(Default)]
pub(crate) struct Turn {
    is_taken: Mutex<bool>,
    freed: Condvar,
}

/// A turn. The next one has it when this is dropped.
pub(crate) struct Held<'a>(&'a Turn);

impl Turn {
    /// Takes it, if nobody has it within `limit`.
    pub(crate) fn take(&self, limit: Duration) -> Option<Held<'_>> {
        *self.wait(limit)? = true;
        Some(Held(self))
    }

    /// Waits until nobody has it, at most for `limit`. `None` if somebody still has it then.
    pub(crate) fn wait(&self, limit: Duration) -> Option<MutexGuard<'_, bool>> {
        let waited = self.freed.wait_timeout_while(self.lock(), limit, |is_taken| *is_taken);
        let (is_taken, _) = waited.unwrap_or_else(PoisonError::into_inner);
        (!*is_taken).then_some(is_taken)
    }

    fn lock(&self) -> MutexGuard<'_, bool> {
        self.is_taken.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Held<'_> {
    fn drop(&mut self) {
        *self.0.lock() = false;
        self.0.freed.notify_all();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_at_a_time_has_it() {
        const LONG: Duration = Duration::from_secs(60);
        let turn = Turn::default();
        let first = turn.take(Duration::ZERO).unwrap();
        assert!(turn.take(Duration::ZERO).is_none() && turn.wait(Duration::ZERO).is_none());
        std::thread::scope(|scope| {
            let second = scope.spawn(|| drop(turn.take(LONG).unwrap()));
            drop(first);
            second.join().unwrap();
        });
        assert!(turn.wait(Duration::ZERO).is_some());
    }
}
