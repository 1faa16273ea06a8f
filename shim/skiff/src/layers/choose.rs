//! Which of an image's manifests a container was made from. containerd does not record it, but the container's snapshot
//! shows it: its parent is named after the layers that it was unpacked from.

use std::env::consts::ARCH;

use super::document::{Descriptor, Text};
use crate::digest::sha256;

/// A manifest that is in the content store.
#[derive(Debug)]
pub(super) struct Candidate {
    pub(super) config_media_type: String,
    /// Its layers that are one wasm binary each.
    pub(super) layers: Vec<Descriptor>,
    pub(super) platform: Platform,
    /// Whether it declares itself to be wasm.
    pub(super) is_wasm: bool,
    /// The name of the snapshot that its layers make.
    pub(super) chain: String,
}

/// What an image is for, in Go's words.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Platform {
    os: String,
    architecture: String,
}

/// What to take, best first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Rank {
    Host,
    Wasm,
    Other,
}

impl Platform {
    pub(super) const fn new(os: String, architecture: String) -> Self {
        Self { os, architecture }
    }

    pub(super) fn is_wasm(&self) -> bool {
        self.architecture.starts_with("wasm")
    }

    fn is_host(&self) -> bool {
        self.os == "linux" && self.architecture == host_architecture()
    }
}

/// The processor of this node, in Go's words.
pub(crate) fn host_architecture() -> &'static str {
    match ARCH {
        "x86_64" => "amd64",
        "aarch64" => "arm64",
        other => other,
    }
}

/// The index of the manifest that a container was made from, if its snapshot was made on `parent`.
///
/// If several manifests fit, or none does (a snapshot with shifted ids has a parent of its own), it is the one for the
/// node's platform, which containerd prefers too, otherwise the first that is wasm.
pub(super) fn choose(candidates: &[Candidate], parent: Option<&str>) -> Option<usize> {
    let fits = |candidate: &Candidate| parent == Some(candidate.chain.as_str());
    let is_any_fitting = candidates.iter().any(fits);
    let fitting = candidates.iter().enumerate().filter(|(_, candidate)| fits(candidate) || !is_any_fitting);
    fitting.min_by_key(|(_, candidate)| rank(candidate)).map(|(index, _)| index)
}

fn rank(candidate: &Candidate) -> Rank {
    match candidate {
        _ if candidate.platform.is_host() => Rank::Host,
        _ if candidate.is_wasm => Rank::Wasm,
        _ => Rank::Other,
    }
}

/// The name of the snapshot with these layers, empty for none:
/// <https://github.com/opencontainers/image-spec/blob/main/config.md#layer-chainid>.
pub(super) fn chain_id(diff_ids: &[Text]) -> String {
    let Some((first, rest)) = diff_ids.split_first() else {
        return String::new();
    };
    rest.iter().fold(first.0.clone(), |chain, Text(diff_id)| format!("sha256:{}", sha256(format!("{chain} {diff_id}"))))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn candidate(os: &str, architecture: &str, chain: &str) -> Candidate {
        let platform = Platform::new(os.into(), architecture.into());
        let is_wasm = platform.is_wasm();
        Candidate { config_media_type: String::new(), layers: Vec::new(), platform, is_wasm, chain: chain.into() }
    }

    #[test]
    fn a_chain_is_named_as_the_specification_says() {
        assert_eq!(chain_id(&[]), "");
        let text = |id: &str| Text(id.into());
        assert_eq!(chain_id(&[text("sha256:a")]), "sha256:a");
        let expected = sha256("sha256:a sha256:b");
        assert_eq!(chain_id(&["sha256:a", "sha256:b"].map(text)), format!("sha256:{expected}"));
    }

    #[test]
    fn the_snapshot_tells_which_manifest_was_taken() {
        let images = [
            candidate("linux", host_architecture(), "sha256:native"),
            candidate("wasi", "wasm", "sha256:wasm"),
            candidate("wasip2", "wasm", ""),
        ];
        let check = |parent: Option<&str>, expected| assert_eq!(choose(&images, parent), Some(expected), "{parent:?}");
        check(Some("sha256:native"), 0);
        check(Some("sha256:wasm"), 1);
        check(Some(""), 2);
        check(Some("sha256:shifted"), 0);
        check(None, 0);
    }

    #[test]
    fn without_the_nodes_platform_the_first_wasm_is_taken() {
        let images =
            [candidate("linux", "s390x", "sha256:a"), candidate("wasip1", "wasm", ""), candidate("wasip2", "wasm", "")];
        assert_eq!(choose(&images, None), Some(1));
        assert_eq!(choose(&images[..1], None), Some(0));
        assert_eq!(choose(&[], Some("")), None);
    }
}
