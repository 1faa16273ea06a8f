//! A container's statistics, read from the message of either cgroup version.

use containerd_shim_protos::protobuf::Message;
use containerd_shim_protos::{cgroups, cgroups_v2};

use crate::api::Refused;
use crate::cgroup::is_cgroup_v2;
use crate::container::Container;

/// Figures at one moment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Figures {
    /// The memory in use, in bytes.
    pub memory_bytes: u64,
    /// The memory limit, in bytes.
    pub memory_limit_bytes: u64,
    /// The processor time so far, in nanoseconds.
    pub cpu_ns: u64,
    /// How many tasks there are.
    pub pids: u64,
    /// How many of its processes the kernel has killed because memory ran out.
    pub oom_kills: u64,
}

impl Figures {
    /// Reads the message of the node's cgroup version.
    pub fn parse(type_url: &str, bytes: &[u8]) -> Self {
        if is_cgroup_v2() {
            assert_eq!(type_url, "io.containerd.cgroups.v2.Metrics");
            return Self::of_v2(
                &cgroups_v2::metrics::Metrics::parse_from_bytes(bytes).expect("a message of containerd's"),
            );
        }
        assert_eq!(type_url, "io.containerd.cgroups.v1.Metrics");
        Self::of_v1(&cgroups::metrics::Metrics::parse_from_bytes(bytes).expect("a message of containerd's"))
    }

    fn of_v1(metrics: &cgroups::metrics::Metrics) -> Self {
        Self {
            memory_bytes: metrics.memory.usage.usage,
            memory_limit_bytes: metrics.memory.usage.limit,
            cpu_ns: metrics.cpu.usage.total,
            pids: metrics.pids.current,
            oom_kills: metrics.memory_oom_control.oom_kill,
        }
    }

    fn of_v2(metrics: &cgroups_v2::metrics::Metrics) -> Self {
        Self {
            memory_bytes: metrics.memory.usage,
            memory_limit_bytes: metrics.memory.usage_limit,
            cpu_ns: metrics.cpu.usage_usec * 1000,
            pids: metrics.pids.current,
            oom_kills: metrics.memory_events.oom_kill,
        }
    }
}

impl Container<'_> {
    /// Its figures.
    ///
    /// # Errors
    /// containerd's or the shim's refusal.
    pub fn figures(&self) -> Result<Figures, Refused> {
        self.metrics().map(|metrics| Figures::parse(&metrics.type_url, &metrics.value))
    }
}
