//! What every launcher does. Nobody outside knows by what means, and nobody looks up a process or a cgroup behind its back.

use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};

use async_trait::async_trait;
use oci_spec::runtime::{LinuxResources, Process as ProcessSpec};
use skiff_linux::cgroup::Cgroup;

use crate::error::Result;
use crate::host::process::Child;
use crate::host::stdio::ChildStdio;
use crate::request::{CheckpointOptions, StdioPaths};
use crate::spec::config::Config;

/// How a process is connected.
#[derive(Debug)]
pub(crate) enum Attachment {
    /// To these files.
    Files(ChildStdio),
    /// To a terminal, whose other end is sent to this socket.
    Console(PathBuf),
}

/// A container that was made.
#[derive(Debug)]
pub(crate) struct Launched {
    /// Its first process, which waits to be started.
    pub(crate) child: Child,
    pub(crate) cgroup: Cgroup,
}

/// What makes, and ends, the processes of one container.
#[async_trait]
pub(crate) trait Launcher: Send + Sync {
    /// Makes the container of `config`; its process waits to be started and gets `preserved` as descriptors 3, 4, ….
    async fn create(&self, config: &Config, attachment: Attachment, preserved: Vec<OwnedFd>) -> Result<Launched>;
    /// The cgroup that the container gets, whether it is there yet or not.
    fn cgroup(&self) -> Result<Cgroup>;
    /// Makes the container of `config` from the checkpoint in the directory `image`; its process runs, in the container's
    /// [`Launcher::cgroup`].
    async fn restore(&self, config: &Config, attachment: Attachment, image: &Path) -> Result<Child>;
    /// Writes a checkpoint of the container's processes, whose streams are `stdio`, into the directory `image`.
    async fn checkpoint(&self, image: &Path, stdio: &StdioPaths, options: &CheckpointOptions) -> Result<()>;
    /// Starts the container's process.
    async fn start(&self) -> Result<()>;
    /// Ends whatever is left of the container and removes it; a container that is not there is fine.
    async fn delete(&self) -> Result<()>;
    /// Ends what the launcher does not know of itself, because a create was interrupted; after [`Launcher::delete`].
    async fn end_interrupted(&self) -> Result<()>;
    /// Stops every process of the container where it is.
    async fn pause(&self) -> Result<()>;
    /// Lets them go on.
    async fn resume(&self) -> Result<()>;
    /// Sets the container's cgroup limits.
    async fn update(&self, resources: &LinuxResources) -> Result<()>;
    /// Starts a further process, named `exec_id`, in the container's cgroup; it gets `preserved` as descriptors 3, 4, ….
    async fn exec(
        &self,
        process: &ProcessSpec,
        attachment: Attachment,
        exec_id: &str,
        preserved: Vec<OwnedFd>,
    ) -> Result<Child>;
    /// The pid that the container's first process had, as far as the bundle says so.
    fn recorded_pid(&self) -> Option<i32>;
}
