//! The pace of the guest's output.

use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

/// How much of a limited rate may be used up at once.
const BURST: Duration = Duration::from_secs(1);

/// How much the guest may write in a second, stdout and stderr together; a second's worth at once.
pub(super) struct Rate {
    bytes_per_second: u64,
    /// When all that was written would have been written at the allowed pace.
    paid_until: Mutex<Instant>,
}

impl Rate {
    /// A rate of which nothing is used at `now`.
    pub(super) fn new(bytes_per_second: u64, now: Instant) -> Self {
        Self { bytes_per_second: bytes_per_second.max(1), paid_until: Mutex::new(now) }
    }

    /// The most that is written at once, of `bytes_max`.
    pub(super) fn piece_bytes(&self, bytes_max: usize) -> usize {
        usize::try_from(self.bytes_per_second).unwrap_or(usize::MAX).clamp(1, bytes_max)
    }

    /// Pays for `bytes` at `now`, and returns how long to wait before they are written.
    pub(super) fn take(&self, bytes: usize, now: Instant) -> Duration {
        let mut paid_until = self.paid_until.lock().unwrap_or_else(PoisonError::into_inner);
        let start = (*paid_until).max(now);
        *paid_until = start + Duration::from_secs_f64(bytes as f64 / self.bytes_per_second as f64);
        paid_until.saturating_duration_since(now).saturating_sub(BURST)
    }

    /// How long at `now` nothing more is to be written.
    pub(super) fn delay(&self, now: Instant) -> Duration {
        self.take(0, now)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_rate_is_kept_after_a_seconds_worth() {
        let now = Instant::now();
        let rate = Rate::new(1000, now);
        assert_eq!(rate.piece_bytes(64 << 10), 1000);
        for (bytes, after, expected) in
            [(1000, 0, 0), (500, 0, 500), (500, 1000, 0), (100, 10_000, 0), (1000, 10_000, 100)]
        {
            let delay = rate.take(bytes, now + Duration::from_millis(after));
            assert_eq!(delay.as_millis(), expected, "{bytes} bytes after {after} ms");
        }
    }
}
