//! The two versions of control groups.

use std::io;
use std::path::Path;

use nix::sys::statfs::{CGROUP2_SUPER_MAGIC, statfs};

use super::files::at;

const ROOT: &str = "/sys/fs/cgroup";

/// The version of control groups that the node runs with. A hybrid node counts as v1, as it does for containerd and runc.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Hierarchy {
    /// One hierarchy for each controller.
    V1,
    /// The unified hierarchy.
    V2,
}

impl Hierarchy {
    /// The version that this node runs with.
    ///
    /// # Errors
    /// Those of `statfs(2)` on `/sys/fs/cgroup`.
    pub fn detect() -> io::Result<Self> {
        let kind = statfs(ROOT).map_err(|error| at("look at", Path::new(ROOT), &error.into()))?.filesystem_type();
        Ok(if kind == CGROUP2_SUPER_MAGIC { Self::V2 } else { Self::V1 })
    }
}
