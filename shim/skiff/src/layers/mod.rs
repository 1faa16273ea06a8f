//! `skiff layers`: the wasm layers of a container's image, which containerd stores but does not unpack.
//!
//! It asks containerd which image the container is of and where its content lies, and reads the manifests there. It
//! reads no layer: whoever maps a layer verifies its digest.

mod choose;
mod containerd;
mod content;

use std::path::PathBuf;
use std::time::Duration;

use clap::Args;
use oci_spec::image::{Descriptor, MediaType};
use serde::Serialize;

pub(crate) use self::choose::host_architecture;
use self::choose::{Candidate, choose};
use self::containerd::{Container, Containerd};
use self::content::Store;
use crate::error::{Context, Error, Result};

/// The media types of layers that are one wasm binary each.
pub(crate) const WASM: &str = "application/wasm";
/// A component, as an ordinary image's layer.
pub(crate) const COMPONENT_LAYER: &str = "application/vnd.bytecodealliance.wasm.component.layer.v0+wasm";
/// A core module, as an ordinary image's layer.
pub(crate) const MODULE_LAYER: &str = "application/vnd.wasm.content.layer.v1+wasm";
/// The configuration of a wasm artifact.
pub(crate) const WASM_CONFIG: &str = "application/vnd.wasm.config.v0+json";

/// The annotation with a layer's file name.
const TITLE: &str = "org.opencontainers.image.title";

/// How long containerd may take to answer everything.
const PATIENCE: Duration = Duration::from_secs(10);

/// Which container to look at.
#[derive(Debug, Args)]
pub(crate) struct Arguments {
    /// containerd's gRPC socket.
    #[arg(long)]
    address: String,
    /// The namespace in containerd.
    #[arg(long)]
    namespace: String,
    /// The container's id.
    #[arg(long)]
    container: String,
}

/// What the image says about wasm.
#[derive(Debug, PartialEq, Eq, Serialize)]
pub(crate) struct Report {
    #[serde(skip_serializing_if = "Option::is_none")]
    image: Option<String>,
    /// Whether the image says of itself that it is wasm: then a file that is not there is an error.
    announced: bool,
    #[serde(skip_serializing_if = "Option::is_none")]
    config_media_type: Option<String>,
    layers: Vec<Layer>,
}

/// A layer that is one wasm binary.
#[derive(Debug, PartialEq, Eq, Serialize)]
struct Layer {
    media_type: String,
    digest: String,
    size: u64,
    #[serde(skip_serializing_if = "Option::is_none")]
    title: Option<String>,
    path: PathBuf,
}

/// Looks at the image of a container.
///
/// # Errors
/// When containerd does not answer, and when a part of the image is not in its content store.
pub(crate) fn layers(arguments: &Arguments) -> Result<Report> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().or_host("cannot start")?;
    runtime.block_on(async {
        let answer = tokio::time::timeout(PATIENCE, ask(arguments)).await;
        answer.unwrap_or_else(|_| Err(Error::host(format!("containerd at `{}` does not answer", arguments.address))))
    })
}

async fn ask(arguments: &Arguments) -> Result<Report> {
    let containerd = Containerd::connect(&arguments.address, &arguments.namespace).await?;
    let container = containerd.container(&arguments.container).await?;
    if container.image.is_empty() {
        return Ok(Report { image: None, announced: false, config_media_type: None, layers: Vec::new() });
    }
    let target = containerd.image(&container.image).await?;
    let store = Store::new(containerd.content_root().await?);
    let candidates = store.candidates(&target).map_err(|error| of_image(&container.image, &error))?;
    let candidate = resolve(&containerd, &container, candidates).await?;
    report(&store, container.image, &candidate)
}

/// The manifest that containerd made the container of.
async fn resolve(containerd: &Containerd, container: &Container, mut candidates: Vec<Candidate>) -> Result<Candidate> {
    let parent = match candidates.len() {
        0 | 1 => None,
        _ => containerd.snapshot_parent(container).await?,
    };
    match choose(&candidates, parent.as_deref()) {
        Some(index) => Ok(candidates.swap_remove(index)),
        None => Err(of_image(&container.image, "no manifest of it is in containerd's content store")),
    }
}

fn report(store: &Store, image: String, candidate: &Candidate) -> Result<Report> {
    let layers = candidate.manifest.layers().iter().filter(|layer| is_wasm(layer.media_type()));
    let layers: Vec<_> =
        layers.map(|layer| describe(store, layer)).collect::<Result<_>>().map_err(|error| of_image(&image, &error))?;
    Ok(Report {
        image: Some(image),
        announced: candidate.is_wasm || !layers.is_empty(),
        config_media_type: Some(candidate.manifest.config().media_type().to_string()),
        layers,
    })
}

fn describe(store: &Store, layer: &Descriptor) -> Result<Layer> {
    let path = store.path(layer)?;
    if !path.is_file() {
        return Err(Error::host(format!("layer `{}` is not in containerd's content store", layer.digest())));
    }
    let title = layer.annotations().as_ref().and_then(|annotations| annotations.get(TITLE).cloned());
    Ok(Layer {
        media_type: layer.media_type().to_string(),
        digest: layer.digest().to_string(),
        size: layer.size(),
        title,
        path,
    })
}

fn is_wasm(media_type: &MediaType) -> bool {
    [WASM, COMPONENT_LAYER, MODULE_LAYER].contains(&media_type.as_ref())
}

fn of_image(image: &str, error: impl std::fmt::Display) -> Error {
    Error::host(format!("cannot read image `{image}`: {error}"))
}
