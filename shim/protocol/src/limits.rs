//! The limits of a guest that its pod may set, with their defaults.

use std::time::Duration;

use serde::{Deserialize, Serialize};

/// The limits of a guest besides those of its cgroup. `None` means no limit.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Limits {
    /// How long a command may run.
    pub run_time: Option<Duration>,
    /// How long an HTTP request may take until its response begins; the rest of the response may take as long again.
    pub request_time: Option<Duration>,
    /// How long the head of an HTTP request may take, from its first byte; on a new connection from its beginning.
    pub header_time: Duration,
    /// How long an HTTP connection is kept without a request, or while its client neither takes nor sends anything.
    pub idle_time: Duration,
    /// The size of each linear memory, in pages of 64 KiB.
    pub memory_pages: Option<u64>,
    /// The core instances of one store.
    pub instances: usize,
    /// The linear memories of one store.
    pub memories: usize,
    /// The tables of one store.
    pub tables: usize,
    /// The elements of all tables of one store.
    pub table_elements: u64,
    /// The HTTP requests in progress at once. Further requests wait.
    pub concurrent_requests: usize,
    /// The wasm stack of one call, in bytes.
    pub stack_bytes: usize,
    /// The bytes that stdout and stderr together accept in a second. A guest that writes more waits.
    pub output_bytes_per_second: Option<u64>,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            run_time: None,
            request_time: None,
            header_time: Duration::from_secs(30),
            // Longer than the 600 s for which load balancers of clouds keep their connections: the side that closes first
            // must be theirs.
            idle_time: Duration::from_secs(620),
            memory_pages: None,
            instances: 10_000,
            memories: 10_000,
            tables: 10_000,
            table_elements: 10_000_000,
            concurrent_requests: 4096,
            stack_bytes: 512 << 10,
            output_bytes_per_second: None,
        }
    }
}
