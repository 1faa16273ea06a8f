//! Waiting for conditions, and names that nobody else has.

use std::hash::{BuildHasher, RandomState};
use std::time::{Duration, Instant};

/// How long [`eventually`] waits before it gives up.
const PATIENCE: Duration = Duration::from_secs(20);
const PAUSE: Duration = Duration::from_millis(2);

/// Waits until `condition` holds; whether it did within `limit`.
pub fn until(limit: Duration, condition: impl FnMut() -> bool) -> bool {
    until_every(PAUSE, limit, condition)
}

/// Waits like [`until`] for a condition that is not looked at more often than once in `pause`.
#[expect(clippy::disallowed_methods, reason = "this is the one place that waits for conditions, with a deadline")]
pub(crate) fn until_every(pause: Duration, limit: Duration, mut condition: impl FnMut() -> bool) -> bool {
    let deadline = Instant::now() + limit;
    while !condition() {
        if Instant::now() > deadline {
            return false;
        }
        std::thread::sleep(pause);
    }
    true
}

/// Waits until `probe` answers something, and panics with `what` when it does not.
pub fn eventually<T>(what: &str, mut probe: impl FnMut() -> Option<T>) -> T {
    let mut found = None;
    until(PATIENCE, || {
        found = probe();
        found.is_some()
    });
    found.unwrap_or_else(|| panic!("waited {} s in vain: {what}", PATIENCE.as_secs()))
}

/// `prefix` and a random number.
pub fn random_name(prefix: &str) -> String {
    format!("{prefix}-{:08x}", RandomState::new().hash_one(prefix) & 0xffff_ffff)
}
