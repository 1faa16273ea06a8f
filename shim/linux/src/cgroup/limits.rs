//! The limits that apply to a container: its own, and those of the cgroups above it.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use super::files::read;
use super::{Cgroup, Hierarchy, Node};

/// cgroup v1 writes "no limit" as the largest number of whole pages; no machine has that much memory.
const UNLIMITED_FROM_BYTES: u64 = 1 << 62;

/// Parses a memory limit file (`memory.max`, v1: `memory.limit_in_bytes`), in bytes. `None` means no limit.
pub fn parse_limit(text: &str) -> Option<u64> {
    text.trim().parse().ok().filter(|bytes| *bytes < UNLIMITED_FROM_BYTES)
}

/// The memory that files in memory take (tmpfs and other shared memory), in bytes, from a `memory.stat` of either version:
/// of the cgroup and all below it. 0 if it is not known.
pub fn parse_shared_memory(stat: &str) -> u64 {
    let value =
        |name: &str| stat.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' ')?.trim().parse().ok());
    // In version 1 `shmem` is what the cgroup alone takes.
    value("total_shmem").or_else(|| value("shmem")).unwrap_or_default()
}

impl Cgroup {
    /// The files that may hold a memory limit of the container, or a limit above which the kernel throttles it: hard limits
    /// first, its own before those of its ancestors. Each is a mount point and a path below it. They need not exist.
    pub fn memory_limits(&self) -> Vec<(PathBuf, PathBuf)> {
        let Some(node) = self.node("memory") else { return Vec::new() };
        let paths = limit_names(self.hierarchy).iter().flat_map(|name| dirs_of(node).map(move |dir| dir.join(name)));
        let below = |path: PathBuf| path.strip_prefix(&node.mountpoint).map_or(path.clone(), Path::to_path_buf);
        paths.map(|path| (node.mountpoint.clone(), below(path))).collect()
    }

    /// The smallest memory limit that applies to the container, in bytes. `None` means no limit.
    pub fn memory_limit_bytes(&self) -> Option<u64> {
        let node = self.node("memory")?;
        let limit = limit_names(self.hierarchy)[0];
        let paths = dirs_of(node).map(|dir| dir.join(limit));
        paths.filter_map(|path| parse_limit(&fs::read_to_string(path).ok()?)).min()
    }

    /// The memory that the container uses, in bytes, the page cache included.
    ///
    /// # Errors
    /// `Unsupported` without a cgroup for memory; those of reading it.
    pub fn memory_usage_bytes(&self) -> io::Result<u64> {
        let missing = || io::Error::new(io::ErrorKind::Unsupported, "there is no cgroup for memory");
        let name = match self.hierarchy {
            Hierarchy::V1 => "memory.usage_in_bytes",
            Hierarchy::V2 => "memory.current",
        };
        let text = read(&self.dir("memory").ok_or_else(missing)?.join(name))?;
        text.trim().parse().map_err(io::Error::other)
    }

    /// The processors that the smallest CPU quota of the container and its ancestors allows, rounded up. `None` means no
    /// quota.
    pub fn processors(&self) -> Option<usize> {
        let node = self.node("cpu")?;
        let processors = dirs_of(node).filter_map(|dir| match self.hierarchy {
            Hierarchy::V1 => {
                let quota = fs::read_to_string(dir.join("cpu.cfs_quota_us")).ok()?;
                let period = fs::read_to_string(dir.join("cpu.cfs_period_us")).ok()?;
                processors_in(&quota, &period)
            }
            Hierarchy::V2 => {
                let text = fs::read_to_string(dir.join("cpu.max")).ok()?;
                let (quota, period) = text.split_once(' ')?;
                processors_in(quota, period)
            }
        });
        processors.min()
    }
}

/// The directories of the container and its ancestors, its own first.
fn dirs_of(node: &Node) -> impl Iterator<Item = &Path> {
    node.path.ancestors().take_while(|dir| *dir != node.mountpoint)
}

/// The files that limit a cgroup's memory, the hard limit first. Above `memory.high` the kernel throttles a process until
/// it hardly makes progress, so it is better to refuse a guest's growth there.
fn limit_names(hierarchy: Hierarchy) -> &'static [&'static str] {
    match hierarchy {
        Hierarchy::V1 => &["memory.limit_in_bytes"],
        Hierarchy::V2 => &["memory.max", "memory.high"],
    }
}

/// `None` when the quota is not a positive number (`max`, `-1`), which means no quota.
fn processors_in(quota: &str, period: &str) -> Option<usize> {
    let quota: usize = quota.trim().parse().ok()?;
    Some(quota.div_ceil(period.trim().parse().ok().filter(|period| *period > 0)?).max(1))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shared_memory_is_read_from_either_version() {
        for (stat, expected) in [
            ("cache 9\nshmem 4096\nmapped_file 1\ntotal_cache 9\ntotal_shmem 8192\n", 8192),
            ("anon 1\nfile 5000\nshmem 4096\nshmem_thp 7\n", 4096),
            ("anon 1\nshmem_thp 7\n", 0),
            ("", 0),
        ] {
            assert_eq!(parse_shared_memory(stat), expected, "{stat:?}");
        }
    }

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
