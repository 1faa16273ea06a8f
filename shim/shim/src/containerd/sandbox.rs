//! The Sandbox service, for runtimes with `sandboxer = "shim"`: requests in, replies out. What they mean is left to the pod.
//!
//! As in the Task service, every call is implemented by hand and what changes something is done to the end.

use std::collections::HashMap;
use std::sync::{Arc, OnceLock};
use std::time::SystemTime;

use async_trait::async_trait;
use containerd_shim::protos::sandbox_api::{
    CreateSandboxRequest, CreateSandboxResponse, PingRequest, PingResponse, PlatformRequest, PlatformResponse,
    SandboxMetricsRequest, SandboxMetricsResponse, SandboxStatusRequest, SandboxStatusResponse, ShutdownSandboxRequest,
    ShutdownSandboxResponse, StartSandboxRequest, StartSandboxResponse, StopSandboxRequest, StopSandboxResponse,
    WaitSandboxRequest, WaitSandboxResponse,
};
use containerd_shim::protos::sandbox_async::Sandbox;
use containerd_shim::protos::ttrpc::asynchronous::TtrpcContext;
use containerd_shim::protos::types::platform::Platform;
use tokio::sync::Notify;

use crate::containerd::task::to_the_end;
use crate::containerd::wire::{self, timestamp, unsigned};
use crate::containerd::{metrics, pod_config};
use crate::error::{Context, Error, Kind, Result};
use crate::pod::Pod;
use crate::pod::state::State;

/// What the processor is called in image specifications.
const ARCHITECTURE: &str = if cfg!(target_arch = "x86_64") { "amd64" } else { "arm64" };

/// The service of one pod.
pub(super) struct SandboxService {
    pod: Arc<Pod>,
    /// When the sandbox was made.
    created_at: Arc<OnceLock<SystemTime>>,
    /// Notified once containerd has no more use for the shim.
    done: Arc<Notify>,
}

impl SandboxService {
    pub(super) fn new(pod: Arc<Pod>, done: Arc<Notify>) -> Self {
        Self { pod, created_at: Arc::default(), done }
    }

    fn created_at(&self) -> SystemTime {
        self.created_at.get().copied().unwrap_or(SystemTime::UNIX_EPOCH)
    }
}

#[async_trait]
impl Sandbox for SandboxService {
    async fn create_sandbox(
        &self,
        _context: &TtrpcContext,
        request: CreateSandboxRequest,
    ) -> ttrpc::Result<CreateSandboxResponse> {
        let (pod, created_at) = (self.pod.clone(), self.created_at.clone());
        let id = request.sandbox_id.clone();
        to_the_end("create sandbox", &id, async move {
            create(&pod, request).await?;
            created_at.get_or_init(SystemTime::now);
            Ok(())
        })
        .await?;
        Ok(CreateSandboxResponse::default())
    }

    async fn start_sandbox(
        &self,
        _context: &TtrpcContext,
        request: StartSandboxRequest,
    ) -> ttrpc::Result<StartSandboxResponse> {
        let sandbox = self.pod.sandbox(&request.sandbox_id)?;
        let pid = to_the_end("start sandbox", &request.sandbox_id, async move { sandbox.start().await }).await?;
        Ok(StartSandboxResponse {
            pid: unsigned(pid),
            created_at: Some(timestamp(self.created_at())).into(),
            ..StartSandboxResponse::default()
        })
    }

    async fn platform(&self, _context: &TtrpcContext, request: PlatformRequest) -> ttrpc::Result<PlatformResponse> {
        self.pod.sandbox(&request.sandbox_id)?;
        let platform = Platform { os: "linux".into(), architecture: ARCHITECTURE.into(), ..Platform::default() };
        Ok(PlatformResponse { platform: Some(platform).into(), ..PlatformResponse::default() })
    }

    async fn stop_sandbox(
        &self,
        _context: &TtrpcContext,
        request: StopSandboxRequest,
    ) -> ttrpc::Result<StopSandboxResponse> {
        let (pod, id) = (self.pod.clone(), request.sandbox_id.clone());
        to_the_end("stop sandbox", &request.sandbox_id, async move { pod.stop_sandbox(&id).await }).await?;
        Ok(StopSandboxResponse::default())
    }

    async fn wait_sandbox(
        &self,
        _context: &TtrpcContext,
        request: WaitSandboxRequest,
    ) -> ttrpc::Result<WaitSandboxResponse> {
        let exit = self.pod.sandbox(&request.sandbox_id)?.init.wait().await?;
        Ok(WaitSandboxResponse {
            exit_status: unsigned(exit.code),
            exited_at: Some(timestamp(exit.at)).into(),
            ..WaitSandboxResponse::default()
        })
    }

    async fn sandbox_status(
        &self,
        _context: &TtrpcContext,
        request: SandboxStatusRequest,
    ) -> ttrpc::Result<SandboxStatusResponse> {
        let sandbox = self.pod.sandbox(&request.sandbox_id)?;
        let (state, pid) = (sandbox.init.state(), sandbox.init.pid());
        Ok(SandboxStatusResponse {
            sandbox_id: request.sandbox_id,
            pid: unsigned(pid),
            state: name_of(state).into(),
            info: if request.verbose { verbose(state, pid) } else { HashMap::new() },
            created_at: Some(timestamp(self.created_at())).into(),
            exited_at: state.exit().map(|exit| timestamp(exit.at)).into(),
            ..SandboxStatusResponse::default()
        })
    }

    async fn ping_sandbox(&self, _context: &TtrpcContext, request: PingRequest) -> ttrpc::Result<PingResponse> {
        self.pod.sandbox(&request.sandbox_id)?;
        Ok(PingResponse::default())
    }

    async fn shutdown_sandbox(
        &self,
        _context: &TtrpcContext,
        request: ShutdownSandboxRequest,
    ) -> ttrpc::Result<ShutdownSandboxResponse> {
        let (pod, id, done) = (self.pod.clone(), request.sandbox_id.clone(), self.done.clone());
        to_the_end("shut down sandbox", &request.sandbox_id, async move {
            let removed = pod.remove_sandbox(&id).await;
            // The caller may be gone, and nobody may ask again: what could not be removed is found by the record.
            if !removed.as_ref().is_err_and(|error| error.kind() == Kind::NotFound) {
                done.notify_one();
            }
            removed
        })
        .await?;
        Ok(ShutdownSandboxResponse::default())
    }

    async fn sandbox_metrics(
        &self,
        _context: &TtrpcContext,
        request: SandboxMetricsRequest,
    ) -> ttrpc::Result<SandboxMetricsResponse> {
        // The figures are those of the whole pod, as containerd's own sandboxer has them.
        let cgroup = self.pod.sandbox(&request.sandbox_id)?.cgroup()?.parent();
        let data = metrics::collect(&cgroup);
        let data = data.doing(|| format!("cannot read the metrics of sandbox `{}`", request.sandbox_id))?;
        let mut response = SandboxMetricsResponse::default();
        let metrics = response.metrics.mut_or_insert_default();
        metrics.timestamp = Some(timestamp(SystemTime::now())).into();
        metrics.id = request.sandbox_id;
        metrics.data = Some(data).into();
        Ok(response)
    }
}

async fn create(pod: &Pod, request: CreateSandboxRequest) -> Result<()> {
    if !wire::is_name(&request.sandbox_id) {
        return Err(Error::invalid(format!("`{}` is not a valid sandbox id", request.sandbox_id)));
    }
    if !request.rootfs.is_empty() {
        return Err(Error::invalid("a sandbox does not have a root file system"));
    }
    let config = pod_config::decode(request.options.get_or_default())?;
    pod.make_sandbox(request.sandbox_id, request.bundle_path.into(), request.netns_path.into(), config).await
}

/// The state as the CRI calls it.
fn name_of(state: State) -> &'static str {
    match state {
        State::Running => "SANDBOX_READY",
        State::Added | State::Starting | State::Created | State::Paused | State::Stopped(_) => "SANDBOX_NOTREADY",
    }
}

/// What `crictl inspectp` shows. The CRI reads it as its own `SandboxInfo`.
fn verbose(state: State, pid: i32) -> HashMap<String, String> {
    let status = match state {
        State::Added | State::Starting | State::Created => "created",
        State::Running => "running",
        State::Paused => "paused",
        State::Stopped(_) => "stopped",
    };
    let info = serde_json::json!({"pid": pid, "processStatus": status});
    HashMap::from([("info".into(), info.to_string())])
}
