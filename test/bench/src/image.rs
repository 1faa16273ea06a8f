//! Images of one program each, as OCI archives that `ctr images import` reads.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use serde_json::json;
use skiff_test::{Archive, CONFIG, File, Layer};

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
        let entrypoint = format!("/{file}");
        let (suffix, platform, content) = match form {
            Form::File => ("file", "linux/amd64", Archive::ordinary(&[File::program(file, bytes)], &[&entrypoint])),
            Form::WasmLayer => ("layer", "wasi/wasm", wasm_layer(bytes, &entrypoint)),
        };
        let image = Self {
            name: format!("localhost/{}-{suffix}:1", file.replace('.', "-")),
            platform: platform.into(),
            snapshot: content.config["rootfs"]["diff_ids"][0].as_str().unwrap_or_default().into(),
            archive: directory.join(format!("{file}-{suffix}.tar")),
            entrypoint,
        };
        std::fs::write(&image.archive, content.pack(&image.name))
            .with_context(|| format!("cannot write `{}`", image.archive.display()))?;
        Ok(image)
    }
}

fn wasm_layer(module: Vec<u8>, entrypoint: &str) -> Archive {
    let config = json!({
        "os": "wasi", "architecture": "wasm", "config": {"Entrypoint": [entrypoint]},
        "rootfs": {"type": "layers", "diff_ids": []},
    });
    Archive::of_layers(CONFIG, config, vec![Layer::new("application/wasm", module, None)])
}
