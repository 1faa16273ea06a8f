//! One container's life through containerd's API, with a clock beside it.

use std::fs::{File, OpenOptions};
use std::io::{self, Read};
use std::os::unix::fs::OpenOptionsExt;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use containerd_client::services::v1::snapshots::{PrepareSnapshotRequest, RemoveSnapshotRequest};
use containerd_client::services::v1::{
    Container, CreateContainerRequest, CreateTaskRequest, DeleteContainerRequest, DeleteTaskRequest, GetRequest,
    KillRequest, StartRequest, UpdateTaskRequest, WaitRequest,
};
use containerd_client::types::Mount;
use nix::sys::stat::Mode;
use nix::unistd::mkfifo;
use prost_types::Any;
use serde_json::json;
use tokio::net::unix::pipe;

use crate::containerd::{Containerd, request};
use crate::image::Image;
use crate::spec::{Network, spec};
use crate::target::Target;

const SNAPSHOTTER: &str = "overlayfs";
const PATIENCE: Duration = Duration::from_secs(60);
const OFTEN: Duration = Duration::from_millis(2);
const SPEC_TYPE: &str = "types.containerd.io/opencontainers/runtime-spec/1/Spec";
const RESOURCES_TYPE: &str = "types.containerd.io/opencontainers/runtime-spec/1/LinuxResources";

/// What is to run.
pub(crate) struct Plan<'a> {
    pub(crate) target: Target,
    pub(crate) image: &'a Image,
    pub(crate) arguments: Vec<String>,
    pub(crate) environment: Vec<String>,
    pub(crate) network: Network,
    /// The memory limit; none for no limit.
    pub(crate) limit_bytes: Option<u64>,
    /// The host's directories that it sees read-only, under their own names.
    pub(crate) folders: Vec<PathBuf>,
}

impl<'a> Plan<'a> {
    /// The image's program, without anything else.
    pub(crate) fn new(target: Target, image: &'a Image) -> Self {
        Self {
            target,
            image,
            arguments: Vec::new(),
            environment: Vec::new(),
            network: Network::Own,
            limit_bytes: None,
            folders: Vec::new(),
        }
    }
}

/// When the steps of one container were done. A request is sent as soon as the step before it is done.
#[derive(Clone, Copy)]
pub(crate) struct Moments {
    /// The request of Create is sent.
    pub(crate) begun: Instant,
    pub(crate) created: Instant,
    /// Start's reply.
    pub(crate) started: Instant,
    /// Its output holds something.
    pub(crate) spoke: Instant,
    /// Wait's reply.
    pub(crate) ended: Instant,
    pub(crate) deleted: Instant,
    /// Its process.
    pub(crate) pid: u32,
}

/// A container with metadata and a snapshot, but without a task.
pub(crate) struct Prepared<'a> {
    containerd: &'a Containerd,
    id: String,
    rootfs: Vec<Mount>,
    output: PathBuf,
    errors: PathBuf,
}

/// A container whose task runs.
pub(crate) struct Running<'a> {
    container: Prepared<'a>,
    /// Open while it runs: a writer without a reader would be killed.
    stdio: [File; 2],
}

/// Makes the snapshot and the metadata of the container.
///
/// # Errors
/// When containerd refuses.
pub(crate) async fn prepare<'a>(containerd: &'a Containerd, id: String, plan: &Plan<'_>) -> Result<Prepared<'a>> {
    let spec = spec(&containerd.group().path_of(&id), plan);
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
    // The metadata comes first: a snapshot without a reference may be collected as garbage.
    containerd.client().containers().create(request(CreateContainerRequest { container: Some(container) })).await?;
    let rootfs = containerd.client().snapshots().prepare(request(snapshot)).await?.into_inner().mounts;
    let output = containerd.directory().join(format!("{id}.out"));
    let errors = containerd.directory().join(format!("{id}.err"));
    for fifo in [&output, &errors] {
        mkfifo(fifo, Mode::from_bits_truncate(0o600))?;
    }
    Ok(Prepared { containerd, id, rootfs, output, errors })
}

impl<'a> Prepared<'a> {
    /// Runs it to its end and removes it.
    ///
    /// # Errors
    /// When a step fails, the exit status is not 0 or the output is not what is expected.
    pub(crate) async fn run(self, expected: &str) -> Result<Moments> {
        let id = self.id.clone();
        let (moments, said) = self.live().await?;
        ensure!(said == expected, "`{id}` said `{said}`");
        Ok(moments)
    }

    /// Runs it to its end, removes it and returns its output.
    ///
    /// # Errors
    /// When a step fails or the exit status is not 0.
    pub(crate) async fn output(self) -> Result<String> {
        Ok(self.live().await?.1)
    }

    async fn live(self) -> Result<(Moments, String)> {
        let [mut output, mut errors] = self.open_stdio()?;
        let readable = pipe::Receiver::from_file(output.try_clone()?)?;
        let begun = Instant::now();
        let pid = self.create().await?;
        let created = Instant::now();
        let life = async {
            self.start().await?;
            let started = Instant::now();
            Ok::<_, anyhow::Error>((started, self.wait().await?, Instant::now()))
        };
        let speech = async {
            // What fails without a word is reported below.
            tokio::time::timeout(PATIENCE, readable.readable()).await.unwrap_or(Ok(()))?;
            Ok(Instant::now())
        };
        let ((started, status, ended), spoke) = tokio::try_join!(life, speech)?;
        self.delete().await?;
        let deleted = Instant::now();
        let (said, complained) = (said(&mut output), said(&mut errors));
        ensure!(status == 0, "`{}` ended with {status} and said `{said}{complained}`", self.id);
        self.remove().await?;
        Ok((Moments { begun, created, started, spoke, ended, deleted, pid }, said))
    }

    /// Starts it and waits for its first line. It keeps running.
    ///
    /// # Errors
    /// When a step fails, or it does not print the line.
    pub(crate) async fn begin(self, first_line: &str) -> Result<Running<'a>> {
        let mut stdio = self.open_stdio()?;
        self.create().await?;
        self.start().await?;
        let heard = async {
            while !first_line.is_empty() && said(&mut stdio[0]).is_empty() {
                tokio::time::sleep(OFTEN).await;
            }
        };
        if tokio::time::timeout(PATIENCE, heard).await.is_err() {
            bail!("`{}` does not say `{first_line}` but `{}`", self.id, said(&mut stdio[1]));
        }
        Ok(Running { container: self, stdio })
    }

    /// Open for reading and writing, so that no open blocks and no end is reported.
    fn open_stdio(&self) -> Result<[File; 2]> {
        let mut options = OpenOptions::new();
        options.read(true).write(true).custom_flags(nix::libc::O_NONBLOCK);
        Ok([options.open(&self.output)?, options.open(&self.errors)?])
    }

    /// Returns the pid of its process.
    async fn create(&self) -> Result<u32> {
        let create = CreateTaskRequest {
            container_id: self.id.clone(),
            rootfs: self.rootfs.clone(),
            stdout: self.output.display().to_string(),
            stderr: self.errors.display().to_string(),
            ..CreateTaskRequest::default()
        };
        let answer = self.containerd.client().tasks().create(request(create)).await;
        let answer = answer.with_context(|| format!("cannot create the task `{}`", self.id))?;
        Ok(answer.into_inner().pid)
    }

    async fn start(&self) -> Result<()> {
        let start = StartRequest { container_id: self.id.clone(), ..StartRequest::default() };
        let answer = self.containerd.client().tasks().start(request(start)).await;
        answer.map(drop).with_context(|| format!("cannot start the task `{}`", self.id))
    }

    async fn wait(&self) -> Result<u32> {
        let wait = WaitRequest { container_id: self.id.clone(), ..WaitRequest::default() };
        Ok(self.containerd.client().tasks().wait(request(wait)).await?.into_inner().exit_status)
    }

    async fn delete(&self) -> Result<()> {
        let delete = DeleteTaskRequest { container_id: self.id.clone() };
        let answer = self.containerd.client().tasks().delete(request(delete)).await;
        answer.map(drop).with_context(|| format!("cannot delete the task `{}`", self.id))
    }

    async fn remove(self) -> Result<()> {
        for fifo in [&self.output, &self.errors] {
            std::fs::remove_file(fifo)?;
        }
        forget(self.containerd, &self.id).await
    }
}

impl Running<'_> {
    /// Its identifier.
    pub(crate) fn id(&self) -> &str {
        &self.container.id
    }

    /// Its process.
    ///
    /// # Errors
    /// When it has ended.
    pub(crate) async fn process(&self) -> Result<u32> {
        let get = GetRequest { container_id: self.container.id.clone(), ..GetRequest::default() };
        let answer = self.container.containerd.client().tasks().get(request(get)).await?.into_inner();
        Ok(answer.process.with_context(|| format!("`{}` has no process", self.id()))?.pid)
    }

    /// The file that holds its memory limit.
    pub(crate) fn memory_limit_file(&self) -> PathBuf {
        self.container.containerd.group().memory_limit_file(self.id())
    }

    /// The moment at which it prints something more.
    ///
    /// # Errors
    /// When it prints nothing.
    pub(crate) async fn speaks(&self) -> Result<Instant> {
        let output = pipe::Receiver::from_file(self.stdio[0].try_clone()?)?;
        let mut byte = [0];
        let heard = async {
            loop {
                output.readable().await?;
                match output.try_read(&mut byte) {
                    Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                    read => return read.map(|_| Instant::now()),
                }
            }
        };
        Ok(tokio::time::timeout(PATIENCE, heard).await.with_context(|| format!("`{}` stays silent", self.id()))??)
    }

    /// Changes its memory limit through containerd.
    ///
    /// # Errors
    /// When containerd refuses.
    pub(crate) async fn update(&self, limit_bytes: u64) -> Result<()> {
        let resources = json!({"memory": {"limit": limit_bytes}}).to_string().into_bytes();
        let update = UpdateTaskRequest {
            container_id: self.container.id.clone(),
            resources: Some(Any { type_url: RESOURCES_TYPE.into(), value: resources }),
            ..UpdateTaskRequest::default()
        };
        let answer = self.container.containerd.client().tasks().update(request(update)).await;
        answer.map(drop).with_context(|| format!("cannot update the task `{}`", self.container.id))
    }

    /// Kills it and removes it.
    ///
    /// # Errors
    /// When a step fails.
    pub(crate) async fn end(self) -> Result<()> {
        let Self { container, stdio } = self;
        let kill = KillRequest { container_id: container.id.clone(), signal: 9, ..KillRequest::default() };
        container.containerd.client().tasks().kill(request(kill)).await?;
        container.wait().await?;
        container.delete().await?;
        drop(stdio);
        container.remove().await
    }
}

/// Removes the metadata and the snapshot of a container without a task.
///
/// # Errors
/// When containerd refuses.
pub(crate) async fn forget(containerd: &Containerd, id: &str) -> Result<()> {
    // The snapshot comes first, while there is a reference to it; afterwards it may be gone.
    let remove = RemoveSnapshotRequest { snapshotter: SNAPSHOTTER.into(), key: id.into() };
    containerd.client().snapshots().remove(request(remove)).await?;
    containerd.client().containers().delete(request(DeleteContainerRequest { id: id.into() })).await?;
    Ok(())
}

/// What is in the fifo; nothing when it is empty.
fn said(fifo: &mut File) -> String {
    let mut bytes = vec![0; 4096];
    let length = fifo.read(&mut bytes).unwrap_or(0);
    String::from_utf8_lossy(&bytes[..length]).into_owned()
}

/// A duration in the report's unit.
pub(crate) fn milliseconds(duration: Duration) -> f64 {
    duration.as_secs_f64() * 1000.0
}
