//! The limits of a guest: those that its pod may set, with their defaults, and the cgroup's memory limit.

use std::time::Duration;

use serde::{Deserialize, Serialize};

/// cgroup v1 says "no limit" with the largest number of whole pages; no machine has memory near it.
const UNLIMITED_FROM_BYTES: u64 = 1 << 62;

/// What bounds a guest besides its cgroup. `None` is no limit.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Limits {
    /// How long a command may run.
    pub run_time: Option<Duration>,
    /// How long an HTTP request may take until its response, and again what follows it.
    pub request_time: Option<Duration>,
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
    /// The HTTP requests under way at once; further ones wait.
    pub concurrent_requests: usize,
    /// The wasm stack of one call, in bytes.
    pub stack_bytes: usize,
    /// What stdout and stderr take together in a second, in bytes; who writes more waits.
    pub output_bytes_per_second: Option<u64>,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            run_time: None,
            request_time: None,
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

/// Reads a memory limit file (`memory.max`, v1: `memory.limit_in_bytes`), in bytes; `None` is no limit.
pub fn parse_limit(text: &str) -> Option<u64> {
    text.trim().parse().ok().filter(|bytes| *bytes < UNLIMITED_FROM_BYTES)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn limit_files_of_both_hierarchies_are_read() {
        for (text, expected) in [
            ("max\n", None),
            ("67108864\n", Some(67_108_864)),
            ("0", Some(0)),
            ("9223372036854771712\n", None),
            ("18446744073709551615", None),
            ("", None),
            ("nonsense", None),
        ] {
            assert_eq!(parse_limit(text), expected, "{text:?}");
        }
    }
}
