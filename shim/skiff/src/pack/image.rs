//! The three kinds of images that carry wasm, as blobs: a configuration, one layer, and the manifest that names both.

use std::collections::HashMap;

use oci_spec::image::{
    ANNOTATION_TITLE, Arch, Config, ConfigBuilder, Descriptor, Digest, ImageConfigurationBuilder, ImageManifestBuilder,
    MediaType, Os, RootFsBuilder,
};
use serde::Serialize;

use crate::digest::sha256;
use crate::error::{Context, Result};
use crate::guest::Guest;
use crate::layers::host_architecture;
use crate::layers::media_types::{COMPONENT_LAYER, MODULE_LAYER, WASM, WASM_CONFIG};
use crate::preamble::Kind;

/// A fixed creation time, so that equal input gives equal output.
const EPOCH: &str = "1970-01-01T00:00:00Z";

/// The blobs of an image.
#[derive(Debug)]
pub(super) struct Image {
    pub(super) manifest: Blob,
    pub(super) config: Blob,
    pub(super) layer: Blob,
    /// Whether it is one that every tool knows: its layer is a file system.
    pub(super) is_ordinary: bool,
}

/// What runs in a container of the image, and as whom.
#[derive(Debug)]
pub(super) struct Process {
    pub(super) entrypoint: Vec<String>,
    pub(super) env: Vec<String>,
    pub(super) user: Option<String>,
}

/// Bytes and what they are.
#[derive(Debug)]
pub(super) struct Blob {
    pub(super) descriptor: Descriptor,
    pub(super) bytes: Vec<u8>,
}

/// The configuration of a wasm artifact.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct WasmConfig<'a> {
    created: &'static str,
    architecture: &'static str,
    os: &'static str,
    layer_digests: [String; 1],
    #[serde(skip_serializing_if = "Option::is_none")]
    component: Option<WasmComponent<'a>>,
}

#[derive(Debug, Serialize)]
struct WasmComponent<'a> {
    exports: Vec<&'a str>,
    imports: Vec<&'a str>,
}

/// An ordinary image with the tar archive `layer`.
///
/// # Errors
/// The host's, when a part cannot be written as JSON.
pub(super) fn ordinary(layer: &[u8], process: Process, platform: Option<(String, String)>) -> Result<Image> {
    let (os, architecture) = platform.unwrap_or_else(|| ("linux".into(), host_architecture().into()));
    let layer = Blob::new(MediaType::ImageLayer, layer.to_vec())?;
    let diff_ids = vec![layer.descriptor.digest().to_string()];
    let config = configuration(&os, &architecture, diff_ids, process.into_config()?)?;
    Ok(Image { is_ordinary: true, ..Image::new(config, layer)? })
}

/// A wasm OCI artifact.
///
/// # Errors
/// Those of [`ordinary`].
pub(super) fn artifact(guest: &Guest, file_name: &str, bytes: Vec<u8>) -> Result<Image> {
    let layer = Blob::new(MediaType::from(WASM), bytes)?.titled(file_name);
    let component = || WasmComponent {
        exports: guest.exports.iter().map(|export| export.name.as_str()).collect(),
        imports: guest.imports.iter().map(|import| import.name.as_str()).collect(),
    };
    let (os, component) = match guest.kind {
        Kind::Module => ("wasip1", None),
        Kind::Component => ("wasip2", Some(component())),
    };
    let layer_digests = [layer.descriptor.digest().to_string()];
    let config = WasmConfig { created: EPOCH, architecture: "wasm", os, layer_digests, component };
    Image::new(Blob::json(MediaType::from(WASM_CONFIG), &config)?, layer)
}

/// An image whose layer is the wasm binary.
///
/// # Errors
/// Those of [`ordinary`].
pub(super) fn layer(guest: &Guest, file_name: &str, bytes: Vec<u8>, process: Process) -> Result<Image> {
    let media_type = match guest.kind {
        Kind::Module => MODULE_LAYER,
        Kind::Component => COMPONENT_LAYER,
    };
    let layer = Blob::new(MediaType::from(media_type), bytes)?.titled(file_name);
    // containerd does not unpack such a layer, and compares the number of these with the number of unpacked layers.
    let diff_ids = Vec::new();
    Image::new(configuration("wasi", "wasm", diff_ids, process.into_config()?)?, layer)
}

impl Process {
    fn into_config(self) -> Result<Config> {
        let mut config = ConfigBuilder::default().entrypoint(self.entrypoint).working_dir("/");
        if !self.env.is_empty() {
            config = config.env(self.env);
        }
        if let Some(user) = self.user {
            config = config.user(user);
        }
        config.build().or_host("cannot make the configuration")
    }
}

fn configuration(os: &str, architecture: &str, diff_ids: Vec<String>, config: Config) -> Result<Blob> {
    let making = "cannot make the configuration";
    let rootfs = RootFsBuilder::default().typ("layers").diff_ids(diff_ids).build().or_host(making)?;
    let configuration = ImageConfigurationBuilder::default()
        .created(EPOCH)
        .architecture(Arch::from(architecture))
        .os(Os::from(os))
        .config(config)
        .rootfs(rootfs)
        .build()
        .or_host(making)?;
    Blob::json(MediaType::ImageConfig, &configuration)
}

impl Image {
    fn new(config: Blob, layer: Blob) -> Result<Self> {
        let manifest = ImageManifestBuilder::default()
            .schema_version(2_u32)
            .media_type(MediaType::ImageManifest)
            .config(config.descriptor.clone())
            .layers([layer.descriptor.clone()])
            .build()
            .or_host("cannot make the manifest")?;
        Ok(Self { manifest: Blob::json(MediaType::ImageManifest, &manifest)?, config, layer, is_ordinary: false })
    }
}

impl Blob {
    fn new(media_type: MediaType, bytes: Vec<u8>) -> Result<Self> {
        let digest = Digest::try_from(format!("sha256:{}", sha256(&bytes))).or_host("cannot digest")?;
        let size = u64::try_from(bytes.len()).or_host("cannot count")?;
        Ok(Self { descriptor: Descriptor::new(media_type, size, digest), bytes })
    }

    fn json(media_type: MediaType, document: &impl Serialize) -> Result<Self> {
        Self::new(media_type, to_json(document)?)
    }

    fn titled(mut self, file_name: &str) -> Self {
        let annotations = HashMap::from([(ANNOTATION_TITLE.into(), file_name.into())]);
        self.descriptor.set_annotations(Some(annotations));
        self
    }
}

/// `document` as JSON with its keys sorted: annotations are hash maps, whose order changes each time.
///
/// # Errors
/// The host's, when it cannot be written.
pub(super) fn to_json(document: &impl Serialize) -> Result<Vec<u8>> {
    let value = serde_json::to_value(document).or_host("cannot write JSON")?;
    serde_json::to_vec(&value).or_host("cannot write JSON")
}
