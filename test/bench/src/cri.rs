//! The few calls of the Kubernetes Container Runtime Interface (CRI) that make and end a pod, and of their messages only the
//! fields that are used here.
//! <https://github.com/kubernetes/cri-api/blob/master/pkg/apis/runtime/v1/api.proto>

use std::path::Path;

use anyhow::{Context, Result};
use prost::Message;
use tonic::codegen::http::uri::PathAndQuery;
use tonic::transport::Channel;

const SERVICE: &str = "/runtime.v1.RuntimeService/";
/// The node's own namespace (`NamespaceMode`).
const NODE: i32 = 2;
/// A namespace of the container's own.
const CONTAINER: i32 = 1;

#[derive(Clone, PartialEq, Message)]
struct Metadata {
    #[prost(string, tag = "1")]
    name: String,
    #[prost(string, tag = "2")]
    uid: String,
    #[prost(string, tag = "3")]
    namespace: String,
}

#[derive(Clone, PartialEq, Message)]
struct NamespaceOptions {
    #[prost(int32, tag = "1")]
    network: i32,
    #[prost(int32, tag = "2")]
    pid: i32,
}

#[derive(Clone, PartialEq, Message)]
struct SandboxSecurity {
    #[prost(message, optional, tag = "1")]
    namespaces: Option<NamespaceOptions>,
}

#[derive(Clone, PartialEq, Message)]
struct SandboxLinux {
    #[prost(string, tag = "1")]
    cgroup_parent: String,
    #[prost(message, optional, tag = "2")]
    security: Option<SandboxSecurity>,
}

/// The description of a pod.
#[derive(Clone, PartialEq, Message)]
pub(crate) struct PodConfig {
    #[prost(message, optional, tag = "1")]
    metadata: Option<Metadata>,
    #[prost(string, tag = "3")]
    log_directory: String,
    #[prost(message, optional, tag = "8")]
    linux: Option<SandboxLinux>,
}

#[derive(Clone, PartialEq, Message)]
struct RunPod {
    #[prost(message, optional, tag = "1")]
    config: Option<PodConfig>,
    #[prost(string, tag = "2")]
    handler: String,
}

#[derive(Clone, PartialEq, Message)]
struct ContainerMetadata {
    #[prost(string, tag = "1")]
    name: String,
}

#[derive(Clone, PartialEq, Message)]
struct Pair {
    #[prost(string, tag = "1")]
    key: String,
    #[prost(string, tag = "2")]
    value: String,
}

#[derive(Clone, PartialEq, Message)]
struct Mount {
    #[prost(string, tag = "1")]
    container_path: String,
    #[prost(string, tag = "2")]
    host_path: String,
}

#[derive(Clone, PartialEq, Message)]
struct ContainerSecurity {
    #[prost(message, optional, tag = "3")]
    namespaces: Option<NamespaceOptions>,
}

#[derive(Clone, PartialEq, Message)]
struct ContainerLinux {
    #[prost(message, optional, tag = "2")]
    security: Option<ContainerSecurity>,
}

#[derive(Clone, PartialEq, Message)]
struct ContainerConfig {
    #[prost(message, optional, tag = "1")]
    metadata: Option<ContainerMetadata>,
    /// Its image, by the one field that it has here.
    #[prost(message, optional, tag = "2")]
    image: Option<Id>,
    #[prost(message, repeated, tag = "6")]
    environment: Vec<Pair>,
    #[prost(message, repeated, tag = "7")]
    mounts: Vec<Mount>,
    #[prost(string, tag = "11")]
    log_path: String,
    #[prost(message, optional, tag = "15")]
    linux: Option<ContainerLinux>,
}

#[derive(Clone, PartialEq, Message)]
struct CreateContainer {
    #[prost(string, tag = "1")]
    pod: String,
    #[prost(message, optional, tag = "2")]
    config: Option<ContainerConfig>,
    #[prost(message, optional, tag = "3")]
    pod_config: Option<PodConfig>,
}

/// Every message whose only field names something.
#[derive(Clone, PartialEq, Message)]
struct Id {
    #[prost(string, tag = "1")]
    id: String,
}

#[derive(Clone, PartialEq, Message)]
struct Nothing {}

/// What is to run in a pod.
#[derive(Clone, Copy)]
pub(crate) struct Inside<'a> {
    /// The handler of the runtime.
    pub(crate) handler: &'a str,
    pub(crate) image: &'a str,
    pub(crate) environment: &'a [(&'a str, String)],
    /// How many containers of it there are.
    pub(crate) containers: usize,
    /// How often each of them has the pod's directory of logs mounted.
    pub(crate) mounts: usize,
}

/// A client of the interface.
#[derive(Clone)]
pub(crate) struct Cri {
    client: tonic::client::Grpc<Channel>,
}

impl Cri {
    /// Calls through `channel`.
    pub(crate) fn new(channel: Channel) -> Self {
        Self { client: tonic::client::Grpc::new(channel) }
    }

    /// The description of a pod on the node's network.
    pub(crate) fn pod(name: &str, cgroup_parent: &str, log_directory: &Path) -> PodConfig {
        let metadata = Metadata { name: name.into(), uid: name.into(), namespace: "bench".into() };
        let security = SandboxSecurity { namespaces: Some(NAMESPACES) };
        PodConfig {
            metadata: Some(metadata),
            log_directory: log_directory.display().to_string(),
            linux: Some(SandboxLinux { cgroup_parent: cgroup_parent.into(), security: Some(security) }),
        }
    }

    /// Makes a pod, and its containers one after the other, and starts each. Returns the pod's id.
    ///
    /// # Errors
    /// containerd's.
    pub(crate) async fn run(&self, pod: &PodConfig, inside: Inside<'_>) -> Result<String> {
        let run = RunPod { config: Some(pod.clone()), handler: inside.handler.into() };
        let Id { id } = self.call("RunPodSandbox", run).await?;
        for number in 0..inside.containers {
            let config = container(&format!("c{number}"), pod, inside);
            let create = CreateContainer { pod: id.clone(), config: Some(config), pod_config: Some(pod.clone()) };
            let container: Id = self.call("CreateContainer", create).await?;
            let Nothing {} = self.call("StartContainer", container).await?;
        }
        Ok(id)
    }

    /// Stops a pod and removes it.
    ///
    /// # Errors
    /// containerd's.
    pub(crate) async fn remove(&self, id: String) -> Result<()> {
        let Nothing {} = self.call("StopPodSandbox", Id { id: id.clone() }).await?;
        let Nothing {} = self.call("RemovePodSandbox", Id { id }).await?;
        Ok(())
    }

    async fn call<M: Message + 'static, R: Message + Default + 'static>(&self, name: &str, message: M) -> Result<R> {
        let mut client = self.client.clone();
        client.ready().await?;
        let path = PathAndQuery::try_from(format!("{SERVICE}{name}"))?;
        let codec = tonic_prost::ProstCodec::<M, R>::default();
        let reply = client.unary(tonic::Request::new(message), path, codec).await;
        Ok(reply.with_context(|| format!("{name} failed"))?.into_inner())
    }
}

fn container(name: &str, pod: &PodConfig, inside: Inside<'_>) -> ContainerConfig {
    let pair = |(key, value): &(&str, String)| Pair { key: (*key).into(), value: value.clone() };
    let mount = |number| Mount { container_path: format!("/mounts/{number}"), host_path: pod.log_directory.clone() };
    ContainerConfig {
        metadata: Some(ContainerMetadata { name: name.into() }),
        image: Some(Id { id: inside.image.into() }),
        environment: inside.environment.iter().map(pair).collect(),
        mounts: (0..inside.mounts).map(mount).collect(),
        log_path: format!("{name}.log"),
        linux: Some(ContainerLinux { security: Some(ContainerSecurity { namespaces: Some(NAMESPACES) }) }),
    }
}

const NAMESPACES: NamespaceOptions = NamespaceOptions { network: NODE, pid: CONTAINER };
