//! The Task service: requests in, replies out. What they mean is left to the pod.
//!
//! Every call is implemented here by hand: a generated default would return `not found`, which containerd takes for a task
//! that is gone. What changes something runs in a task of its own: the server drops a handler when its time is over, but
//! a container that is half made must still be finished or undone.

use std::path::Path;
use std::sync::Arc;

use async_trait::async_trait;
use containerd_shim::protos::api::{
    CheckpointTaskRequest, CloseIORequest, ConnectRequest, ConnectResponse, CreateTaskRequest, CreateTaskResponse,
    DeleteRequest, DeleteResponse, Empty, ExecProcessRequest, KillRequest, PauseRequest, PidsRequest, PidsResponse,
    ResizePtyRequest, ResumeRequest, ShutdownRequest, StartRequest, StartResponse, StateRequest, StateResponse,
    StatsRequest, StatsResponse, UpdateTaskRequest, WaitRequest, WaitResponse,
};
use containerd_shim::protos::shim_async::Task;
use containerd_shim::protos::ttrpc::asynchronous::TtrpcContext;
use protobuf::EnumOrUnknown;
use tokio::sync::Notify;

use crate::containerd::wire::{timestamp, unsigned};
use crate::containerd::{metrics, options, wire};
use crate::error::{Context, Error, Kind, Result};
use crate::pod::Pod;
use crate::request::{CreateRequest, StdioPaths};

/// The service of one pod.
pub(super) struct TaskService {
    pod: Arc<Pod>,
    /// Notified once containerd has no more use for the shim.
    done: Arc<Notify>,
}

impl TaskService {
    pub(super) fn new(pod: Arc<Pod>, done: Arc<Notify>) -> Self {
        Self { pod, done }
    }
}

/// Runs `work` to its end, whatever becomes of the request. It is the `step` of a container.
pub(super) async fn to_the_end<T: Send + 'static>(
    step: &str,
    container: &str,
    work: impl Future<Output = Result<T>> + Send + 'static,
) -> ttrpc::Result<T> {
    let result = tokio::spawn(work).await;
    let result = result.doing(|| "a task of the shim ended early".into()).and_then(|result| result);
    if let Err(error) = &result {
        let text = crate::error::chain(error);
        match error.kind() {
            Kind::Host | Kind::Invalid | Kind::Unsupported => log::error!(container, step; "{text}"),
            // containerd asks for what has ended meanwhile.
            Kind::NotFound | Kind::Exists | Kind::Conflict => log::info!(container, step; "{text}"),
        }
    }
    Ok(result?)
}

#[async_trait]
impl Task for TaskService {
    async fn create(&self, _context: &TtrpcContext, request: CreateTaskRequest) -> ttrpc::Result<CreateTaskResponse> {
        let pod = self.pod.clone();
        let id = request.id.clone();
        let pid = to_the_end("create", &id, async move { pod.create(create_request(request)?).await }).await?;
        Ok(CreateTaskResponse { pid: unsigned(pid), ..CreateTaskResponse::default() })
    }

    async fn start(&self, _context: &TtrpcContext, request: StartRequest) -> ttrpc::Result<StartResponse> {
        let container = self.pod.container(&request.id)?;
        let id = request.id.clone();
        let pid = to_the_end("start", &id, async move {
            if request.exec_id.is_empty() {
                container.start().await
            } else {
                container.start_exec(&request.exec_id).await
            }
        })
        .await?;
        Ok(StartResponse { pid: unsigned(pid), ..StartResponse::default() })
    }

    async fn delete(&self, _context: &TtrpcContext, request: DeleteRequest) -> ttrpc::Result<DeleteResponse> {
        let pod = self.pod.clone();
        let id = request.id.clone();
        let deleted = to_the_end("delete", &id, async move { pod.delete(&request.id, &request.exec_id).await }).await?;
        Ok(DeleteResponse {
            pid: unsigned(deleted.pid),
            exit_status: unsigned(deleted.exit.code),
            exited_at: Some(timestamp(deleted.exit.at)).into(),
            ..DeleteResponse::default()
        })
    }

    async fn state(&self, _context: &TtrpcContext, request: StateRequest) -> ttrpc::Result<StateResponse> {
        let (container, process) = self.pod.process(&request.id, &request.exec_id)?;
        let state = process.state();
        let mut response = StateResponse {
            id: container.id.clone(),
            bundle: container.bundle.to_string_lossy().into_owned(),
            pid: unsigned(process.pid()),
            status: EnumOrUnknown::new(wire::status(state)),
            stdin: process.stdio.stdin.clone(),
            stdout: process.stdio.stdout.clone(),
            stderr: process.stdio.stderr.clone(),
            terminal: process.stdio.terminal,
            exec_id: request.exec_id,
            ..StateResponse::default()
        };
        if let Some(exit) = state.exit() {
            response.exit_status = unsigned(exit.code);
            response.exited_at = Some(timestamp(exit.at)).into();
        }
        Ok(response)
    }

    async fn wait(&self, _context: &TtrpcContext, request: WaitRequest) -> ttrpc::Result<WaitResponse> {
        let (_, process) = self.pod.process(&request.id, &request.exec_id)?;
        let exit = process.wait().await?;
        Ok(WaitResponse {
            exit_status: unsigned(exit.code),
            exited_at: Some(timestamp(exit.at)).into(),
            ..WaitResponse::default()
        })
    }

    async fn kill(&self, _context: &TtrpcContext, request: KillRequest) -> ttrpc::Result<Empty> {
        let (container, process) = self.pod.process(&request.id, &request.exec_id)?;
        let signal = i32::try_from(request.signal).unwrap_or(i32::MAX);
        to_the_end("kill", &request.id, async move { container.kill(&process, signal, request.all).await }).await?;
        Ok(Empty::default())
    }

    async fn pids(&self, _context: &TtrpcContext, request: PidsRequest) -> ttrpc::Result<PidsResponse> {
        let pids = self.pod.container(&request.id)?.pids()?;
        let processes =
            pids.into_iter().map(|(pid, exec_id)| wire::process_info(pid, exec_id)).collect::<Result<_>>()?;
        Ok(PidsResponse { processes, ..PidsResponse::default() })
    }

    async fn pause(&self, _context: &TtrpcContext, request: PauseRequest) -> ttrpc::Result<Empty> {
        let container = self.pod.container(&request.id)?;
        to_the_end("pause", &request.id, async move { container.pause().await }).await?;
        Ok(Empty::default())
    }

    async fn resume(&self, _context: &TtrpcContext, request: ResumeRequest) -> ttrpc::Result<Empty> {
        let container = self.pod.container(&request.id)?;
        to_the_end("resume", &request.id, async move { container.resume().await }).await?;
        Ok(Empty::default())
    }

    async fn checkpoint(&self, _context: &TtrpcContext, request: CheckpointTaskRequest) -> ttrpc::Result<Empty> {
        let container = self.pod.container(&request.id)?;
        let options = wire::checkpoint_options(&request.options.value)?;
        to_the_end(
            "checkpoint",
            &request.id,
            async move { container.checkpoint(Path::new(&request.path), &options).await },
        )
        .await?;
        Ok(Empty::default())
    }

    async fn exec(&self, _context: &TtrpcContext, request: ExecProcessRequest) -> ttrpc::Result<Empty> {
        let container = self.pod.container(&request.id)?;
        if !wire::is_name(&request.exec_id) {
            return Err(Error::invalid(format!("`{}` is not a valid exec id", request.exec_id)).into());
        }
        let spec = serde_json::from_slice(&request.spec.value)
            .map_err(|error| Error::invalid(format!("cannot parse the specification of the process: {error}")))?;
        let stdio = StdioPaths {
            stdin: request.stdin,
            stdout: request.stdout,
            stderr: request.stderr,
            terminal: request.terminal,
        };
        container.add_exec(&request.exec_id, stdio, spec)?;
        Ok(Empty::default())
    }

    async fn resize_pty(&self, _context: &TtrpcContext, request: ResizePtyRequest) -> ttrpc::Result<Empty> {
        let (container, process) = self.pod.process(&request.id, &request.exec_id)?;
        let characters = |number| u16::try_from(number).unwrap_or(u16::MAX);
        container.resize(&process, characters(request.width), characters(request.height))?;
        Ok(Empty::default())
    }

    async fn close_io(&self, _context: &TtrpcContext, request: CloseIORequest) -> ttrpc::Result<Empty> {
        let (_, process) = self.pod.process(&request.id, &request.exec_id)?;
        if request.stdin {
            process.close_stdin();
        }
        Ok(Empty::default())
    }

    async fn update(&self, _context: &TtrpcContext, request: UpdateTaskRequest) -> ttrpc::Result<Empty> {
        let container = self.pod.container(&request.id)?;
        let resources = serde_json::from_slice(&request.resources.value)
            .map_err(|error| Error::invalid(format!("cannot parse the resources: {error}")))?;
        to_the_end("update", &request.id, async move { container.update(resources).await }).await?;
        Ok(Empty::default())
    }

    async fn stats(&self, _context: &TtrpcContext, request: StatsRequest) -> ttrpc::Result<StatsResponse> {
        let cgroup = self.pod.container(&request.id)?.cgroup()?;
        let stats = metrics::collect(&cgroup);
        let stats = stats.doing(|| format!("cannot read the metrics of container `{}`", request.id))?;
        Ok(StatsResponse { stats: Some(stats).into(), ..StatsResponse::default() })
    }

    async fn connect(&self, _context: &TtrpcContext, request: ConnectRequest) -> ttrpc::Result<ConnectResponse> {
        // A shim whose container is gone, or not there yet, also answers: it is alive.
        let task_pid = self.pod.container(&request.id).map_or(0, |container| container.init.pid());
        Ok(ConnectResponse {
            shim_pid: std::process::id(),
            task_pid: unsigned(task_pid),
            version: env!("CARGO_PKG_VERSION").into(),
            ..ConnectResponse::default()
        })
    }

    async fn shutdown(&self, _context: &TtrpcContext, request: ShutdownRequest) -> ttrpc::Result<Empty> {
        let (pod, done, id) = (self.pod.clone(), self.done.clone(), request.id.clone());
        to_the_end("shut down", &request.id, async move {
            if request.now || pod.is_over(&id).await {
                done.notify_one();
            }
            Ok(())
        })
        .await?;
        Ok(Empty::default())
    }
}

fn create_request(request: CreateTaskRequest) -> Result<CreateRequest> {
    Ok(CreateRequest {
        id: request.id,
        bundle: request.bundle.into(),
        rootfs: request.rootfs.into_iter().map(wire::from_mount).collect(),
        stdio: StdioPaths {
            stdin: request.stdin,
            stdout: request.stdout,
            stderr: request.stderr,
            terminal: request.terminal,
        },
        checkpoint: request.checkpoint,
        settings: options::decode(request.options.as_ref())?,
    })
}
