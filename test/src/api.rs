//! containerd's gRPC API, called synchronously in the namespace of the tests.

use std::future::Future;
use std::path::Path;
use std::sync::OnceLock;
use std::time::Duration;

use containerd_client::services::v1::container::Runtime as ContainerRuntime;
use containerd_client::services::v1::containers_client::ContainersClient;
use containerd_client::services::v1::images_client::ImagesClient;
use containerd_client::services::v1::snapshots::snapshots_client::SnapshotsClient;
use containerd_client::services::v1::snapshots::{PrepareSnapshotRequest, RemoveSnapshotRequest};
use containerd_client::services::v1::tasks_client::TasksClient;
use containerd_client::services::v1::version_client::VersionClient;
use containerd_client::services::v1::{
    Container, CreateContainerRequest, CreateTaskRequest, DeleteContainerRequest, DeleteResponse, GetImageRequest,
};
use containerd_client::types::{Descriptor, Mount};
use prost_types::Any;
use tokio::runtime::Runtime;
use tonic::transport::Channel;
use tonic::{Code, Request, Response, Status};

use crate::containerd::{NAMESPACE, RUNTIME};
use crate::encoding::field;

/// The longest that any call may take: a first start may compile a large guest on a busy machine.
const LIMIT: Duration = Duration::from_secs(180);
/// Which snapshotter the tests use.
pub(crate) const SNAPSHOTTER: &str = "overlayfs";
const SPEC_TYPE: &str = "types.containerd.io/opencontainers/runtime-spec/1/Spec";
const OPTIONS_TYPE: &str = "runtimeoptions.v1.Options";

/// A connection to containerd.
pub struct Api {
    pub(crate) channel: Channel,
}

/// A call that containerd, or the shim behind it, refused.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Refused {
    /// The kind of refusal.
    pub code: Code,
    /// The message.
    pub message: String,
}

impl std::fmt::Display for Refused {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(formatter, "{:?}: {}", self.code, self.message)
    }
}

impl From<Status> for Refused {
    fn from(status: Status) -> Self {
        Self { code: status.code(), message: status.message().to_string() }
    }
}

/// A container to be made.
#[derive(Clone, Debug)]
pub(crate) struct Description<'a> {
    pub(crate) id: &'a str,
    pub(crate) image: &'a str,
    pub(crate) spec: Vec<u8>,
    pub(crate) options_file: &'a Path,
}

impl Api {
    pub(crate) fn connect(address: &Path) -> Self {
        let connect = containerd_client::connect(address.to_path_buf());
        Self { channel: runtime().block_on(connect).expect("containerd's socket can be connected to") }
    }

    /// The tasks service, for calls through [`Api::call`].
    pub fn tasks(&self) -> TasksClient<Channel> {
        TasksClient::new(self.channel.clone())
    }

    /// Waits for the reply to a call.
    pub fn call<T>(&self, answer: impl Future<Output = Result<Response<T>, Status>>) -> Result<T, Refused> {
        wait_for(LIMIT, answer)
    }

    pub(crate) fn version(&self) -> Result<String, Refused> {
        let version = wait_for(Duration::from_secs(2), VersionClient::new(self.channel.clone()).version(()))?;
        Ok(version.version)
    }

    /// The target of an image's name.
    pub(crate) fn image_target(&self, name: &str) -> Option<Descriptor> {
        let request = in_namespace(GetImageRequest { name: name.into() });
        self.call(ImagesClient::new(self.channel.clone()).get(request)).ok()?.image?.target
    }

    /// Creates a container in containerd's records; its snapshot has the same name.
    pub(crate) fn create_container(&self, container: &Description<'_>) -> Result<(), Refused> {
        let container = Container {
            id: container.id.into(),
            image: container.image.into(),
            runtime: Some(ContainerRuntime { name: RUNTIME.into(), options: Some(options(container.options_file)) }),
            spec: Some(Any { type_url: SPEC_TYPE.into(), value: container.spec.clone() }),
            snapshotter: SNAPSHOTTER.into(),
            snapshot_key: container.id.into(),
            ..Container::default()
        };
        let request = in_namespace(CreateContainerRequest { container: Some(container) });
        self.call(ContainersClient::new(self.channel.clone()).create(request)).map(drop)
    }

    /// Makes the snapshot of a container on top of an image's layers, or an empty one.
    pub(crate) fn prepare_snapshot(&self, id: &str, parent: &str) -> Result<Vec<Mount>, Refused> {
        let request = PrepareSnapshotRequest {
            snapshotter: SNAPSHOTTER.into(),
            key: id.into(),
            parent: parent.into(),
            ..PrepareSnapshotRequest::default()
        };
        let answer = self.call(SnapshotsClient::new(self.channel.clone()).prepare(in_namespace(request)))?;
        Ok(answer.mounts)
    }

    /// Makes a task.
    pub(crate) fn create_task(&self, request: CreateTaskRequest) -> Result<u32, Refused> {
        let answer = self.call(self.tasks().create(in_namespace(request)))?;
        Ok(answer.pid)
    }

    /// Deletes a container and its snapshot, if they exist.
    pub(crate) fn delete_container(&self, id: &str) -> Result<(), Refused> {
        let request = in_namespace(DeleteContainerRequest { id: id.into() });
        let deleted = self.call(ContainersClient::new(self.channel.clone()).delete(request)).map(drop);
        let request = RemoveSnapshotRequest { snapshotter: SNAPSHOTTER.into(), key: id.into() };
        let removed = self.call(SnapshotsClient::new(self.channel.clone()).remove(in_namespace(request))).map(drop);
        deleted.or_else(ignore_absent).and(removed.or_else(ignore_absent))
    }
}

/// A request in the namespace of the tests.
pub(crate) fn in_namespace<T>(message: T) -> Request<T> {
    let mut request = Request::new(message);
    request.metadata_mut().insert("containerd-namespace", NAMESPACE.parse().expect("an ASCII name"));
    request
}

/// The executor of all calls.
pub(crate) fn runtime() -> &'static Runtime {
    static RUNTIME: OnceLock<Runtime> = OnceLock::new();
    RUNTIME.get_or_init(|| {
        let mut builder = tokio::runtime::Builder::new_multi_thread();
        builder.worker_threads(2).enable_all().build().expect("a runtime")
    })
}

/// Waits for a reply for no longer than `limit`.
pub(crate) fn wait_for<T>(
    limit: Duration,
    answer: impl Future<Output = Result<Response<T>, Status>>,
) -> Result<T, Refused> {
    match runtime().block_on(async { tokio::time::timeout(limit, answer).await }) {
        Ok(answer) => Ok(answer?.into_inner()),
        Err(_) => {
            Err(Refused { code: Code::DeadlineExceeded, message: format!("no answer for {} s", limit.as_secs()) })
        }
    }
}

/// The exit code in the reply to a deletion.
pub(crate) fn exit_of(answer: &DeleteResponse) -> u32 {
    answer.exit_status
}

fn ignore_absent(refused: Refused) -> Result<(), Refused> {
    if refused.code == Code::NotFound { Ok(()) } else { Err(refused) }
}

/// The options as containerd's clients pass them: a message with the file's path in field 2.
fn options(file: &Path) -> Any {
    Any { type_url: OPTIONS_TYPE.into(), value: field(2, file.to_str().expect("temporary paths are UTF-8")) }
}
