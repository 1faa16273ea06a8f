//! The limits that apply to a container: its own, and those of the cgroups above it.

use std::fs::{self, File};
use std::io::{self, ErrorKind};
use std::path::PathBuf;

use skiff_plan::{LIMIT_FILES_MAX, parse_limit};

use super::{Cgroup, Hierarchy, Node};
use crate::host::read_only;

impl Cgroup {
    /// The files with the memory limits that apply to the container, open for reading: its own first, then those above
    /// it, as far as they exist and as a message to the engine holds. Nobody can write to them through the descriptors,
    /// which are for the engine, and so for whoever gets hold of it.
    ///
    /// # Errors
    /// Those of opening them.
    pub(crate) fn memory_limit_files(&self) -> io::Result<Vec<File>> {
        let Some(node) = self.node("memory") else { return Ok(Vec::new()) };
        let mut files = Vec::new();
        for path in self.limit_paths(node) {
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
        let paths = self.limit_paths(self.node("memory")?);
        paths.filter_map(|path| parse_limit(&fs::read_to_string(path).ok()?)).min()
    }

    /// Where the limits of the container and of those above it would stand, its own first.
    fn limit_paths<'a>(&self, node: &'a Node) -> impl Iterator<Item = PathBuf> + use<'a> {
        let name = match self.hierarchy {
            Hierarchy::V1 => "memory.limit_in_bytes",
            Hierarchy::V2 => "memory.max",
        };
        let dirs = node.path.ancestors().take_while(|dir| *dir != node.mountpoint).take(LIMIT_FILES_MAX);
        dirs.map(move |dir| dir.join(name))
    }

    /// How many processors the quotas of the container and of those above it come to, rounded up; `None` is no quota.
    pub(crate) fn processors(&self) -> Option<usize> {
        let node = self.node("cpu")?;
        let dirs = node.path.ancestors().take_while(|dir| *dir != node.mountpoint);
        dirs.filter_map(|dir| match self.hierarchy {
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
        })
        .min()
    }
}

/// A quota that is no positive number (`max`, `-1`) is none.
fn processors_in(quota: &str, period: &str) -> Option<usize> {
    let quota: usize = quota.trim().parse().ok()?;
    Some(quota.div_ceil(period.trim().parse().ok().filter(|period| *period > 0)?).max(1))
}
