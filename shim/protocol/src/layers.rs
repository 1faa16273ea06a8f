//! The JSON that `skiff layers` prints for the shim.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

/// What an image's manifest and configuration say about wasm.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ImageLayers {
    /// The image's name; `None` for a container without an image.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub image: Option<String>,
    /// Whether the image declares itself to be wasm: then a missing file is an error.
    pub announced: bool,
    /// The media type of its configuration.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub config_media_type: Option<String>,
    /// Those of its layers that are a single wasm binary.
    pub layers: Vec<WasmLayer>,
}

/// A layer that is a single wasm binary.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct WasmLayer {
    /// Its media type.
    pub media_type: String,
    /// Its digest, from the manifest.
    pub digest: String,
    /// Its size in bytes, from the manifest.
    pub size: u64,
    /// Its file name, from the manifest's annotation.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub title: Option<String>,
    /// The file in which containerd keeps it.
    pub path: PathBuf,
}
