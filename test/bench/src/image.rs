//! Images of one program each, as OCI archives that `ctr images import` reads.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use serde_json::{Value, json};
use sha2::{Digest, Sha256};

const MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
const LAYOUT: &[u8] = br#"{"imageLayoutVersion":"1.0.0"}"#;

/// How an image carries its program.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Form {
    /// As the only file of an ordinary image.
    File,
    /// As a layer of the type `application/wasm`, which is not unpacked.
    WasmLayer,
}

/// An image of one program.
pub(crate) struct Image {
    /// What containerd calls it.
    pub(crate) name: String,
    /// `OS/ARCHITECTURE`.
    pub(crate) platform: String,
    /// The snapshot of its files; empty when it has none.
    pub(crate) snapshot: String,
    /// The archive that it is imported from.
    pub(crate) archive: PathBuf,
    /// The program's path inside.
    pub(crate) entrypoint: String,
}

impl Image {
    /// Writes the archive of an image of the program into the directory.
    ///
    /// # Errors
    /// When the program cannot be read or the archive cannot be written.
    pub(crate) fn pack(program: &Path, form: Form, directory: &Path) -> Result<Self> {
        let file = program.file_name().and_then(|name| name.to_str()).context("the program has no name")?;
        let bytes = std::fs::read(program).with_context(|| format!("cannot read `{}`", program.display()))?;
        let (suffix, os, architecture, media_type, layer) = match form {
            Form::File => {
                let layer = tar_of(&[(file, &bytes, 0o755)])?;
                ("file", "linux", architecture(), "application/vnd.oci.image.layer.v1.tar", layer)
            }
            Form::WasmLayer => ("layer", "wasi", "wasm", "application/wasm", bytes),
        };
        let snapshot = if form == Form::File { digest(&layer) } else { String::new() };
        let unpacked: Vec<_> = Some(&snapshot).into_iter().filter(|snapshot| !snapshot.is_empty()).collect();
        let config = serde_json::to_vec(&json!({
            "os": os, "architecture": architecture,
            "config": {"Entrypoint": [format!("/{file}")]},
            "rootfs": {"type": "layers", "diff_ids": unpacked},
        }))?;
        let image = Self {
            name: format!("localhost/{}-{suffix}:1", file.replace('.', "-")),
            platform: format!("{os}/{architecture}"),
            archive: directory.join(format!("{file}-{suffix}.tar")),
            entrypoint: format!("/{file}"),
            snapshot,
        };
        image.write(media_type, &layer, &config)?;
        Ok(image)
    }

    fn write(&self, media_type: &str, layer: &[u8], config: &[u8]) -> Result<()> {
        let manifest = serde_json::to_vec(&json!({
            "schemaVersion": 2, "mediaType": MANIFEST,
            "config": descriptor("application/vnd.oci.image.config.v1+json", config),
            "layers": [descriptor(media_type, layer)],
        }))?;
        let mut root = descriptor(MANIFEST, &manifest);
        root["annotations"] = json!({"io.containerd.image.name": self.name});
        let index = serde_json::to_vec(&json!({"schemaVersion": 2, "manifests": [root]}))?;
        let blobs = [layer, config, &manifest];
        let paths = blobs.map(|blob| digest(blob).replace("sha256:", "blobs/sha256/"));
        let mut files: Vec<(&str, &[u8], u32)> = vec![("oci-layout", LAYOUT, 0o644), ("index.json", &index, 0o644)];
        files.extend(paths.iter().zip(blobs).map(|(path, blob)| (path.as_str(), blob, 0o644)));
        std::fs::write(&self.archive, tar_of(&files)?)
            .with_context(|| format!("cannot write `{}`", self.archive.display()))
    }
}

fn architecture() -> &'static str {
    match std::env::consts::ARCH {
        "x86_64" => "amd64",
        "aarch64" => "arm64",
        other => other,
    }
}

fn descriptor(media_type: &str, blob: &[u8]) -> Value {
    json!({"mediaType": media_type, "digest": digest(blob), "size": blob.len()})
}

fn digest(bytes: &[u8]) -> String {
    let hex: String = Sha256::digest(bytes).iter().map(|byte| format!("{byte:02x}")).collect();
    format!("sha256:{hex}")
}

fn tar_of(files: &[(&str, &[u8], u32)]) -> Result<Vec<u8>> {
    let mut builder = tar::Builder::new(Vec::new());
    for (path, bytes, mode) in files {
        let mut header = tar::Header::new_gnu();
        header.set_size(u64::try_from(bytes.len())?);
        header.set_mode(*mode);
        builder.append_data(&mut header, path, *bytes)?;
    }
    Ok(builder.into_inner()?)
}
