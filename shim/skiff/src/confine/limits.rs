//! What a confined process may use.

use std::time::Duration;

/// The bounds of one confined process.
#[derive(Clone, Debug)]
pub(crate) struct Limits {
    /// Memory, in bytes.
    pub(crate) memory_bytes: u64,
    /// Processor time of all threads together, in seconds.
    pub(crate) cpu_seconds: u64,
    /// Time from start to end.
    pub(crate) wall: Duration,
    /// The largest file that it may write, in bytes.
    pub(crate) output_bytes: u64,
    /// The name of its control group; without one, only resource limits apply.
    pub(crate) cgroup: Option<String>,
}
