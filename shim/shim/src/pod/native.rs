//! Native containers: the kernel runs their program.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use crate::error::Result;
use crate::launch::Launched;
use crate::pod::launched::{Created, LaunchedContainer, Parts};
use crate::pod::process::Process;
use crate::pod::streams::attachment_for;
use crate::request::CheckpointOptions;
use crate::spec::config::Config;

/// A native container.
pub(super) struct Native {
    pub(super) launched: LaunchedContainer,
    /// What Start makes the first process from, if it is restored.
    checkpoint: Option<Checkpoint>,
}

/// A checkpoint that a container is restored from.
struct Checkpoint {
    /// Its directory.
    image: PathBuf,
    config: Arc<Config>,
}

impl Native {
    /// Makes a container whose first process waits to be started.
    pub(super) async fn create(parts: Parts<'_>) -> Result<Created<Self>> {
        let stdio = &parts.request.stdio;
        let (attachment, pending) = attachment_for(stdio, &parts.owner).await?;
        let Launched { child, cgroup } = parts.launcher.create(&parts.config, attachment, Vec::new()).await?;
        let attached = pending.complete(stdio).await?;
        let first = Process::created("", stdio.clone(), child, attached);
        Ok(Created { first, kind: Self { launched: LaunchedContainer::new(parts, cgroup), checkpoint: None } })
    }

    /// Makes a container whose first process Start restores from the request's checkpoint.
    pub(super) fn from_checkpoint(parts: Parts<'_>) -> Result<Created<Self>> {
        let checkpoint = Checkpoint { image: parts.request.checkpoint.clone().into(), config: parts.config.clone() };
        let first = Process::checkpointed(parts.request.stdio.clone());
        let cgroup = parts.launcher.cgroup()?;
        let launched = LaunchedContainer::new(parts, cgroup);
        Ok(Created { first, kind: Self { launched, checkpoint: Some(checkpoint) } })
    }

    /// Starts the `first` process, or restores it.
    pub(super) async fn start(&self, first: &Process) -> Result<()> {
        let launcher = &self.launched.launcher;
        let Some(Checkpoint { image, config }) = &self.checkpoint else { return launcher.start().await };
        let (attachment, pending) = attachment_for(&first.stdio, &self.launched.owner).await?;
        let child = launcher.restore(config, attachment, image).await?;
        first.attach(child, pending.complete(&first.stdio).await?);
        Ok(())
    }

    /// Writes a checkpoint of the container, whose `first` process runs, into the directory `image`.
    pub(super) async fn checkpoint(&self, first: &Process, image: &Path, options: &CheckpointOptions) -> Result<()> {
        self.launched.launcher.checkpoint(image, &first.stdio, options).await
    }
}
