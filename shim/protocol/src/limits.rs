//! The limits of a guest that its pod may set, with their defaults.

use std::time::Duration;

use serde::{Deserialize, Serialize};

/// A number of bytes in messages: as it is, and in Mi, as people write it in pods.
pub fn bytes_and_mi(bytes: u64) -> String {
    let tenths = (u128::from(bytes) * 10 + (1 << 19)) >> 20;
    match tenths % 10 {
        0 => format!("{bytes} bytes ({}Mi)", tenths / 10),
        tenth => format!("{bytes} bytes ({}.{tenth}Mi)", tenths / 10),
    }
}

/// The limits of a guest besides those of its cgroup. `None` means no limit.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Limits {
    /// How long a command may run.
    pub run_time: Option<Duration>,
    /// How long an HTTP request may take until its response begins, and how long its instance may go on once the response
    /// is complete.
    pub request_time: Option<Duration>,
    /// How long a call of one of the guest's functions may take.
    pub call_time: Option<Duration>,
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

impl Limits {
    /// The names of those that are set and do nothing for a command.
    pub fn without_effect_on_commands(&self) -> Vec<&'static str> {
        let default = Self::default();
        let set = [
            ("request-time", self.request_time != default.request_time),
            ("header-time", self.header_time != default.header_time),
            ("idle-time", self.idle_time != default.idle_time),
            ("concurrent-requests", self.concurrent_requests != default.concurrent_requests),
        ];
        set.into_iter().filter_map(|(name, is_set)| is_set.then_some(name)).collect()
    }

    /// The same for a service, which only takes calls.
    pub fn without_effect_on_services(&self) -> Vec<&'static str> {
        self.without_effect_on_servers().into_iter().chain(self.without_effect_on_commands()).collect()
    }

    /// The same for an HTTP server.
    pub fn without_effect_on_servers(&self) -> Vec<&'static str> {
        let is_set = self.run_time != Self::default().run_time;
        is_set.then_some("run-time").into_iter().collect()
    }
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            run_time: None,
            request_time: Some(Duration::from_secs(60)),
            call_time: Some(Duration::from_secs(60)),
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_are_shown_in_mi_too() {
        for (bytes, expected) in [
            (0, "0 bytes (0Mi)"),
            (33_554_432, "33554432 bytes (32Mi)"),
            (29_491_752, "29491752 bytes (28.1Mi)"),
            (65_536, "65536 bytes (0.1Mi)"),
            (u64::MAX, "18446744073709551615 bytes (17592186044416Mi)"),
        ] {
            assert_eq!(bytes_and_mi(bytes), expected);
        }
    }
}
