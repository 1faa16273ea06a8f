//! The four requests to containerd, over its gRPC socket.

use std::path::PathBuf;

use containerd_client::services::v1::containers_client::ContainersClient;
use containerd_client::services::v1::images_client::ImagesClient;
use containerd_client::services::v1::introspection_client::IntrospectionClient;
use containerd_client::services::v1::snapshots::StatSnapshotRequest;
use containerd_client::services::v1::snapshots::snapshots_client::SnapshotsClient;
use containerd_client::services::v1::{GetContainerRequest, GetImageRequest, PluginsRequest};
use tonic::metadata::{Ascii, MetadataValue};
use tonic::transport::Channel;
use tonic::{Code, Request, Status};

use super::document::Descriptor;
use crate::error::{Context, Error, Result, with_causes};

/// Where containerd's content is unless it reports another place.
const CONTENT_ROOT: &str = "/var/lib/containerd/io.containerd.content.v1.content";
/// The type of the plugin that stores content.
const CONTENT_PLUGIN: &str = "io.containerd.content.v1";

/// A connection to containerd, for one of its namespaces.
pub(super) struct Containerd {
    channel: Channel,
    namespace: MetadataValue<Ascii>,
}

/// What containerd knows about a container.
#[derive(Debug)]
pub(super) struct Container {
    /// The image's name; empty for a container without one.
    pub(super) image: String,
    snapshotter: String,
    snapshot: String,
}

impl Containerd {
    /// Connects to the socket `address`.
    pub(super) async fn connect(address: &str, namespace: &str) -> Result<Self> {
        let path = address.strip_prefix("unix://").unwrap_or(address);
        let channel = containerd_client::connect(path).await.map_err(|error| {
            Error::host(format!("cannot connect to containerd at `{address}`: {}", with_causes(&error)))
        })?;
        let namespace = namespace.parse().or_guest(format!("`{namespace}` is not a valid namespace"))?;
        Ok(Self { channel, namespace })
    }

    /// The container `id`.
    pub(super) async fn container(&self, id: &str) -> Result<Container> {
        let request = self.request(GetContainerRequest { id: id.into() });
        let answer = ContainersClient::new(self.channel.clone()).get(request).await;
        let answer = answer.map_err(|status| refused(&format!("look up container `{id}`"), &status))?;
        let container = answer.into_inner().container.unwrap_or_default();
        Ok(Container { image: container.image, snapshotter: container.snapshotter, snapshot: container.snapshot_key })
    }

    /// What the image `name` points at.
    pub(super) async fn image(&self, name: &str) -> Result<Descriptor> {
        let request = self.request(GetImageRequest { name: name.into() });
        let answer = ImagesClient::new(self.channel.clone()).get(request).await;
        let answer = answer.map_err(|status| refused(&format!("look up image `{name}`"), &status))?;
        let target = answer.into_inner().image.and_then(|image| image.target);
        let target = target.ok_or_else(|| Error::host(format!("image `{name}` has no target")))?;
        let size = u64::try_from(target.size).or_host(format!("the size of image `{name}` is not valid"))?;
        Ok(Descriptor::new(target.media_type, target.digest, size))
    }

    /// The directory of the content store.
    pub(super) async fn content_root(&self) -> Result<PathBuf> {
        let request = self.request(PluginsRequest { filters: vec![format!("type=={CONTENT_PLUGIN}")] });
        let answer = IntrospectionClient::new(self.channel.clone()).plugins(request).await;
        let answer = answer.map_err(|status| refused("find the content store", &status))?;
        let root = answer.into_inner().plugins.into_iter().find_map(|mut plugin| plugin.exports.remove("root"));
        Ok(root.unwrap_or_else(|| CONTENT_ROOT.into()).into())
    }

    /// The parent of the container's snapshot, which is the chain id of its image. It is empty for an image without
    /// layers, and `None` for a container without a snapshot.
    pub(super) async fn snapshot_parent(&self, container: &Container) -> Result<Option<String>> {
        let (snapshotter, key) = (container.snapshotter.clone(), container.snapshot.clone());
        if snapshotter.is_empty() || key.is_empty() {
            return Ok(None);
        }
        let request = self.request(StatSnapshotRequest { snapshotter, key });
        match SnapshotsClient::new(self.channel.clone()).stat(request).await {
            Ok(answer) => Ok(answer.into_inner().info.map(|info| info.parent)),
            Err(status) if status.code() == Code::NotFound => Ok(None),
            Err(status) => Err(refused(&format!("look up snapshot `{}`", container.snapshot), &status)),
        }
    }

    fn request<T>(&self, message: T) -> Request<T> {
        let mut request = Request::new(message);
        request.metadata_mut().insert("containerd-namespace", self.namespace.clone());
        request
    }
}

fn refused(doing: &str, status: &Status) -> Error {
    Error::host(format!("cannot {doing} in containerd: {}", status.message()))
}
