//! Images of one file each, as OCI archives that `ctr images import` reads.

use std::fs::File;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use serde_json::{Value, json};
use sha2::{Digest, Sha256};

/// An image whose only file is the program.
pub(crate) struct Image {
    /// What containerd calls it.
    pub(crate) name: String,
    /// The snapshot of its one layer.
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
    pub(crate) fn pack(program: &Path, directory: &Path) -> Result<Self> {
        let name = program.file_name().and_then(|name| name.to_str()).context("the program has no name")?;
        let bytes = std::fs::read(program).with_context(|| format!("could not read `{}`", program.display()))?;
        let layer = tar_of(&[(name, &bytes, 0o755)])?;
        let config = serde_json::to_vec(&json!({
            "architecture": architecture(), "os": "linux",
            "config": {"Entrypoint": [format!("/{name}")]},
            "rootfs": {"type": "layers", "diff_ids": [digest(&layer)]},
        }))?;
        let manifest = serde_json::to_vec(&json!({
            "schemaVersion": 2, "mediaType": "application/vnd.oci.image.manifest.v1+json",
            "config": descriptor("application/vnd.oci.image.config.v1+json", &config),
            "layers": [descriptor("application/vnd.oci.image.layer.v1.tar", &layer)],
        }))?;
        let image = Self {
            name: format!("localhost/{}:1", name.replace('.', "-")),
            snapshot: digest(&layer),
            archive: directory.join(format!("{name}.tar")),
            entrypoint: format!("/{name}"),
        };
        image.write([&layer, &config, &manifest])?;
        Ok(image)
    }

    fn write(&self, blobs: [&Vec<u8>; 3]) -> Result<()> {
        let [_, _, manifest] = blobs;
        let mut root = descriptor("application/vnd.oci.image.manifest.v1+json", manifest);
        root["annotations"] = json!({"io.containerd.image.name": self.name});
        root["platform"] = json!({"architecture": architecture(), "os": "linux"});
        let index = serde_json::to_vec(&json!({"schemaVersion": 2, "manifests": [root]}))?;
        let layout = br#"{"imageLayoutVersion":"1.0.0"}"#;
        let paths = blobs.map(|blob| digest(blob).replace("sha256:", "blobs/sha256/"));
        let mut files: Vec<(&str, &[u8], u32)> = vec![("oci-layout", layout, 0o644), ("index.json", &index, 0o644)];
        files.extend(paths.iter().zip(blobs).map(|(path, blob)| (path.as_str(), blob.as_slice(), 0o644)));
        let archive = tar_of(&files)?;
        std::io::copy(&mut archive.as_slice(), &mut File::create(&self.archive)?)?;
        Ok(())
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
