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

#[cfg(test)]
mod tests {
    use std::fs;

    use oci_spec::image::{Digest, MediaType};
    use serde_json::{Value, json};
    use tempfile::TempDir;

    use super::*;
    use crate::layers::host_architecture;

    const MANIFEST: &str = MANIFESTS[0];
    const CONFIG: &str = "application/vnd.oci.image.config.v1+json";

    /// A content store of our own making.
    struct Content(TempDir);

    impl Content {
        fn new() -> Self {
            let directory = tempfile::tempdir().unwrap();
            fs::create_dir_all(directory.path().join("blobs/sha256")).unwrap();
            Self(directory)
        }

        fn store(&self) -> Store {
            Store::new(self.0.path().into())
        }

        /// Stores a document and returns its descriptor.
        fn add(&self, media_type: &str, document: &Value) -> Value {
            let text = document.to_string();
            let digest = sha256(&text);
            fs::write(self.0.path().join("blobs/sha256").join(&digest), &text).unwrap();
            json!({"mediaType": media_type, "digest": format!("sha256:{digest}"), "size": text.len()})
        }

        /// Stores the manifest of an image and returns its descriptor.
        fn add_image(&self, config: &Value, media_type: &str) -> Value {
            let config = self.add(media_type, config);
            self.add(MANIFEST, &json!({"schemaVersion": 2, "config": config, "layers": []}))
        }

        fn remove(&self, descriptor: &Value) {
            fs::remove_file(self.path(descriptor)).unwrap();
        }

        fn path(&self, descriptor: &Value) -> PathBuf {
            self.store().path(&target(descriptor)).unwrap()
        }
    }

    fn target(descriptor: &Value) -> Descriptor {
        serde_json::from_value(descriptor.clone()).unwrap()
    }

    #[test]
    fn an_index_stands_for_those_of_its_manifests_that_were_pulled() {
        let content = Content::new();
        let native = json!({"os": "linux", "architecture": host_architecture(), "rootfs": {"diff_ids": ["sha256:n"]}});
        let native = content.add_image(&native, CONFIG);
        let other = content.add_image(&json!({"os": "linux", "architecture": "s390x"}), CONFIG);
        let mut wasm = content.add_image(&json!({"os": "wasip2", "architecture": "wasm"}), WASM_CONFIG);
        wasm["platform"] = json!({"os": "wasip2", "architecture": "wasm"});
        content.remove(&other);
        for media_type in INDEXES {
            let index = content.add(media_type, &json!({"schemaVersion": 2, "manifests": [native, other, wasm]}));
            let found = content.store().candidates(&target(&index)).unwrap();
            let found: Vec<_> = found.iter().map(|candidate| (candidate.is_wasm, candidate.diff_ids.len())).collect();
            assert_eq!(found, [(false, 1), (true, 0)]);
        }
    }

    #[test]
    fn a_platform_or_a_configuration_announces_wasm() {
        let content = Content::new();
        let check = |config: Value, media_type: &str, expected: bool| {
            let image = content.add_image(&config, media_type);
            let found = content.store().candidates(&target(&image)).unwrap();
            assert_eq!(found[0].is_wasm, expected, "{config} {media_type}");
        };
        check(json!({"os": "linux", "architecture": "amd64"}), CONFIG, false);
        check(json!({"os": "wasi", "architecture": "wasm"}), CONFIG, true);
        check(json!({"os": "wasi", "architecture": "wasm32"}), CONFIG, true);
        check(json!({}), WASM_CONFIG, true);
    }

    #[test]
    fn what_is_not_what_its_digest_says_is_an_error() {
        let content = Content::new();
        let image = content.add_image(&json!({}), CONFIG);
        fs::write(content.path(&image), "{}").unwrap();
        let error = content.store().candidates(&target(&image)).unwrap_err().to_string();
        assert!(error.ends_with("is not what its digest says"), "{error}");
    }

    #[test]
    fn something_that_is_no_image_is_an_error() {
        let content = Content::new();
        let nothing = Digest::try_from(format!("sha256:{}", sha256(""))).unwrap();
        let chart = Descriptor::new(MediaType::from("application/vnd.cncf.helm.chart"), 0, nothing);
        let error = content.store().candidates(&chart).unwrap_err().to_string();
        assert_eq!(error, "`application/vnd.cncf.helm.chart` is neither a manifest nor an index");
        let mut inner = content.add(INDEXES[0], &json!({"schemaVersion": 2, "manifests": []}));
        for _ in 0..6 {
            inner = content.add(INDEXES[0], &json!({"schemaVersion": 2, "manifests": [inner]}));
        }
        let error = content.store().candidates(&target(&inner)).unwrap_err().to_string();
        assert_eq!(error, "its indexes lie too deep in each other");
    }
}
