//! Wasm layers of an image, which containerd does not unpack: asked for through `skiff layers`, a process of its own, so
//! that no gRPC client lives in the shim.

use std::io;
use std::path::PathBuf;
use std::process::{ExitStatus, Stdio};
use std::time::Duration;

use skiff_protocol::names::SKIFF;
use skiff_protocol::{ImageLayers, WasmLayer};
use tokio::io::{AsyncRead, AsyncReadExt};
use tokio::process::Command;

use crate::error::{Context, Error, Result};
use crate::host::engine::beside_the_shim;
use crate::host::process::{OomScore, wait_within, work_for_a_pod};
use crate::identity::Identity;

/// How long `skiff layers` may take; it gives itself less.
const LIMIT: Duration = Duration::from_secs(20);
/// The most that it may print, in bytes.
const PRINTED_BYTES_MAX: u64 = 4 << 20;

/// The layer that a container's entry point means.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Layer {
    /// Its sha256, lower-case hexadecimal.
    pub(super) digest: String,
    /// Its file in the content store.
    pub(super) path: PathBuf,
}

/// Looks for the wasm layer that `name` means in the image of container `id`; `None` for an image without wasm layers.
///
/// # Errors
/// An image that announces wasm is never taken for something else: whatever keeps its layers from being read is an error.
pub(super) async fn find(identity: &Identity, id: &str, name: &str) -> Result<Option<Layer>> {
    if identity.containerd.is_empty() {
        return Ok(None);
    }
    let (status, printed, said) = run(identity, id).await.doing(|| "cannot run `skiff layers`".into())?;
    if !status.success() {
        let said = String::from_utf8_lossy(&said);
        let said = said.trim().trim_start_matches("skiff: ");
        return Err(Error::invalid(format!(
            "there is no file `{name}`, and the image's layers cannot be read: {said}"
        )));
    }
    let image: ImageLayers =
        serde_json::from_slice(&printed).doing(|| "cannot parse the output of `skiff layers`".into())?;
    choose(&image, name)
}

/// What `skiff layers` ended with, what it printed and what it said. It is killed when its time is over, or when nobody waits
/// for it any more.
async fn run(identity: &Identity, id: &str) -> io::Result<(ExitStatus, Vec<u8>, Vec<u8>)> {
    let mut command = Command::new(beside_the_shim(SKIFF)?);
    command.args(["layers", "--address", &identity.containerd, "--namespace", &identity.namespace, "--container", id]);
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()).kill_on_drop(true);
    work_for_a_pod(command.as_std_mut(), libc::SIGKILL, OomScore::First);
    let mut child = command.spawn()?;
    let (stdout, stderr) = (child.stdout.take(), child.stderr.take());
    let (status, printed, said) = tokio::join!(wait_within(&mut child, LIMIT), read(stdout), read(stderr));
    Ok((status?, printed?, said?))
}

async fn read(stream: Option<impl AsyncRead + Unpin>) -> io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    if let Some(stream) = stream {
        stream.take(PRINTED_BYTES_MAX).read_to_end(&mut bytes).await?;
    }
    Ok(bytes)
}

fn choose(image: &ImageLayers, name: &str) -> Result<Option<Layer>> {
    if !image.announced {
        return Ok(None);
    }
    let reference = image.image.as_deref().unwrap_or_default();
    let wanted = name.trim_start_matches("./").trim_start_matches('/');
    let titled =
        |layer: &&WasmLayer| layer.title.as_deref().is_some_and(|title| title.trim_start_matches('/') == wanted);
    let chosen = match (&image.layers[..], image.layers.iter().find(titled)) {
        ([], _) => {
            return Err(Error::invalid(format!(
                "image `{reference}` declares itself to be wasm, but has no wasm layer"
            )));
        }
        (_, Some(layer)) => layer,
        ([only], None) if only.title.is_none() || wanted.is_empty() => only,
        (several, None) => {
            let titles: Vec<_> =
                several.iter().map(|layer| format!("`{}`", layer.title.as_deref().unwrap_or("?"))).collect();
            return Err(Error::invalid(format!(
                "image `{reference}` has no wasm layer `{wanted}`; it has {}",
                titles.join(", ")
            )));
        }
    };
    let digest = chosen.digest.strip_prefix("sha256:").ok_or_else(|| {
        Error::invalid(format!(
            "the wasm layer of image `{reference}` has the digest `{}`, which is not a sha256",
            chosen.digest
        ))
    })?;
    Ok(Some(Layer { digest: digest.into(), path: chosen.path.clone() }))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn layer(title: Option<&str>) -> WasmLayer {
        WasmLayer {
            digest: format!("sha256:{}", title.unwrap_or("none")),
            title: title.map(str::to_string),
            path: "/blob".into(),
            ..WasmLayer::default()
        }
    }

    fn check(layers: Vec<WasmLayer>, name: &str, expected: std::result::Result<&str, &str>) {
        let image = ImageLayers { image: Some("r/i:1".into()), announced: true, layers, ..ImageLayers::default() };
        match (choose(&image, name), expected) {
            (Ok(Some(found)), Ok(digest)) => assert_eq!(found.digest, digest, "{name}"),
            (Err(error), Err(part)) => assert!(error.to_string().contains(part), "{name}: {error}"),
            (other, _) => panic!("{name}: {other:?}"),
        }
    }

    #[test]
    fn the_entry_point_chooses_the_layer() {
        check(vec![layer(None)], "/app.wasm", Ok("none"));
        check(vec![layer(Some("app.wasm"))], "/app.wasm", Ok("app.wasm"));
        check(vec![layer(Some("app.wasm"))], "/", Ok("app.wasm"));
        check(vec![layer(Some("a")), layer(Some("b"))], "./b", Ok("b"));
        check(vec![layer(Some("a"))], "/other.wasm", Err("no wasm layer `other.wasm`; it has `a`"));
        check(vec![layer(Some("a")), layer(Some("b"))], "/", Err("it has `a`, `b`"));
        check(vec![], "/a", Err("has no wasm layer"));
    }

    #[test]
    fn an_image_without_wasm_is_none_of_ours() {
        let image = ImageLayers::default();
        assert_eq!(choose(&image, "/bin/sh").unwrap(), None);
    }

    proptest! {
        #![proptest_config(ProptestConfig { cases: 10_000, max_shrink_iters: 200, ..ProptestConfig::default() })]
        #[test]
        fn whatever_an_image_says_of_its_layers_one_is_chosen_or_it_is_refused(
            text in prop_oneof![
                ".{0,200}",
                (r#"(null|"r")"#, any::<bool>(), prop::collection::vec(
                    (r#"(sha256:)?[0-9a-z/.]{0,70}"#, r#"(null|"[a-z/.]{0,9}")"#, r#"[/a-z.]{0,20}"#), 0..4,
                )).prop_map(|(image, announced, layers)| {
                    let layers: Vec<_> = layers.into_iter().map(|(digest, title, path)| {
                        format!(r#"{{"media_type":"m","size":1,"digest":"{digest}","title":{title},"path":"{path}"}}"#)
                    }).collect();
                    format!(r#"{{"image":{image},"announced":{announced},"layers":[{}]}}"#, layers.join(","))
                }),
            ],
            name in "[/a-z.]{0,9}",
        ) {
            if let Ok(image) = serde_json::from_str::<ImageLayers>(&text)
                && let Ok(Some(found)) = choose(&image, &name)
            {
                let digest = format!("sha256:{}", found.digest);
                prop_assert!(image.layers.iter().any(|layer| layer.digest == digest));
            }
        }
    }
}
