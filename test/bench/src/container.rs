//! One container's life through containerd's API, with a clock beside it.

use std::io::Read;
use std::os::unix::fs::OpenOptionsExt;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use containerd_client::services::v1::snapshots::{PrepareSnapshotRequest, RemoveSnapshotRequest};
use containerd_client::services::v1::{
    Container, CreateContainerRequest, CreateTaskRequest, DeleteContainerRequest, DeleteTaskRequest, KillRequest,
    StartRequest, WaitRequest,
};
use containerd_client::types::Mount;
use nix::sys::stat::Mode;
use nix::unistd::mkfifo;
use prost_types::Any;

use crate::containerd::{Containerd, request};
use crate::image::Image;
use crate::spec::{Network, spec};
use crate::target::Target;

const SNAPSHOTTER: &str = "overlayfs";
const SPEC_TYPE: &str = "types.containerd.io/opencontainers/runtime-spec/1/Spec";

/// What is to run.
pub(crate) struct Plan<'a> {
    pub(crate) target: Target,
    pub(crate) image: &'a Image,
    pub(crate) arguments: Vec<String>,
    pub(crate) environment: Vec<String>,
    pub(crate) network: Network,
}

/// How long the steps of one container took, in milliseconds.
#[derive(Clone, Copy)]
pub(crate) struct Times {
    pub(crate) create: f64,
    pub(crate) start: f64,
    /// From the request of Start to the answer of Wait.
    pub(crate) run: f64,
    pub(crate) delete: f64,
}

/// A container whose metadata and snapshot are there, but no task.
pub(crate) struct Prepared<'a> {
    containerd: &'a Containerd,
    id: String,
    rootfs: Vec<Mount>,
    output: PathBuf,
}

/// A container whose task runs.
pub(crate) struct Running<'a>(Prepared<'a>);

/// Makes the snapshot and the metadata of the container.
///
/// # Errors
/// When containerd refuses.
pub(crate) async fn prepare<'a>(containerd: &'a Containerd, id: String, plan: &Plan<'_>) -> Result<Prepared<'a>> {
    let mut command = vec![plan.image.entrypoint.clone()];
    command.extend_from_slice(&plan.arguments);
    let spec = spec(&id, &command, &plan.environment, plan.network);
    let container = Container {
        id: id.clone(),
        image: plan.image.name.clone(),
        runtime: Some(plan.target.runtime(containerd.directory())),
        spec: Some(Any { type_url: SPEC_TYPE.into(), value: serde_json::to_vec(&spec)? }),
        snapshotter: SNAPSHOTTER.into(),
        snapshot_key: id.clone(),
        ..Container::default()
    };
    let snapshot = PrepareSnapshotRequest {
        snapshotter: SNAPSHOTTER.into(),
        key: id.clone(),
        parent: plan.image.snapshot.clone(),
        ..PrepareSnapshotRequest::default()
    };
    let rootfs = containerd.client().snapshots().prepare(request(snapshot)).await?.into_inner().mounts;
    containerd.client().containers().create(request(CreateContainerRequest { container: Some(container) })).await?;
    let output = containerd.directory().join(format!("{id}.out"));
    mkfifo(&output, Mode::from_bits_truncate(0o600))?;
    Ok(Prepared { containerd, id, rootfs, output })
}

impl<'a> Prepared<'a> {
    /// Runs it to its end and removes it.
    ///
    /// # Errors
    /// When a step fails, the exit status is not 0 or the output is not what is expected.
    pub(crate) async fn run(self, expected: &str) -> Result<Times> {
        let mut output = self.open_output()?;
        let begun = Instant::now();
        self.create().await?;
        let created = Instant::now();
        self.start().await?;
        let started = Instant::now();
        let status = self.wait().await?;
        let ended = Instant::now();
        self.delete().await?;
        let deleted = Instant::now();
        let mut said = vec![0; 4096];
        let length = output.read(&mut said).unwrap_or(0);
        let said = String::from_utf8_lossy(&said[..length]);
        ensure!(status == 0, "`{}` ended with {status} and said `{said}`", self.id);
        ensure!(said == expected, "`{}` said `{said}` where `{expected}` is due", self.id);
        self.remove().await?;
        Ok(Times {
            create: milliseconds(created - begun),
            start: milliseconds(started - created),
            run: milliseconds(ended - created),
            delete: milliseconds(deleted - ended),
        })
    }

    /// Starts it and lets it run.
    ///
    /// # Errors
    /// When a step fails.
    pub(crate) async fn begin(self) -> Result<Running<'a>> {
        // The other end must be there for as long as the shim opens its own.
        let _output = self.open_output()?;
        self.create().await?;
        self.start().await?;
        Ok(Running(self))
    }

    fn open_output(&self) -> Result<std::fs::File> {
        let mut options = std::fs::OpenOptions::new();
        options.read(true).write(true).custom_flags(nix::libc::O_NONBLOCK);
        options.open(&self.output).context("could not open the container's output")
    }

    async fn create(&self) -> Result<()> {
        let create = CreateTaskRequest {
            container_id: self.id.clone(),
            rootfs: self.rootfs.clone(),
            stdout: self.output.display().to_string(),
            ..CreateTaskRequest::default()
        };
        let answer = self.containerd.client().tasks().create(request(create)).await;
        answer.map(drop).with_context(|| format!("could not create the task `{}`", self.id))
    }

    async fn start(&self) -> Result<()> {
        let start = StartRequest { container_id: self.id.clone(), ..StartRequest::default() };
        let answer = self.containerd.client().tasks().start(request(start)).await;
        answer.map(drop).with_context(|| format!("could not start the task `{}`", self.id))
    }

    async fn wait(&self) -> Result<u32> {
        let wait = WaitRequest { container_id: self.id.clone(), ..WaitRequest::default() };
        Ok(self.containerd.client().tasks().wait(request(wait)).await?.into_inner().exit_status)
    }

    async fn delete(&self) -> Result<()> {
        let delete = DeleteTaskRequest { container_id: self.id.clone() };
        let answer = self.containerd.client().tasks().delete(request(delete)).await;
        answer.map(drop).with_context(|| format!("could not delete the task `{}`", self.id))
    }

    async fn remove(self) -> Result<()> {
        std::fs::remove_file(&self.output)?;
        forget(self.containerd, &self.id).await
    }
}

impl Running<'_> {
    /// Kills it and removes it.
    ///
    /// # Errors
    /// When a step fails.
    pub(crate) async fn end(self) -> Result<()> {
        let kill = KillRequest { container_id: self.0.id.clone(), signal: 9, ..KillRequest::default() };
        self.0.containerd.client().tasks().kill(request(kill)).await?;
        self.0.wait().await?;
        self.0.delete().await?;
        self.0.remove().await
    }

    /// What it has said so far, waiting for the first byte.
    ///
    /// # Errors
    /// When it says nothing for too long.
    pub(crate) fn id(&self) -> &str {
        &self.0.id
    }
}

/// Removes the metadata and the snapshot of a container without task.
///
/// # Errors
/// When containerd refuses.
pub(crate) async fn forget(containerd: &Containerd, id: &str) -> Result<()> {
    containerd.client().containers().delete(request(DeleteContainerRequest { id: id.into() })).await?;
    let remove = RemoveSnapshotRequest { snapshotter: SNAPSHOTTER.into(), key: id.into() };
    containerd.client().snapshots().remove(request(remove)).await?;
    Ok(())
}

fn milliseconds(duration: Duration) -> f64 {
    duration.as_secs_f64() * 1000.0
}
