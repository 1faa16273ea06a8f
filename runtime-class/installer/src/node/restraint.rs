//! When a node that somebody else keeps changing may be mended again. Each mend restarts containerd, so two tools that undo each
//! other's work must not do so every minute forever.
//!
//! It only decides: times come in as arguments, and mending is left to `keep`.

use std::time::Duration;

/// The longest time between two mends.
const PAUSE_MAX: Duration = Duration::from_secs(30 * 60);
/// After this long without a fault, a node is at peace: earlier mends no longer count.
const PEACE: Duration = Duration::from_secs(60 * 60);
/// After this many mends without peace, the node is left as it is.
pub(crate) const MENDS_MAX: u32 = 10;

/// How often a node was mended recently. All times are since some moment before the first of them.
#[derive(Clone, Debug)]
pub(crate) struct Restraint {
    interval: Duration,
    mends: u32,
    mended: Duration,
    last_wrong: Duration,
}

/// Whether a node that is wrong may be mended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Leave {
    /// At once.
    Now,
    /// Not yet: the last mend was too recently.
    Later,
    /// Not by this process, unless there is peace first.
    Never,
}

impl Restraint {
    /// Before the first mend. `interval` is the time between two looks, and between the first two mends.
    pub(crate) const fn new(interval: Duration) -> Self {
        Self { interval, mends: 0, mended: Duration::ZERO, last_wrong: Duration::ZERO }
    }

    /// The number of mends that count.
    pub(crate) const fn mends(&self) -> u32 {
        self.mends
    }

    /// The node was found right.
    pub(crate) fn found_right(&mut self, now: Duration) {
        if now.saturating_sub(self.last_wrong) >= PEACE {
            self.mends = 0;
        }
    }

    /// The node was found wrong. Returns whether it may be mended.
    pub(crate) fn found_wrong(&mut self, now: Duration) -> Leave {
        self.last_wrong = now;
        let due = self.mended.saturating_add(self.pause());
        match self.mends {
            0 => Leave::Now,
            MENDS_MAX.. => Leave::Never,
            _ if now >= due => Leave::Now,
            _ => Leave::Later,
        }
    }

    /// The node was mended, and containerd restarted for it.
    pub(crate) fn mended(&mut self, now: Duration) {
        self.mends = self.mends.saturating_add(1);
        self.mended = now;
        self.last_wrong = now;
    }

    /// How long the node is left alone after the last mend.
    pub(crate) fn pause(&self) -> Duration {
        let doublings = self.mends.saturating_sub(1).min(16);
        self.interval.saturating_mul(1 << doublings).min(PAUSE_MAX.max(self.interval))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const fn minutes(minutes: u64) -> Duration {
        Duration::from_secs(minutes * 60)
    }

    /// Looks at a node every `interval` until `end`; `is_wrong` says whether somebody has changed it since the last look. Returns
    /// the times of its mends.
    fn mends(interval: Duration, end: Duration, is_wrong: impl Fn(Duration) -> bool) -> Vec<Duration> {
        let mut restraint = Restraint::new(interval);
        let mut found = Vec::new();
        let mut now = Duration::ZERO;
        let mut is_broken = false;
        while now < end {
            is_broken |= is_wrong(now);
            if !is_broken {
                restraint.found_right(now);
            } else if restraint.found_wrong(now) == Leave::Now {
                restraint.mended(now);
                found.push(now);
                is_broken = false;
            }
            now += interval;
        }
        found
    }

    #[test]
    fn a_tool_that_reverts_every_mend_is_met_less_and_less_often_and_then_not_at_all() {
        let found = mends(minutes(1), minutes(60 * 24 * 30), |_| true);
        assert_eq!(found, [0, 1, 3, 7, 15, 31, 61, 91, 121, 151].map(minutes));
        let found = mends(Duration::from_secs(1), minutes(60 * 24), |_| true);
        assert_eq!(found, [0, 1, 3, 7, 15, 31, 63, 127, 255, 511].map(Duration::from_secs));
        let found = mends(minutes(60), minutes(60 * 24), |_| true);
        assert_eq!(
            found,
            [0, 60, 120, 180, 240, 300, 360, 420, 480, 540].map(minutes),
            "never more often than asked for"
        );
    }

    #[test]
    fn a_node_that_is_at_peace_for_an_hour_is_mended_at_once_again() {
        // An upgrade of the distribution, twice a day.
        let found = mends(minutes(1), minutes(60 * 24 * 30), |now| now.as_secs().is_multiple_of(12 * 60 * 60));
        assert_eq!(found.len(), 60);
        // A tool that reverts the node twice an hour is opposed for a while, and then no longer.
        let found = mends(minutes(1), minutes(60 * 24 * 30), |now| now.as_secs().is_multiple_of(30 * 60));
        assert_eq!(found.len(), 10);
    }

    #[test]
    fn a_node_that_was_given_up_is_kept_again_after_an_hour_of_peace() {
        let mut restraint = Restraint::new(minutes(1));
        for _ in 0..MENDS_MAX {
            restraint.mended(minutes(1));
        }
        assert_eq!(restraint.found_wrong(minutes(1000)), Leave::Never);
        restraint.found_right(minutes(1059));
        assert_eq!(restraint.found_wrong(minutes(1059)), Leave::Never);
        restraint.found_right(minutes(1119));
        assert_eq!(restraint.found_wrong(minutes(1120)), Leave::Now);
    }
}
