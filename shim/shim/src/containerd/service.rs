//! The Task service, under the names of its versions 2 and 3: requests in, answers out.
//!
//! Every call is answered here by hand: a generated default would answer `not found`, which containerd takes for a task
//! that is gone. What changes something runs in a task of its own: the server drops a handler when its time is over, and
//! a container half made must be finished or undone all the same.

use std::collections::HashMap;
use std::os::unix::net::UnixListener;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use containerd_shim::protos::api::{
    CheckpointTaskRequest, CloseIORequest, ConnectRequest, ConnectResponse, CreateTaskRequest, CreateTaskResponse,
    DeleteRequest, DeleteResponse, Empty, ExecProcessRequest, KillRequest, PauseRequest, PidsRequest, PidsResponse,
    ProcessInfo, ResizePtyRequest, ResumeRequest, ShutdownRequest, StartRequest, StartResponse, StateRequest,
    StateResponse, StatsRequest, StatsResponse, Status, UpdateTaskRequest, WaitRequest, WaitResponse,
};
use containerd_shim::protos::shim::oci::{CheckpointOptions, ProcessDetails};
use containerd_shim::protos::shim_async::{Task, create_task};
use containerd_shim::protos::ttrpc::asynchronous::transport::Listener;
use containerd_shim::protos::ttrpc::asynchronous::{Server, Service, TtrpcContext};
use protobuf::well_known_types::any::Any;
use protobuf::{EnumOrUnknown, Message};
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::Notify;

use crate::containerd::publisher::Publisher;
use crate::containerd::time::timestamp;
use crate::error::{Context, Error, Kind, Result};
use crate::host::compile::finish_for_others;
use crate::host::namespaces::Holder;
use crate::host::orphans;
use crate::host::stdio::StdioPaths;
use crate::pod::state::State;
use crate::pod::{CreateRequest, Identity, Pod, unsigned};

const VERSION_3: &str = "containerd.task.v3.Task";
const VERSION_2: &str = "containerd.task.v2.Task";
/// How long the shim waits at its end for connections to close.
const DISCONNECT_LIMIT: Duration = Duration::from_millis(300);
/// How long the shim waits at its end for events to be taken.
const FLUSH_LIMIT: Duration = Duration::from_secs(5);

/// Serves at `listener` until containerd shuts the shim down or a signal ends it.
pub(crate) async fn serve(listener: UnixListener, identity: Identity, events: String, holder: Holder) -> Result<()> {
    let publisher = Publisher::start(events, identity.namespace.clone());
    let socket = identity.socket.clone();
    let done = Arc::new(Notify::new());
    let pod = Arc::new(Pod::new(identity, publisher.clone(), holder));
    let tasks = TaskService { pod, done: done.clone() };
    tokio::spawn(orphans::reap());
    listener.set_nonblocking(true).doing(|| "cannot use the socket".into())?;
    let listener = tokio::net::UnixListener::from_std(listener).doing(|| "cannot use the socket".into())?;
    let listener = Listener::from(listener);
    let mut server = Server::new().add_listener(listener).register_service(services(Arc::new(tasks)));
    server.start().await.doing(|| "cannot serve".into())?;
    let mut signals = Signals::new()?;
    tokio::select! {
        () = done.notified() => {}
        name = signals.next() => log::info!("ended by {name}"),
    }
    let path = socket.strip_prefix("unix://").unwrap_or(&socket);
    let removed = std::fs::remove_file(path).doing(|| format!("cannot remove the socket `{path}`"));
    // Answers under way are sent; a containerd that keeps its connection open is not waited for.
    if tokio::time::timeout(DISCONNECT_LIMIT, server.disconnect()).await.is_err() {
        log::debug!("a connection was still open at the end");
    }
    publisher.flush(FLUSH_LIMIT).await;
    // The pod is gone for everybody; only who waits for the same code is still helped.
    tokio::select! {
        () = finish_for_others() => {}
        name = signals.next() => log::info!("ended by {name}"),
    }
    removed
}

/// The signals that end the shim.
struct Signals {
    terminate: Signal,
    interrupt: Signal,
}

impl Signals {
    fn new() -> Result<Self> {
        let watch = |kind| signal(kind).doing(|| "cannot wait for signals".into());
        Ok(Self { terminate: watch(SignalKind::terminate())?, interrupt: watch(SignalKind::interrupt())? })
    }

    /// The name of the next one.
    async fn next(&mut self) -> &'static str {
        tokio::select! {
            _ = self.terminate.recv() => "SIGTERM",
            _ = self.interrupt.recv() => "SIGINT",
        }
    }
}

/// The one service under both names: their messages are the same.
fn services(tasks: Arc<TaskService>) -> HashMap<String, Service> {
    let mut services = create_task(tasks.clone());
    if let Some(service) = create_task(tasks).remove(VERSION_3) {
        services.insert(VERSION_2.into(), service);
    }
    services
}

struct TaskService {
    pod: Arc<Pod>,
    done: Arc<Notify>,
}

/// Runs `work` to its end, whatever becomes of the request.
async fn to_the_end<T: Send + 'static>(work: impl Future<Output = Result<T>> + Send + 'static) -> ttrpc::Result<T> {
    let result = tokio::spawn(work).await;
    let result = result.doing(|| "a task of the shim ended early".into()).and_then(|result| result);
    if let Err(error) = &result
        && error.kind() == Kind::Host
    {
        log::error!("{}", crate::error::chain(error));
    }
    Ok(result?)
}

#[async_trait]
impl Task for TaskService {
    async fn create(&self, _context: &TtrpcContext, request: CreateTaskRequest) -> ttrpc::Result<CreateTaskResponse> {
        let pod = self.pod.clone();
        let request = CreateRequest {
            id: request.id,
            bundle: request.bundle.into(),
            rootfs: request.rootfs,
            stdio: StdioPaths {
                stdin: request.stdin,
                stdout: request.stdout,
                stderr: request.stderr,
                terminal: request.terminal,
            },
            checkpoint: request.checkpoint,
            options: request.options.into_option(),
        };
        let pid = to_the_end(async move { pod.create(request).await }).await?;
        Ok(CreateTaskResponse { pid: unsigned(pid), ..CreateTaskResponse::default() })
    }

    async fn start(&self, _context: &TtrpcContext, request: StartRequest) -> ttrpc::Result<StartResponse> {
        let container = self.pod.container(&request.id)?;
        let pid = to_the_end(async move {
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
        let deleted = to_the_end(async move { pod.delete(&request.id, &request.exec_id).await }).await?;
        Ok(DeleteResponse {
            pid: unsigned(deleted.pid),
            exit_status: unsigned(deleted.exit.code),
            exited_at: Some(timestamp(deleted.exit.at)).into(),
            ..DeleteResponse::default()
        })
    }

    async fn state(&self, _context: &TtrpcContext, request: StateRequest) -> ttrpc::Result<StateResponse> {
        let (container, member) = self.pod.member(&request.id, &request.exec_id)?;
        let state = member.state();
        let mut response = StateResponse {
            id: container.id.clone(),
            bundle: container.bundle.to_string_lossy().into_owned(),
            pid: unsigned(member.pid()),
            status: EnumOrUnknown::new(status_of(state)),
            stdin: member.stdio.stdin.clone(),
            stdout: member.stdio.stdout.clone(),
            stderr: member.stdio.stderr.clone(),
            terminal: member.stdio.terminal,
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
        let (_, member) = self.pod.member(&request.id, &request.exec_id)?;
        let exit = member.wait().await?;
        Ok(WaitResponse {
            exit_status: unsigned(exit.code),
            exited_at: Some(timestamp(exit.at)).into(),
            ..WaitResponse::default()
        })
    }

    async fn kill(&self, _context: &TtrpcContext, request: KillRequest) -> ttrpc::Result<Empty> {
        let (container, member) = self.pod.member(&request.id, &request.exec_id)?;
        let signal = i32::try_from(request.signal).unwrap_or(i32::MAX);
        to_the_end(async move { container.kill(&member, signal, request.all).await }).await?;
        Ok(Empty::default())
    }

    async fn pids(&self, _context: &TtrpcContext, request: PidsRequest) -> ttrpc::Result<PidsResponse> {
        let pids = self.pod.container(&request.id)?.pids()?;
        let processes = pids.into_iter().map(|(pid, exec_id)| process_info(pid, exec_id)).collect::<Result<_>>()?;
        Ok(PidsResponse { processes, ..PidsResponse::default() })
    }

    async fn pause(&self, _context: &TtrpcContext, request: PauseRequest) -> ttrpc::Result<Empty> {
        let container = self.pod.container(&request.id)?;
        to_the_end(async move { container.pause().await }).await?;
        Ok(Empty::default())
    }

    async fn resume(&self, _context: &TtrpcContext, request: ResumeRequest) -> ttrpc::Result<Empty> {
        let container = self.pod.container(&request.id)?;
        to_the_end(async move { container.resume().await }).await?;
        Ok(Empty::default())
    }

    async fn checkpoint(&self, _context: &TtrpcContext, request: CheckpointTaskRequest) -> ttrpc::Result<Empty> {
        let container = self.pod.container(&request.id)?;
        let options = CheckpointOptions::parse_from_bytes(&request.options.value)
            .map_err(|error| Error::invalid(format!("the options are not understood: {error}")))?;
        to_the_end(async move { container.checkpoint(Path::new(&request.path), &options).await }).await?;
        Ok(Empty::default())
    }

    async fn exec(&self, _context: &TtrpcContext, request: ExecProcessRequest) -> ttrpc::Result<Empty> {
        let container = self.pod.container(&request.id)?;
        if !is_exec_id(&request.exec_id) {
            return Err(Error::invalid(format!("`{}` is not an id for a process", request.exec_id)).into());
        }
        let spec = serde_json::from_slice(&request.spec.value)
            .map_err(|error| Error::invalid(format!("the process's specification is not understood: {error}")))?;
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
        let (container, member) = self.pod.member(&request.id, &request.exec_id)?;
        let characters = |number| u16::try_from(number).unwrap_or(u16::MAX);
        container.resize(&member, characters(request.width), characters(request.height))?;
        Ok(Empty::default())
    }

    async fn close_io(&self, _context: &TtrpcContext, request: CloseIORequest) -> ttrpc::Result<Empty> {
        let (_, member) = self.pod.member(&request.id, &request.exec_id)?;
        if request.stdin {
            member.close_stdin();
        }
        Ok(Empty::default())
    }

    async fn update(&self, _context: &TtrpcContext, request: UpdateTaskRequest) -> ttrpc::Result<Empty> {
        let container = self.pod.container(&request.id)?;
        let resources = serde_json::from_slice(&request.resources.value)
            .map_err(|error| Error::invalid(format!("the resources are not understood: {error}")))?;
        to_the_end(async move { container.update(resources).await }).await?;
        Ok(Empty::default())
    }

    async fn stats(&self, _context: &TtrpcContext, request: StatsRequest) -> ttrpc::Result<StatsResponse> {
        let stats = self.pod.container(&request.id)?.stats()?;
        Ok(StatsResponse { stats: Some(stats).into(), ..StatsResponse::default() })
    }

    async fn connect(&self, _context: &TtrpcContext, request: ConnectRequest) -> ttrpc::Result<ConnectResponse> {
        // Also a shim whose container is gone, or not there yet, answers: it is alive.
        let task_pid = self.pod.container(&request.id).map_or(0, |container| container.init.pid());
        Ok(ConnectResponse {
            shim_pid: std::process::id(),
            task_pid: unsigned(task_pid),
            version: env!("CARGO_PKG_VERSION").into(),
            ..ConnectResponse::default()
        })
    }

    async fn shutdown(&self, _context: &TtrpcContext, request: ShutdownRequest) -> ttrpc::Result<Empty> {
        if request.now || self.pod.is_over(&request.id).await {
            self.done.notify_one();
        }
        Ok(Empty::default())
    }
}

fn status_of(state: State) -> Status {
    match state {
        State::Added | State::Created => Status::CREATED,
        State::Running => Status::RUNNING,
        State::Paused => Status::PAUSED,
        State::Stopped(_) => Status::STOPPED,
    }
}

fn process_info(pid: i32, exec_id: String) -> Result<ProcessInfo> {
    let mut info = ProcessInfo { pid: unsigned(pid), ..ProcessInfo::default() };
    if !exec_id.is_empty() {
        let details = ProcessDetails { exec_id, ..ProcessDetails::default() };
        info.info = Some(Any {
            type_url: "containerd.runc.v1.ProcessDetails".into(),
            value: details.write_to_bytes().doing(|| "cannot encode the answer".into())?,
            ..Any::default()
        })
        .into();
    }
    Ok(info)
}

/// Whether `id` can name a file.
fn is_exec_id(id: &str) -> bool {
    !id.is_empty() && Path::new(id).file_name().is_some_and(|name| name == id)
}
