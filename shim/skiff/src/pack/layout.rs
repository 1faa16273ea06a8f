//! The archive: an OCI image layout in a tar file, as `ctr images import` and registries' tools accept it. An ordinary image also
//! gets the list that `docker load` reads; everybody else ignores it beside a layout.

use std::collections::{BTreeMap, HashMap};
use std::io::{self, Write};

use oci_spec::image::{ANNOTATION_REF_NAME, ImageIndexBuilder, MediaType, OciLayoutBuilder};
use serde::Serialize;
use tar::EntryType;

use super::image::{Blob, Image, to_json};
use super::reference::Reference;
use super::rootfs::header;
use crate::error::{Context, Result};

/// containerd's annotation with the name under which it imports an image.
const IMAGE_NAME: &str = "io.containerd.image.name";

/// An image as Docker lists it (<https://github.com/moby/docker-image-spec/blob/main/spec.md#combined-image-json--filesystem-changeset-format>).
#[derive(Serialize)]
#[serde(rename_all = "PascalCase")]
struct DockerImage {
    config: String,
    repo_tags: [String; 1],
    layers: [String; 1],
}

/// Writes the archive and returns the manifest's digest.
///
/// # Errors
/// The host's, when it cannot be written.
pub(super) fn write(output: impl Write, image: &Image, reference: &Reference) -> Result<String> {
    let making = "cannot make the index";
    let annotations = HashMap::from([
        (IMAGE_NAME.into(), reference.to_string()),
        (ANNOTATION_REF_NAME.into(), reference.tag().to_owned()),
    ]);
    let mut manifest = image.manifest.descriptor.clone();
    // Without a platform here, containerd imports the image whatever the node's platform is.
    manifest.set_annotations(Some(annotations));
    let index = ImageIndexBuilder::default()
        .schema_version(2_u32)
        .media_type(MediaType::ImageIndex)
        .manifests([manifest])
        .build()
        .or_host(making)?;
    let layout = OciLayoutBuilder::default().image_layout_version("1.0.0").build().or_host(making)?;
    let (index, layout) = (to_json(&index)?, to_json(&layout)?);
    let mut files = BTreeMap::from([("index.json".to_owned(), index.as_slice()), ("oci-layout".into(), &layout)]);
    for blob in [&image.manifest, &image.config, &image.layer] {
        files.insert(path_of(blob), &blob.bytes);
    }
    let docker = to_json(&[DockerImage {
        config: path_of(&image.config),
        repo_tags: [reference.to_string()],
        layers: [path_of(&image.layer)],
    }])?;
    if image.is_ordinary {
        files.insert("manifest.json".into(), &docker);
    }
    write_archive(output, &files).or_host("cannot write the archive")?;
    Ok(image.manifest.descriptor.digest().to_string())
}

fn path_of(blob: &Blob) -> String {
    format!("blobs/sha256/{}", blob.descriptor.digest().digest())
}

fn write_archive(output: impl Write, files: &BTreeMap<String, &[u8]>) -> io::Result<()> {
    let mut archive = tar::Builder::new(output);
    for directory in ["blobs", "blobs/sha256"] {
        archive.append_data(&mut header(EntryType::Directory, 0o755, 0), directory, io::empty())?;
    }
    for (path, bytes) in files {
        let size = u64::try_from(bytes.len()).map_err(io::Error::other)?;
        archive.append_data(&mut header(EntryType::Regular, 0o644, size), path, *bytes)?;
    }
    archive.into_inner()?.flush()
}
