//! What a guest does: its instances, traps and requests. Pure: no file and no page.

use std::time::Duration;

/// The classes by which requests are counted: the first digit of the response's status code, or `none` for a request whose
/// client or instance was gone before there was a response.
pub const CODE_CLASSES: [&str; 6] = ["none", "1xx", "2xx", "3xx", "4xx", "5xx"];

/// The upper bounds by which requests are counted, inclusive. Longer ones are counted after the last.
pub const DURATION_BOUNDS: [Duration; 14] = [
    Duration::from_micros(500),
    Duration::from_millis(1),
    Duration::from_micros(2500),
    Duration::from_millis(5),
    Duration::from_millis(10),
    Duration::from_millis(25),
    Duration::from_millis(50),
    Duration::from_millis(100),
    Duration::from_millis(250),
    Duration::from_millis(500),
    Duration::from_secs(1),
    Duration::from_millis(2500),
    Duration::from_secs(5),
    Duration::from_secs(10),
];

/// How many counts of requests by duration there are.
pub(super) const DURATIONS: usize = DURATION_BOUNDS.len() + 1;

/// What a guest has done so far.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Activity {
    /// Whether it serves requests.
    pub serves: bool,
    /// How many instances are alive.
    pub instances: u64,
    /// How many instances ended with a trap.
    pub traps: u64,
    /// The requests so far, in the order of [`CODE_CLASSES`].
    pub requests: [u64; CODE_CLASSES.len()],
    /// The requests so far by duration, in the order of [`DURATION_BOUNDS`], each in one of them; the last are longer.
    pub durations: [u64; DURATIONS],
    /// The sum of their durations.
    pub request_time: Duration,
}

/// The class of a response.
pub(super) fn class(status: Option<u16>) -> usize {
    let class = usize::from(status.unwrap_or(0) / 100);
    if class < CODE_CLASSES.len() { class } else { 0 }
}

/// Where a request of this duration is counted.
pub(super) fn bucket(duration: Duration) -> usize {
    DURATION_BOUNDS.partition_point(|bound| *bound < duration)
}
