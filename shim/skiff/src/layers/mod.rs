//! `skiff layers`: the wasm layers of a container's image, which containerd stores but does not unpack.
//!
//! It asks containerd which image the container was made from and where its content store is. Then it gives up access to
//! everything else and reads the manifests there. It does not read layers: whoever maps a layer verifies its digest.

mod choose;
mod containerd;
mod content;
mod document;
pub(crate) mod media_types;

use std::time::Duration;

use clap::Args;
use skiff_protocol::{ImageLayers, WasmLayer};

pub(crate) use self::choose::host_architecture;
use self::choose::{Candidate, choose};
use self::containerd::Containerd;
use self::content::Store;
use self::document::Descriptor;
use crate::confine::reader;
use crate::error::{Context, Error, Result};

/// How long containerd may take for all its replies.
const PATIENCE: Duration = Duration::from_secs(10);
/// How long everything may take, whatever this process is doing then.
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

/// What containerd knows about a container and its image.
struct Answers {
    image: String,
    target: Descriptor,
    store: Store,
    /// The parent of the container's snapshot.
    parent: Option<String>,
}

/// Reads the image of a container. This process is confined from then on.
///
/// # Errors
/// If containerd does not respond, a part of the image is not in its content store, or the image exceeds a bound.
pub(crate) fn layers(arguments: &Arguments) -> Result<ImageLayers> {
    reader::bound(DEADLINE)?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().or_host("cannot start")?;
    let answers = runtime.block_on(async {
        let answer = tokio::time::timeout(PATIENCE, ask(arguments)).await;
        answer.unwrap_or_else(|_| Err(Error::host(format!("containerd at `{}` does not respond", arguments.address))))
    })?;
    // This closes the connection to containerd, which does whatever it is asked to.
    drop(runtime);
    let Some(Answers { image, target, store, parent }) = answers else {
        return Ok(ImageLayers::default());
    };
    reader::see_only(store.directory())?;
    let layers = look(&store.in_root(), &target, parent.as_deref()).map_err(|error| of_image(&image, &error))?;
    Ok(ImageLayers { image: Some(image), ..layers })
}

/// Asks containerd for everything that is needed; `None` for a container without an image.
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

/// Reads the manifest that containerd made the container from.
fn look(store: &Store, target: &Descriptor, parent: Option<&str>) -> Result<ImageLayers> {
    let mut candidates = store.candidates(target)?;
    let Some(index) = choose(&candidates, parent) else {
        return Err(Error::host("none of its manifests is in containerd's content store"));
    };
    let Candidate { config_media_type, layers, is_wasm, .. } = candidates.swap_remove(index);
    let layers: Vec<_> = layers.into_iter().map(|layer| describe(store, layer)).collect::<Result<_>>()?;
    let announced = is_wasm || !layers.is_empty();
    Ok(ImageLayers { image: None, announced, config_media_type: Some(config_media_type), layers })
}

fn describe(store: &Store, layer: Descriptor) -> Result<WasmLayer> {
    let path = store.find(&layer)?;
    let title = layer.annotations.and_then(|annotations| annotations.title);
    Ok(WasmLayer { media_type: layer.media_type, digest: layer.digest, size: layer.size, title, path })
}

fn of_image(image: &str, error: impl std::fmt::Display) -> Error {
    Error::host(format!("cannot read image `{image}`: {error}"))
}
