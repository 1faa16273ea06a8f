//! The limits that apply to a container: its own, and those of the cgroups above it.

use std::fs::{self, File};
use std::io::{self, ErrorKind};
use std::path::Path;

use skiff_protocol::{LIMIT_FILES_MAX, parse_limit};

use super::{Cgroup, Hierarchy, Node};
use crate::host::read_only;

impl Cgroup {
    /// The files with the memory limits that apply to the container, and with those above which the kernel throttles it, open
    /// for reading: hard limits first, its own before those above it, as far as they exist and as a message to the engine holds. Nobody can
    /// write to them through the descriptors, which are for the engine, and so for whoever gets hold of it.
    ///
    /// # Errors
    /// Those of opening them.
    pub(crate) fn memory_limit_files(&self) -> io::Result<Vec<File>> {
        let Some(node) = self.node("memory") else { return Ok(Vec::new()) };
        let mut files = Vec::new();
        let names = limit_names(self.hierarchy).iter();
        for path in names.flat_map(|name| dirs_of(node).map(move |dir| dir.join(name))) {
            if files.len() == LIMIT_FILES_MAX {
                break;
            }
            match read_only::open(&node.mountpoint, path.strip_prefix(&node.mountpoint).unwrap_or(&path)) {
                Ok(file) => files.push(file),
                Err(error) if error.kind() == ErrorKind::NotFound => {}
                Err(error) => return Err(error),
            }
        }
        Ok(files)
    }

    /// The smallest memory limit that applies to the container, in bytes; `None` is no limit.
    pub(crate) fn memory_limit_bytes(&self) -> Option<u64> {
        let node = self.node("memory")?;
        let limit = limit_names(self.hierarchy)[0];
        let paths = dirs_of(node).map(|dir| dir.join(limit));
        paths.filter_map(|path| parse_limit(&fs::read_to_string(path).ok()?)).min()
    }

    /// How many processors the quotas of the container and of those above it come to, rounded up; `None` is no quota.
    pub(crate) fn processors(&self) -> Option<usize> {
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

/// The directories of the container and of those above it, its own first.
fn dirs_of(node: &Node) -> impl Iterator<Item = &Path> {
    node.path.ancestors().take_while(|dir| *dir != node.mountpoint)
}

/// The files of a cgroup that bound its memory, the hard limit first. Above `memory.high` the kernel lets a process hardly get on,
/// so that a guest is better refused there.
fn limit_names(hierarchy: Hierarchy) -> &'static [&'static str] {
    match hierarchy {
        Hierarchy::V1 => &["memory.limit_in_bytes"],
        Hierarchy::V2 => &["memory.max", "memory.high"],
    }
}

/// A quota that is no positive number (`max`, `-1`) is none.
fn processors_in(quota: &str, period: &str) -> Option<usize> {
    let quota: usize = quota.trim().parse().ok()?;
    Some(quota.div_ceil(period.trim().parse().ok().filter(|period| *period > 0)?).max(1))
}
