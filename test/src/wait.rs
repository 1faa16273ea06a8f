//! Waiting for conditions, with a deadline: on a thread, or on an executor.

use std::time::{Duration, Instant};

/// How long [`eventually`] and [`holds`] wait before they give up.
pub const PATIENCE: Duration = Duration::from_secs(20);
const PAUSE: Duration = Duration::from_millis(2);
/// Tests on an executor often check all of `/proc`.
const ASYNC_PAUSE: Duration = Duration::from_millis(5);

/// Waits until `condition` holds and returns whether it did within `limit`.
pub fn until(limit: Duration, condition: impl FnMut() -> bool) -> bool {
    until_every(PAUSE, limit, condition)
}

/// Waits like [`until`], but checks `condition` only once in `pause`.
#[expect(clippy::disallowed_methods, reason = "this is the one place that waits for conditions, with a deadline")]
pub fn until_every(pause: Duration, limit: Duration, mut condition: impl FnMut() -> bool) -> bool {
    let deadline = Instant::now() + limit;
    while !condition() {
        if Instant::now() > deadline {
            return false;
        }
        std::thread::sleep(pause);
    }
    true
}

/// Measures until `is_met` holds for three measurements, and panics with the others if it does not hold for three of them first: other
/// load makes something take too long once or twice. This does not find a defect that shows only now and then.
#[track_caller]
pub fn mostly<T: std::fmt::Debug>(mut measure: impl FnMut() -> T, is_met: impl Fn(&T) -> bool) {
    let (mut met, mut unmet) = (0, Vec::new());
    while met < 3 {
        let measured = measure();
        if is_met(&measured) {
            met += 1;
        } else {
            unmet.push(measured);
        }
        assert!(unmet.len() < 3, "none of these will do: {unmet:?}");
    }
}

/// Waits until `probe` returns something, and panics with `what` when it does not.
pub fn eventually<T>(what: &str, probe: impl FnMut() -> Option<T>) -> T {
    eventually_every(PAUSE, PATIENCE, what, probe)
}

/// Waits like [`eventually`], for up to `limit`, and calls `probe` only once in `pause`.
pub(crate) fn eventually_every<T>(
    pause: Duration,
    limit: Duration,
    what: &str,
    mut probe: impl FnMut() -> Option<T>,
) -> T {
    let mut found = None;
    until_every(pause, limit, || {
        found = probe();
        found.is_some()
    });
    found.unwrap_or_else(|| panic!("waited {limit:?} for: {what}"))
}

/// Waits like [`until`], without blocking the executor.
pub async fn holds_within(limit: Duration, mut condition: impl FnMut() -> bool) -> bool {
    let deadline = Instant::now() + limit;
    while !condition() {
        if Instant::now() > deadline {
            return false;
        }
        tokio::time::sleep(ASYNC_PAUSE).await;
    }
    true
}

/// Waits until `condition` holds without blocking the executor, and panics with `what` when it does not.
pub async fn holds(what: &str, condition: impl FnMut() -> bool) {
    assert!(holds_within(PATIENCE, condition).await, "waited {PATIENCE:?} for: {what}");
}
