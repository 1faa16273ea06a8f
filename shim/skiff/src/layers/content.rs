//! containerd's content store, read by path: manifests, indexes and configurations, each verified by its digest and read once.
//!
//! What an image names is a stranger's choice, so everything that is followed counts against a bound for the whole image.

use std::collections::{HashMap, HashSet};
use std::fs;
use std::io::{ErrorKind, Read};
use std::path::{Path, PathBuf};

use super::choose::{Candidate, Platform, chain_id};
use super::document::{Configuration, Descriptor, Index, Manifest, parse};
use super::media_types::{WASM_CONFIG, is_wasm};
use crate::digest::sha256;
use crate::error::{Context, Error, Result};
use crate::regular;

/// The largest document that is read, in bytes.
const DOCUMENT_BYTES_MAX: u64 = 4 << 20;
/// The most documents of one image that are read.
const DOCUMENTS_MAX: usize = 200;
/// The most that all documents of one image may have, in bytes.
const IMAGE_BYTES_MAX: u64 = 32 << 20;
/// The most manifests that all indexes of one image may name, most of which were never pulled.
const NAMED_MAX: usize = 2000;
/// The most wasm layers of one manifest.
const LAYERS_MAX: usize = 100;
/// How deep indexes may be nested.
const DEPTH_MAX: usize = 4;
const INDEXES: [&str; 2] =
    ["application/vnd.oci.image.index.v1+json", "application/vnd.docker.distribution.manifest.list.v2+json"];
const MANIFESTS: [&str; 2] =
    ["application/vnd.oci.image.manifest.v1+json", "application/vnd.docker.distribution.manifest.v2+json"];

/// The blobs of a content store.
#[derive(Debug)]
pub(super) struct Store {
    /// Where they are on the node.
    shown: PathBuf,
    /// Where this process finds them.
    place: PathBuf,
}

impl Store {
    /// The content store at `root`.
    pub(super) fn new(root: &Path) -> Self {
        let shown = root.join("blobs/sha256");
        Self { place: shown.clone(), shown }
    }

    /// The directory with all blobs, a path on the node.
    pub(super) fn directory(&self) -> &Path {
        &self.shown
    }

    /// The same for a process whose root directory is the one with the blobs.
    pub(super) fn in_root(self) -> Self {
        Self { place: "/".into(), ..self }
    }

    /// The node's path of a blob that is in the store.
    ///
    /// # Errors
    /// The image's fault if the digest is not valid; the host's if the blob is not there.
    pub(super) fn find(&self, blob: &Descriptor) -> Result<PathBuf> {
        let hex = blob.sha256()?;
        if fs::symlink_metadata(self.place.join(hex)).is_ok_and(|metadata| metadata.is_file()) {
            return Ok(self.shown.join(hex));
        }
        Err(Error::host(format!("layer `{}` is not in containerd's content store", blob.digest)))
    }

    /// The manifests of `target` that are in the store, in the order of the index.
    ///
    /// # Errors
    /// The image's fault if it is not an image, or exceeds a bound; the host's if a document cannot be read.
    pub(super) fn candidates(&self, target: &Descriptor) -> Result<Vec<Candidate>> {
        let mut walk = Walk::new(self);
        walk.collect(target, 0)?;
        Ok(walk.candidates)
    }
}

/// A walk through everything that an image names.
struct Walk<'a> {
    store: &'a Store,
    candidates: Vec<Candidate>,
    /// The manifests and indexes that were found so far; each is read once.
    seen: HashSet<String>,
    /// The configurations that were read, with their chain ids, by digest; several manifests may share one.
    configurations: HashMap<String, (Configuration, String)>,
    documents: usize,
    bytes: u64,
    named: usize,
}

impl<'a> Walk<'a> {
    fn new(store: &'a Store) -> Self {
        Self {
            store,
            candidates: Vec::new(),
            seen: HashSet::new(),
            configurations: HashMap::new(),
            documents: 0,
            bytes: 0,
            named: 0,
        }
    }

    fn collect(&mut self, target: &Descriptor, depth: usize) -> Result<()> {
        if depth > DEPTH_MAX {
            return Err(Error::guest(format!("its indexes are nested more than {DEPTH_MAX} deep")));
        }
        if !self.seen.insert(target.sha256()?.to_owned()) {
            return Ok(());
        }
        let media_type = target.media_type.as_str();
        if INDEXES.contains(&media_type) {
            let Some(text) = self.read(target)? else { return Ok(()) };
            let index: Index = parse(&text, &target.digest)?;
            drop(text);
            self.named += index.manifests.len();
            if self.named > NAMED_MAX {
                return Err(Error::guest(format!("its indexes name more than {NAMED_MAX} manifests")));
            }
            return index.manifests.iter().try_for_each(|manifest| self.collect(manifest, depth + 1));
        }
        if !MANIFESTS.contains(&media_type) {
            return Err(Error::guest(format!("`{media_type}` is neither a manifest nor an index")));
        }
        if let Some(text) = self.read(target)? {
            let manifest = parse(&text, &target.digest)?;
            drop(text);
            let candidate = self.candidate(target, manifest)?;
            self.candidates.push(candidate);
        }
        Ok(())
    }

    /// Describes `manifest` by what its configuration and its descriptor in the index say.
    fn candidate(&mut self, target: &Descriptor, manifest: Manifest) -> Result<Candidate> {
        let config = manifest.config;
        let (configuration, chain) = self.configuration(&config)?;
        let platform = match &target.platform {
            Some(platform) => Platform::new(platform.os.clone(), platform.architecture.clone()),
            None => Platform::new(configuration.os.clone(), configuration.architecture.clone()),
        };
        let announces_wasm =
            config.media_type == WASM_CONFIG || platform.is_wasm() || configuration.architecture.starts_with("wasm");
        let chain = chain.clone();
        let layers: Vec<_> = manifest.layers.into_iter().filter(|layer| is_wasm(&layer.media_type)).collect();
        if layers.len() > LAYERS_MAX {
            return Err(Error::guest(format!("`{}` has more than {LAYERS_MAX} wasm layers", target.digest)));
        }
        Ok(Candidate { config_media_type: config.media_type, layers, platform, is_wasm: announces_wasm, chain })
    }

    /// A configuration and the name of the snapshot with its layers; an empty one if it is not in the store.
    fn configuration(&mut self, blob: &Descriptor) -> Result<&(Configuration, String)> {
        let hex = blob.sha256()?;
        if !self.configurations.contains_key(hex) {
            let mut configuration = match self.read(blob)? {
                Some(text) => parse::<Configuration>(&text, &blob.digest)?,
                None => Configuration::default(),
            };
            let chain = chain_id(&std::mem::take(&mut configuration.rootfs.diff_ids));
            self.configurations.insert(hex.to_owned(), (configuration, chain));
        }
        self.configurations.get(hex).ok_or_else(|| Error::host("a configuration is missing"))
    }

    /// Reads and verifies a document; `None` if it is not in the store.
    fn read(&mut self, blob: &Descriptor) -> Result<Option<Vec<u8>>> {
        let reading = || format!("cannot read `{}`", blob.digest);
        let hex = blob.sha256()?;
        let (file, bytes) = match regular::open(&self.store.place.join(hex)) {
            Err(error) if error.kind() == ErrorKind::NotFound => return Ok(None),
            opened => opened.or_host(reading())?,
        };
        self.count(blob, bytes)?;
        let mut text = Vec::with_capacity(usize::try_from(bytes).or_host(reading())?);
        file.take(bytes).read_to_end(&mut text).or_host(reading())?;
        if sha256(&text) != hex {
            return Err(Error::host(format!("the content of `{}` does not match its digest", blob.digest)));
        }
        Ok(Some(text))
    }

    /// Counts a document of `bytes` bytes before it is read.
    fn count(&mut self, blob: &Descriptor, bytes: u64) -> Result<()> {
        if bytes > DOCUMENT_BYTES_MAX {
            let mebibytes = DOCUMENT_BYTES_MAX >> 20;
            return Err(Error::guest(format!(
                "`{}` is larger than {mebibytes} MiB, the limit for a document",
                blob.digest
            )));
        }
        self.documents += 1;
        self.bytes += bytes;
        if self.documents > DOCUMENTS_MAX {
            return Err(Error::guest(format!("it has more than {DOCUMENTS_MAX} documents")));
        }
        if self.bytes > IMAGE_BYTES_MAX {
            let mebibytes = IMAGE_BYTES_MAX >> 20;
            return Err(Error::guest(format!("its documents have more than {mebibytes} MiB in total")));
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::time::{Duration, Instant};

    use nix::sys::stat::Mode;
    use nix::unistd::mkfifo;
    use proptest::prelude::*;
    use serde_json::{Value, json};
    use tempfile::TempDir;

    use super::*;
    use crate::layers::host_architecture;
    use crate::testing::{many, mutated};

    const MANIFEST: &str = MANIFESTS[0];
    const CONFIG: &str = "application/vnd.oci.image.config.v1+json";

    /// A content store that the tests fill.
    struct Content(TempDir);

    impl Content {
        fn new() -> Self {
            let directory = tempfile::tempdir().unwrap();
            fs::create_dir_all(directory.path().join("blobs/sha256")).unwrap();
            Self(directory)
        }

        fn store(&self) -> Store {
            Store::new(self.0.path())
        }

        /// Stores a document and returns its descriptor.
        fn add(&self, media_type: &str, document: &Value) -> Value {
            self.add_text(media_type, document.to_string().as_bytes())
        }

        fn add_text(&self, media_type: &str, text: &[u8]) -> Value {
            let digest = sha256(text);
            fs::write(self.0.path().join("blobs/sha256").join(&digest), text).unwrap();
            json!({"mediaType": media_type, "digest": format!("sha256:{digest}"), "size": text.len()})
        }

        /// Stores the manifest of an image and returns its descriptor.
        fn add_image(&self, config: &Value, media_type: &str) -> Value {
            let config = self.add(media_type, config);
            self.add(MANIFEST, &json!({"schemaVersion": 2, "config": config, "layers": []}))
        }

        /// Stores an index.
        fn add_index(&self, manifests: &[Value]) -> Value {
            self.add(INDEXES[0], &json!({"schemaVersion": 2, "manifests": manifests}))
        }

        fn remove(&self, descriptor: &Value) {
            fs::remove_file(self.path(descriptor)).unwrap();
        }

        fn path(&self, descriptor: &Value) -> PathBuf {
            self.store().place.join(target(descriptor).sha256().unwrap())
        }

        fn found(&self, descriptor: &Value) -> Result<Vec<Candidate>> {
            self.store().candidates(&target(descriptor))
        }

        fn refusal(&self, descriptor: &Value) -> String {
            self.found(descriptor).unwrap_err().to_string()
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
            let found = content.found(&index).unwrap();
            let found: Vec<_> = found.iter().map(|candidate| (candidate.is_wasm, candidate.chain.as_str())).collect();
            assert_eq!(found, [(false, "sha256:n"), (true, "")]);
        }
    }

    #[test]
    fn a_platform_or_a_configuration_announces_wasm() {
        let content = Content::new();
        let check = |config: Value, media_type: &str, expected: bool| {
            let image = content.add_image(&config, media_type);
            assert_eq!(content.found(&image).unwrap()[0].is_wasm, expected, "{config} {media_type}");
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
        let error = content.refusal(&image);
        assert!(error.ends_with("does not match its digest"), "{error}");
    }

    #[test]
    fn something_that_is_no_image_is_an_error() {
        let content = Content::new();
        let nothing = format!("sha256:{}", sha256(""));
        let chart = Descriptor::new("application/vnd.cncf.helm.chart".into(), nothing, 0);
        let error = content.store().candidates(&chart).unwrap_err().to_string();
        assert_eq!(error, "`application/vnd.cncf.helm.chart` is neither a manifest nor an index");
        let mut inner = content.add_index(&[]);
        for _ in 0..6 {
            inner = content.add_index(&[inner]);
        }
        assert_eq!(content.refusal(&inner), "its indexes are nested more than 4 deep");
    }

    /// How many copies a hostile index has on each of its four levels.
    const COPIES: usize = 40;

    /// Asserts that this takes less than a second: beside other load it may take longer, but not each time.
    fn assert_is_quick(check: impl Fn()) {
        let takes = |_| {
            let begun = Instant::now();
            check();
            begun.elapsed()
        };
        let least = (0..5).map(takes).min().unwrap();
        assert!(least < Duration::from_secs(1), "{least:?}");
    }

    #[test]
    fn an_index_that_nests_copies_of_one_image_finds_it_once_and_at_once() {
        let content = Content::new();
        let mut inner = content.add_image(&json!({"os": "wasi", "architecture": "wasm"}), CONFIG);
        for _ in 0..4 {
            inner = content.add_index(&vec![inner; COPIES]);
        }
        assert_is_quick(|| assert_eq!(content.found(&inner).unwrap().len(), 1));
    }

    #[test]
    fn an_index_that_nests_different_images_is_refused_at_once_by_the_bound_that_it_hits() {
        let content = Content::new();
        let image = |number: usize| content.add_image(&json!({"architecture": "wasm", "number": number}), CONFIG);
        let mut level: Vec<_> = (0..COPIES).map(image).collect();
        for height in 0..3 {
            let index = |number: usize| {
                content
                    .add(INDEXES[0], &json!({"manifests": level, "annotations": {"n": format!("{height} {number}")}}))
            };
            level = (0..COPIES).map(index).collect();
        }
        let outermost = content.add_index(&level);
        assert_is_quick(|| assert_eq!(content.refusal(&outermost), "its indexes name more than 2000 manifests"));
    }

    #[test]
    fn more_documents_or_larger_ones_than_an_image_has_are_refused() {
        let content = Content::new();
        let images: Vec<_> =
            (0..=DOCUMENTS_MAX / 2).map(|number| content.add_image(&json!({"number": number}), CONFIG)).collect();
        assert_eq!(content.refusal(&content.add_index(&images)), "it has more than 200 documents");
        assert_eq!(content.found(&content.add_index(&images[..DOCUMENTS_MAX / 2 - 1])).unwrap().len(), 99);

        let padding = "x".repeat(usize::try_from(DOCUMENT_BYTES_MAX).unwrap() - 100);
        let padded: Vec<_> =
            (10..20).map(|number| content.add_image(&json!({"number": number, "padding": padding}), CONFIG)).collect();
        assert_eq!(content.found(&content.add_index(&padded[..7])).unwrap().len(), 7);
        assert_eq!(content.refusal(&content.add_index(&padded)), "its documents have more than 32 MiB in total");

        let large = content.add_image(&json!({"padding": padding + &"x".repeat(200)}), CONFIG);
        let sentence = content.refusal(&large);
        assert!(sentence.ends_with("is larger than 4 MiB, the limit for a document"), "{sentence}");
    }

    #[test]
    fn a_document_that_is_no_file_or_of_no_end_is_refused_without_being_read() {
        let content = Content::new();
        let image = content.add_image(&json!({}), CONFIG);
        content.remove(&image);
        mkfifo(&content.path(&image), Mode::S_IRUSR).unwrap();
        let sentence = content.refusal(&image);
        assert!(sentence.ends_with("it is a pipe, not a regular file"), "{sentence}");
        content.remove(&image);
        fs::File::create(content.path(&image)).unwrap().set_len(8 << 40).unwrap();
        let sentence = content.refusal(&image);
        assert!(sentence.ends_with("is larger than 4 MiB, the limit for a document"), "{sentence}");
    }

    #[test]
    fn more_wasm_layers_than_an_image_has_are_refused() {
        let content = Content::new();
        let layer = content.add("application/wasm", &json!(0));
        let config = content.add(CONFIG, &json!({}));
        let image = |count| content.add(MANIFEST, &json!({"config": config, "layers": vec![layer.clone(); count]}));
        assert_eq!(content.found(&image(LAYERS_MAX)).unwrap()[0].layers.len(), LAYERS_MAX);
        let sentence = content.refusal(&image(LAYERS_MAX + 1));
        assert!(sentence.ends_with("has more than 100 wasm layers"), "{sentence}");
    }

    /// Adds an image in which one document, of this media type, has the broken `text`.
    fn with_broken(content: &Content, media_type: &str, text: &[u8]) -> Value {
        let broken = content.add_text(media_type, text);
        match media_type {
            CONFIG => content.add(MANIFEST, &json!({"config": broken, "layers": []})),
            _ => content.add_index(&[broken]),
        }
    }

    proptest! {
        #![proptest_config(many())]

        #[test]
        fn an_image_with_a_broken_document_is_read_or_refused(
            (kind, text) in prop::sample::select(vec![0_usize, 1, 2]).prop_flat_map(|kind| {
                let digest = format!("sha256:{}", sha256(""));
                let blob = json!({"mediaType": MANIFEST, "digest": digest, "size": 0, "platform": {"os": "a", "architecture": "b"}});
                let original = [
                    json!({"manifests": [blob, blob]}),
                    json!({"config": blob, "layers": [blob, blob]}),
                    json!({"os": "linux", "architecture": "wasm", "rootfs": {"diff_ids": ["a", "b"]}}),
                ][kind].to_string();
                (Just(kind), mutated(&[original.into_bytes()]))
            })
        ) {
            thread_local!(static CONTENT: Content = Content::new());
            CONTENT.with(|content| {
                let image = with_broken(content, [INDEXES[0], MANIFEST, CONFIG][kind], &text);
                if let Ok(found) = content.found(&image) {
                    assert!(found.len() <= 1);
                }
                // Thousands of documents would slow the next inputs down.
                fs::remove_dir_all(content.store().place).unwrap();
                fs::create_dir(content.store().place).unwrap();
            });
        }
    }
}
