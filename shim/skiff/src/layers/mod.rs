//! `skiff layers`: the wasm layers of a container's image, which containerd stores but does not unpack.
//!
//! It asks containerd which image the container is of and where its content lies, and then, with nothing else in sight any
//! more, reads the manifests there. It reads no layer: whoever maps a layer verifies its digest.

mod choose;
mod containerd;
mod content;
mod document;

use std::path::PathBuf;
use std::time::Duration;

use clap::Args;
use serde::Serialize;

pub(crate) use self::choose::host_architecture;
use self::choose::{Candidate, choose};
use self::containerd::Containerd;
use self::content::Store;
use self::document::Descriptor;
use crate::confine::reader;
use crate::error::{Context, Error, Result};

/// The media types of layers that are one wasm binary each.
pub(crate) const WASM: &str = "application/wasm";
/// A component, as an ordinary image's layer.
pub(crate) const COMPONENT_LAYER: &str = "application/vnd.bytecodealliance.wasm.component.layer.v0+wasm";
/// A core module, as an ordinary image's layer.
pub(crate) const MODULE_LAYER: &str = "application/vnd.wasm.content.layer.v1+wasm";
/// The configuration of a wasm artifact.
pub(crate) const WASM_CONFIG: &str = "application/vnd.wasm.config.v0+json";

/// How long containerd may take to answer everything.
const PATIENCE: Duration = Duration::from_secs(10);
/// How long all of it may take, whatever this process is at then.
const DEADLINE: Duration = Duration::from_secs(15);

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

/// What containerd says of a container.
struct Answers {
    image: String,
    target: Descriptor,
    store: Store,
    /// The snapshot that the container's own was made on.
    parent: Option<String>,
}

/// Looks at the image of a container. This process is confined from then on.
///
/// # Errors
/// When containerd does not answer, when a part of the image is not in its content store, and when the image exceeds a bound.
pub(crate) fn layers(arguments: &Arguments) -> Result<Report> {
    reader::bound(DEADLINE)?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().or_host("cannot start")?;
    let answers = runtime.block_on(async {
        let answer = tokio::time::timeout(PATIENCE, ask(arguments)).await;
        answer.unwrap_or_else(|_| Err(Error::host(format!("containerd at `{}` does not answer", arguments.address))))
    })?;
    // With it goes the connection to containerd, who does whatever it is asked.
    drop(runtime);
    let Some(Answers { image, target, store, parent }) = answers else {
        return Ok(Report { image: None, announced: false, config_media_type: None, layers: Vec::new() });
    };
    reader::see_only(store.directory())?;
    let layers = look(&store.in_root(), &target, parent.as_deref()).map_err(|error| of_image(&image, &error))?;
    Ok(Report { image: Some(image), ..layers })
}

/// Asks everything that containerd is asked; nothing for a container without an image.
async fn ask(arguments: &Arguments) -> Result<Option<Answers>> {
    let containerd = Containerd::connect(&arguments.address, &arguments.namespace).await?;
    let container = containerd.container(&arguments.container).await?;
    if container.image.is_empty() {
        return Ok(None);
    }
    let target = containerd.image(&container.image).await?;
    let store = Store::new(&containerd.content_root().await?);
    let parent = containerd.snapshot_parent(&container).await?;
    Ok(Some(Answers { image: container.image, target, store, parent }))
}

/// Reads what the image says of the manifest that containerd made the container of.
fn look(store: &Store, target: &Descriptor, parent: Option<&str>) -> Result<Report> {
    let mut candidates = store.candidates(target)?;
    let Some(index) = choose(&candidates, parent) else {
        return Err(Error::host("no manifest of it is in containerd's content store"));
    };
    let Candidate { config_media_type, layers, is_wasm, .. } = candidates.swap_remove(index);
    let layers: Vec<_> = layers.into_iter().map(|layer| describe(store, layer)).collect::<Result<_>>()?;
    let announced = is_wasm || !layers.is_empty();
    Ok(Report { image: None, announced, config_media_type: Some(config_media_type), layers })
}

fn describe(store: &Store, layer: Descriptor) -> Result<Layer> {
    let path = store.find(&layer)?;
    let title = layer.annotations.and_then(|annotations| annotations.title);
    Ok(Layer { media_type: layer.media_type, digest: layer.digest, size: layer.size, title, path })
}

fn is_wasm(media_type: &str) -> bool {
    [WASM, COMPONENT_LAYER, MODULE_LAYER].contains(&media_type)
}

fn of_image(image: &str, error: impl std::fmt::Display) -> Error {
    Error::host(format!("cannot read image `{image}`: {error}"))
}
