//! What containerd asks for, as plain values: nothing here knows how it was asked.

use std::path::PathBuf;

use crate::settings::Settings;

/// A container to be made.
#[derive(Debug, Default)]
pub(crate) struct CreateRequest {
    pub(crate) id: String,
    pub(crate) bundle: PathBuf,
    /// What the root file system consists of, in the order in which it is mounted.
    pub(crate) rootfs: Vec<RootfsMount>,
    pub(crate) stdio: StdioPaths,
    /// The directory of the checkpoint to restore from; empty for a new container.
    pub(crate) checkpoint: String,
    pub(crate) settings: Settings,
}

/// A mount of a container's root file system.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct RootfsMount {
    pub(crate) kind: String,
    pub(crate) source: String,
    pub(crate) target: String,
    pub(crate) options: Vec<String>,
}

/// Where containerd wants the streams of a process: paths of fifos, `file://` or `binary://` addresses, or empty.
#[derive(Clone, Debug, Default)]
pub(crate) struct StdioPaths {
    pub(crate) stdin: String,
    pub(crate) stdout: String,
    pub(crate) stderr: String,
    /// The process has a terminal, and containerd's end of it is `stdin` and `stdout`.
    pub(crate) terminal: bool,
}

/// How a checkpoint is made.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct CheckpointOptions {
    /// End the container's processes.
    pub(crate) exit: bool,
    pub(crate) open_tcp: bool,
    pub(crate) external_unix_sockets: bool,
    pub(crate) terminal: bool,
    pub(crate) file_locks: bool,
    pub(crate) empty_namespaces: Vec<String>,
    pub(crate) cgroups_mode: String,
    /// The directory for criu's files; empty for the bundle.
    pub(crate) work_path: String,
}
