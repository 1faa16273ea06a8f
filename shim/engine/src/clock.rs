//! Waiting for time to pass.

use std::time::Duration;

/// Lets time pass on this thread.
#[expect(clippy::disallowed_methods, reason = "it is the time itself that is waited for")]
pub(crate) fn sleep(time: Duration) {
    std::thread::sleep(time);
}
