//! The JSON of images, as far as it matters here: manifests, indexes and configurations. All of it is a stranger's, so what is
//! kept of a document is bounded, and everything else in it is skipped.

use std::fmt;
use std::marker::PhantomData;

use serde::de::{DeserializeOwned, Error as _, IgnoredAny, SeqAccess, Visitor};
use serde::{Deserialize, Deserializer};

use crate::error::{Context, Error, Result};

/// The most entries of any list in a document: containerd's images have some hundred layers at most.
pub(super) const LIST_MAX: usize = 1000;
/// The longest text that is kept, in bytes: media types, digests, titles, names of platforms.
pub(super) const TEXT_BYTES_MAX: usize = 1024;

/// What points at a document or a layer.
#[derive(Clone, Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Descriptor {
    #[serde(deserialize_with = "text")]
    pub(super) media_type: String,
    #[serde(deserialize_with = "text")]
    pub(super) digest: String,
    pub(super) size: u64,
    pub(super) platform: Option<NamedPlatform>,
    pub(super) annotations: Option<Annotations>,
}

/// The platform in a descriptor, in Go's words.
#[derive(Clone, Debug, Deserialize)]
pub(super) struct NamedPlatform {
    #[serde(deserialize_with = "text")]
    pub(super) os: String,
    #[serde(deserialize_with = "text")]
    pub(super) architecture: String,
}

/// The one annotation that is used.
#[derive(Clone, Debug, Default, Deserialize)]
pub(super) struct Annotations {
    /// A layer's file name.
    #[serde(rename = "org.opencontainers.image.title", default, deserialize_with = "optional_text")]
    pub(super) title: Option<String>,
}

/// Manifests of one image, or indexes of them.
#[derive(Debug, Deserialize)]
pub(super) struct Index {
    #[serde(deserialize_with = "list")]
    pub(super) manifests: Vec<Descriptor>,
}

/// One image.
#[derive(Debug, Deserialize)]
pub(super) struct Manifest {
    pub(super) config: Descriptor,
    #[serde(deserialize_with = "list")]
    pub(super) layers: Vec<Descriptor>,
}

/// An image's configuration, of whatever kind.
#[derive(Debug, Default, Deserialize)]
pub(super) struct Configuration {
    #[serde(default, deserialize_with = "text")]
    pub(super) architecture: String,
    #[serde(default, deserialize_with = "text")]
    pub(super) os: String,
    #[serde(default)]
    pub(super) rootfs: RootFs,
}

/// The digests of an image's unpacked layers.
#[derive(Debug, Default, Deserialize)]
pub(super) struct RootFs {
    #[serde(default, deserialize_with = "list")]
    pub(super) diff_ids: Vec<Text>,
}

/// A text of bounded length.
#[derive(Debug, Deserialize)]
pub(super) struct Text(#[serde(deserialize_with = "text")] pub(super) String);

impl Descriptor {
    /// A descriptor without platform and annotations.
    pub(super) const fn new(media_type: String, digest: String, size: u64) -> Self {
        Self { media_type, digest, size, platform: None, annotations: None }
    }

    /// The digest's hexadecimal digits, which are safe as a file's name.
    ///
    /// # Errors
    /// The image's fault if it is not a SHA-256 digest.
    pub(super) fn sha256(&self) -> Result<&str> {
        let is_hex = |hex: &&str| {
            hex.len() == 64 && hex.bytes().all(|byte| byte.is_ascii_digit() || (b'a'..=b'f').contains(&byte))
        };
        let hex = self.digest.strip_prefix("sha256:").filter(is_hex);
        hex.ok_or_else(|| Error::guest(format!("`{}` is not a SHA-256 digest", self.digest)))
    }
}

/// Reads a document, which messages call `name`.
///
/// # Errors
/// The image's fault if it is not such a document, or exceeds a bound.
pub(super) fn parse<T: DeserializeOwned>(bytes: &[u8], name: &str) -> Result<T> {
    serde_json::from_slice(bytes).or_guest(format!("cannot read `{name}`"))
}

fn text<'de, D: Deserializer<'de>>(deserializer: D) -> Result<String, D::Error> {
    bounded(String::deserialize(deserializer)?)
}

fn optional_text<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<String>, D::Error> {
    Option::<String>::deserialize(deserializer)?.map(bounded).transpose()
}

fn bounded<E: serde::de::Error>(text: String) -> Result<String, E> {
    if text.len() <= TEXT_BYTES_MAX {
        return Ok(text);
    }
    Err(E::custom(format_args!("a text has more than {TEXT_BYTES_MAX} bytes")))
}

/// A list, or the `null` that Go writes for an empty one.
fn list<'de, T: Deserialize<'de>, D: Deserializer<'de>>(deserializer: D) -> Result<Vec<T>, D::Error> {
    deserializer.deserialize_any(List(PhantomData))
}

struct List<T>(PhantomData<T>);

impl<'de, T: Deserialize<'de>> Visitor<'de> for List<T> {
    type Value = Vec<T>;

    fn expecting(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str("a list")
    }

    fn visit_unit<E>(self) -> Result<Self::Value, E> {
        Ok(Vec::new())
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut elements: A) -> Result<Self::Value, A::Error> {
        let mut list = Vec::new();
        while list.len() < LIST_MAX {
            match elements.next_element()? {
                Some(element) => list.push(element),
                None => return Ok(list),
            }
        }
        match elements.next_element::<IgnoredAny>()? {
            None => Ok(list),
            Some(_) => Err(A::Error::custom(format_args!("a list has more than {LIST_MAX} entries"))),
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::json;

    use super::*;
    use crate::testing::{many, mutated};

    const DIGEST: &str = "sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855";

    fn descriptor() -> serde_json::Value {
        json!({
            "mediaType": "application/wasm", "digest": DIGEST, "size": 7, "platform": {"os": "wasi", "architecture": "wasm"},
            "annotations": {"org.opencontainers.image.title": "a.wasm", "other": "x"}, "urls": [], "data": "e30=",
        })
    }

    fn documents() -> [Vec<u8>; 3] {
        [
            json!({"schemaVersion": 2, "manifests": [descriptor(), descriptor()]}),
            json!({"schemaVersion": 2, "config": descriptor(), "layers": [descriptor(), descriptor()]}),
            json!({"os": "linux", "architecture": "amd64", "rootfs": {"type": "layers", "diff_ids": [DIGEST]}}),
        ]
        .map(|document| document.to_string().into_bytes())
    }

    /// Reads `bytes` as each kind of document. The result is bounded, or a sentence.
    fn read(bytes: &[u8]) {
        let check = |descriptor: &Descriptor| {
            let texts = [&descriptor.media_type, &descriptor.digest];
            assert!(texts.iter().all(|text| text.len() <= TEXT_BYTES_MAX));
            if let Ok(hex) = descriptor.sha256() {
                assert_eq!(hex.len(), 64);
            }
        };
        if let Ok(index) = parse::<Index>(bytes, "a") {
            assert!(index.manifests.len() <= LIST_MAX);
            index.manifests.iter().for_each(check);
        }
        match parse::<Manifest>(bytes, "a") {
            Ok(manifest) => {
                assert!(manifest.layers.len() <= LIST_MAX);
                manifest.layers.iter().chain([&manifest.config]).for_each(check);
            }
            Err(error) => assert!(error.to_string().starts_with("cannot read `a`: ")),
        }
        if let Ok(configuration) = parse::<Configuration>(bytes, "a") {
            assert!(configuration.rootfs.diff_ids.len() <= LIST_MAX);
        }
    }

    proptest! {
        #![proptest_config(many())]

        #[test]
        fn any_bytes_are_a_document_or_a_sentence(bytes in prop::collection::vec(any::<u8>(), 0..512)) {
            read(&bytes);
        }

        #[test]
        fn any_broken_document_is_a_document_or_a_sentence(bytes in mutated(&documents())) {
            read(&bytes);
        }
    }

    #[test]
    fn what_is_not_looked_at_is_skipped_and_no_list_may_be_null() {
        let [index, manifest, configuration] = documents();
        assert_eq!(parse::<Index>(&index, "a").unwrap().manifests.len(), 2);
        let manifest = parse::<Manifest>(&manifest, "a").unwrap();
        let title = manifest.layers[0].annotations.as_ref().and_then(|annotations| annotations.title.as_deref());
        assert_eq!(title, Some("a.wasm"));
        assert_eq!(parse::<Configuration>(&configuration, "a").unwrap().rootfs.diff_ids[0].0, DIGEST);
        assert!(parse::<Index>(br#"{"manifests": null}"#, "a").unwrap().manifests.is_empty());
    }

    #[test]
    fn more_than_what_is_kept_is_refused_by_the_bound_that_it_hit() {
        let refusal = |document: serde_json::Value| {
            parse::<Index>(document.to_string().as_bytes(), "a").map(drop).map_err(|error| error.to_string())
        };
        refusal(json!({"manifests": vec![descriptor(); LIST_MAX]})).unwrap();
        let sentence = refusal(json!({"manifests": vec![descriptor(); LIST_MAX + 1]})).unwrap_err();
        assert!(sentence.contains("a list has more than 1000 entries"), "{sentence}");
        let mut long = descriptor();
        long["annotations"]["org.opencontainers.image.title"] = json!("x".repeat(TEXT_BYTES_MAX + 1));
        let sentence = refusal(json!({"manifests": [long]})).unwrap_err();
        assert!(sentence.contains("a text has more than 1024 bytes"), "{sentence}");
        // Nesting is not followed in what is skipped.
        let deep = format!(r#"{{"x": {}{}, "manifests": []}}"#, "[".repeat(1 << 20), "]".repeat(1 << 20));
        parse::<Index>(deep.as_bytes(), "a").unwrap();
    }

    #[test]
    fn a_digest_is_no_path() {
        for digest in ["sha256:../../../etc/shadow", "sha512:00", "", &DIGEST.to_uppercase(), &format!("{DIGEST}0")] {
            let descriptor = Descriptor::new("x".into(), digest.into(), 0);
            assert_eq!(descriptor.sha256().unwrap_err().to_string(), format!("`{digest}` is not a SHA-256 digest"));
        }
    }
}
