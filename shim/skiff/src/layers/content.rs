//! containerd's content store, read by path: manifests, indexes and configurations, each verified by its digest.

use std::fs::File;
use std::io::{ErrorKind, Read};
use std::path::PathBuf;

use oci_spec::image::{Descriptor, ImageIndex, ImageManifest};
use serde::Deserialize;
use serde::de::DeserializeOwned;

use super::WASM_CONFIG;
use super::choose::{Candidate, Platform};
use crate::digest::sha256;
use crate::error::{Context, Error, Result};

/// The largest manifest that is read, in bytes: containerd's own limit.
const DOCUMENT_BYTES_MAX: u64 = 8 << 20;
/// How deep indexes may lie in indexes.
const DEPTH_MAX: usize = 4;
const INDEXES: [&str; 2] =
    ["application/vnd.oci.image.index.v1+json", "application/vnd.docker.distribution.manifest.list.v2+json"];
const MANIFESTS: [&str; 2] =
    ["application/vnd.oci.image.manifest.v1+json", "application/vnd.docker.distribution.manifest.v2+json"];

/// The directory of a content store.
#[derive(Debug)]
pub(super) struct Store {
    root: PathBuf,
}

/// What matters here of an image's configuration, of whatever kind.
#[derive(Debug, Default, Deserialize)]
struct Configuration {
    #[serde(default)]
    architecture: String,
    #[serde(default)]
    os: String,
    #[serde(default)]
    rootfs: RootFs,
}

#[derive(Debug, Default, Deserialize)]
struct RootFs {
    #[serde(default)]
    diff_ids: Vec<String>,
}

impl Store {
    pub(super) const fn new(root: PathBuf) -> Self {
        Self { root }
    }

    /// The file of a blob, whether it is there or not.
    pub(super) fn path(&self, blob: &Descriptor) -> Result<PathBuf> {
        let hex = blob.as_digest_sha256();
        let hex = hex.ok_or_else(|| Error::guest(format!("digest `{}` is not of sha256", blob.digest())))?;
        Ok(self.root.join("blobs/sha256").join(hex))
    }

    /// The manifests that `target` stands for, of those that are in the store, in the order of the index.
    pub(super) fn candidates(&self, target: &Descriptor) -> Result<Vec<Candidate>> {
        let mut candidates = Vec::new();
        self.collect(target, 0, &mut candidates)?;
        Ok(candidates)
    }

    fn collect(&self, target: &Descriptor, depth: usize, candidates: &mut Vec<Candidate>) -> Result<()> {
        let media_type = target.media_type().as_ref();
        if depth > DEPTH_MAX {
            return Err(Error::guest("its indexes lie too deep in each other"));
        }
        if INDEXES.contains(&media_type) {
            let index: Option<ImageIndex> = self.read(target)?;
            let manifests = index.iter().flat_map(|index| index.manifests());
            return manifests.into_iter().try_for_each(|manifest| self.collect(manifest, depth + 1, candidates));
        }
        if !MANIFESTS.contains(&media_type) {
            return Err(Error::guest(format!("`{media_type}` is neither a manifest nor an index")));
        }
        if let Some(manifest) = self.read::<ImageManifest>(target)? {
            candidates.push(self.candidate(target, manifest)?);
        }
        Ok(())
    }

    /// What `manifest` is of, as its configuration says; the index has no more to say than that.
    fn candidate(&self, target: &Descriptor, manifest: ImageManifest) -> Result<Candidate> {
        let configuration: Configuration = self.read(manifest.config())?.unwrap_or_default();
        let platform = match target.platform() {
            Some(platform) => Platform::new(platform.os().to_string(), platform.architecture().to_string()),
            None => Platform::new(configuration.os, configuration.architecture.clone()),
        };
        let is_wasm = manifest.config().media_type().as_ref() == WASM_CONFIG
            || platform.is_wasm()
            || configuration.architecture.starts_with("wasm");
        Ok(Candidate { manifest, platform, is_wasm, diff_ids: configuration.rootfs.diff_ids })
    }

    /// Reads and verifies a document; nothing when it is not in the store.
    fn read<T: DeserializeOwned>(&self, blob: &Descriptor) -> Result<Option<T>> {
        let reading = || format!("cannot read `{}`", blob.digest());
        let file = match File::open(self.path(blob)?) {
            Err(error) if error.kind() == ErrorKind::NotFound => return Ok(None),
            file => file.or_host(reading())?,
        };
        let mut text = Vec::new();
        file.take(DOCUMENT_BYTES_MAX).read_to_end(&mut text).or_host(reading())?;
        if Some(sha256(&text).as_str()) != blob.as_digest_sha256() {
            return Err(Error::host(format!("`{}` is not what its digest says", blob.digest())));
        }
        serde_json::from_slice(&text).map(Some).or_guest(reading())
    }
}
