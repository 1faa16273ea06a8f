//! An image whose index holds indexes: a few documents, which a walk without memory reads again and again.

use std::fs::{self, File};

use containerd_client::services::v1::images_client::ImagesClient;
use containerd_client::services::v1::{CreateImageRequest, Image as Named};
use containerd_client::types::Descriptor;
use serde_json::{Value, json};

use crate::api::in_namespace;
use crate::containerd::Containerd;
use crate::image::{CONFIG, Image, TAR, descriptor, sha256};
use crate::names::random_name;
use crate::wait::eventually;

const INDEX: &str = "application/vnd.oci.image.index.v1+json";
const MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";

impl Image {
    /// An image of `depth` indexes, each with `copies` entries that all name the next one; the last names a manifest.
    /// containerd pulls such images, because it follows one entry of an index.
    pub fn nested(containerd: &Containerd, depth: u32, copies: usize) -> Self {
        let config = json!({"architecture": "amd64", "os": "linux", "rootfs": {"type": "layers", "diff_ids": []}});
        let layers = [containerd.store(TAR, &[0; 1024])];
        let config = containerd.store(CONFIG, config.to_string().as_bytes());
        let manifest = json!({"schemaVersion": 2, "mediaType": MANIFEST, "config": config, "layers": layers});
        let mut inner = containerd.store(MANIFEST, manifest.to_string().as_bytes());
        for _ in 0..depth {
            let index = json!({"schemaVersion": 2, "mediaType": INDEX, "manifests": vec![&inner; copies]});
            inner = containerd.store(INDEX, index.to_string().as_bytes());
        }
        let name = format!("skiff.test/{}:1", random_name("nested"));
        containerd.name_image(&name, &inner);
        Self { name, ..Self::none() }
    }
}

impl Containerd {
    /// Puts a blob into the content store and returns its descriptor.
    fn store(&self, media_type: &str, bytes: &[u8]) -> Value {
        let path = self.directory().join(random_name("blob"));
        fs::write(&path, bytes).expect("the blob can be written");
        let digest = format!("sha256:{}", sha256(bytes));
        // A blob without a label may be collected as garbage at any moment.
        eventually("the blob stays", || {
            let mut ingest = self.ctr_command(["content", "ingest", &random_name("blob")]);
            let input = File::open(&path).expect("the blob is there");
            drop(ingest.stdin(input).output().expect("`ctr` can be run"));
            let said = self.ctr(["content", "label", &digest, "containerd.io/gc.root=now"]);
            (said.code == Some(0)).then_some(())
        });
        descriptor(media_type, bytes)
    }

    fn name_image(&self, name: &str, target: &Value) {
        let target = Descriptor {
            media_type: target["mediaType"].as_str().unwrap_or_default().into(),
            digest: target["digest"].as_str().unwrap_or_default().into(),
            size: target["size"].as_i64().unwrap_or_default(),
            ..Descriptor::default()
        };
        let image = Named { name: name.into(), target: Some(target), ..Named::default() };
        let request = in_namespace(CreateImageRequest { image: Some(image), ..CreateImageRequest::default() });
        let named = self.api().call(ImagesClient::new(self.api().channel.clone()).create(request));
        named.unwrap_or_else(|refused| panic!("the image was not named: {refused}"));
    }
}
