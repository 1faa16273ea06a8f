//! Why a specification is not understood, and what every part of the decision has to know.

use std::fmt;
use std::path::{Component, Path, PathBuf};

use skiff_linux::cgroup::Hierarchy;

/// Why a container is not one for skiff's launcher.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Reason(pub(crate) String);

impl fmt::Display for Reason {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(&self.0)
    }
}

/// The directory of a container in one hierarchy of cgroup v1.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct CgroupDir {
    pub(crate) controllers: Vec<String>,
    pub(crate) mountpoint: PathBuf,
    pub(crate) path: PathBuf,
}

/// Where a container's cgroups are.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Cgroups {
    /// In these hierarchies.
    V1(Vec<CgroupDir>),
    /// In the one hierarchy of version 2. Processes are born there.
    V2,
}

impl Cgroups {
    pub(super) fn hierarchy(&self) -> Hierarchy {
        match self {
            Self::V1(_) => Hierarchy::V1,
            Self::V2 => Hierarchy::V2,
        }
    }
}

/// Whether `path` is a place below the root that needs no thought: none of its parts leads back.
pub(super) fn is_clear(path: &Path) -> bool {
    let mut parts = path.components();
    let begins = parts.next() == Some(Component::RootDir);
    begins && path.file_name().is_some() && parts.all(|part| matches!(part, Component::Normal(_)))
}
