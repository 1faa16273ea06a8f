//! Images: what containerd knows of one, and archives with any content that a test needs.

use std::fs;

use serde_json::{Value, json};
use sha2::{Digest, Sha256};
use tar::{Builder, EntryType, Header};

use crate::containerd::Containerd;
use crate::names::random_name;
use crate::places;

/// The type of an ordinary image's layer.
pub const TAR: &str = "application/vnd.oci.image.layer.v1.tar";
/// The type of an ordinary image's configuration.
pub const CONFIG: &str = "application/vnd.oci.image.config.v1+json";
const MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
const TITLE: &str = "org.opencontainers.image.title";
/// The names of busybox in the image of native programs.
const APPLETS: [&str; 22] = [
    "sh", "cat", "sleep", "echo", "true", "false", "id", "kill", "ps", "ls", "env", "stty", "tail", "head", "dd",
    "pwd", "hostname", "touch", "test", "yes", "mkdir", "grep",
];

/// An image in containerd.
#[derive(Clone, Debug)]
pub struct Image {
    /// Its name; empty for no image.
    pub name: String,
    /// The digest of its manifest.
    pub manifest: String,
    /// The digests of its layers.
    pub layers: Vec<String>,
    /// The snapshot that its containers are made on; empty when none of its layers is unpacked.
    pub chain: String,
    /// What it runs.
    pub entrypoint: Vec<String>,
    /// Its environment.
    pub env: Vec<String>,
}

/// A layer of an [`Archive`].
#[derive(Clone, Debug)]
pub struct Layer {
    /// Its media type.
    pub media_type: String,
    /// Its bytes.
    pub bytes: Vec<u8>,
    /// The file name in its annotation.
    pub title: Option<String>,
}

/// An image to be made, as an OCI image layout in a tar archive.
#[derive(Clone, Debug)]
pub struct Archive {
    /// The media type of the configuration.
    pub config_type: String,
    /// The configuration.
    pub config: Value,
    /// The layers.
    pub layers: Vec<Layer>,
}

/// The sha256 of `bytes` in hexadecimal.
pub fn sha256(bytes: &[u8]) -> String {
    Sha256::digest(bytes).iter().map(|byte| format!("{byte:02x}")).collect()
}

impl Image {
    /// The image that containerd has under this name.
    pub(crate) fn find(containerd: &Containerd, name: &str) -> Self {
        let target = containerd.api().image_target(name).unwrap_or_else(|| panic!("containerd has no image `{name}`"));
        let read = |digest: &str| -> Value {
            serde_json::from_slice(&fs::read(containerd.blob(digest)).expect("the blob is there")).expect("JSON")
        };
        let manifest = read(&target.digest);
        let config = read(manifest["config"]["digest"].as_str().expect("a configuration"));
        let digests = manifest["layers"].as_array().expect("layers").iter();
        Self {
            name: name.into(),
            manifest: target.digest,
            layers: digests.map(|layer| layer["digest"].as_str().unwrap_or_default().to_string()).collect(),
            chain: chain(&strings(&config["rootfs"]["diff_ids"])),
            entrypoint: strings(&config["config"]["Entrypoint"]),
            env: strings(&config["config"]["Env"]),
        }
    }

    /// No image: a container with an empty root file system.
    pub fn none() -> Self {
        let (name, manifest, chain) = Default::default();
        Self { name, manifest, layers: Vec::new(), chain, entrypoint: Vec::new(), env: Vec::new() }
    }

    /// An image with native programs: busybox, and the static C `hello` and `pause`.
    pub fn native(containerd: &Containerd) -> Self {
        containerd.image_once("native", || {
            let mut files = Vec::new();
            for name in ["busybox", "hello", "pause"] {
                let program = fs::read(places::tools().join(name)).expect("the tool is there");
                files.push(File::program(&format!("bin/{name}"), program));
            }
            files.extend(APPLETS.iter().map(|name| File::link(&format!("bin/{name}"), "busybox")));
            files.push(File::text("etc/passwd", "root:x:0:0:root:/:/bin/sh\nguest:x:1000:1000:guest:/:/bin/sh\n"));
            files.push(File::text("tmp/here", ""));
            let mut archive = Archive::ordinary(&files, &["/bin/sh"]);
            archive.config["config"]["Env"] = json!(["PATH=/bin"]);
            archive.import(containerd)
        })
    }

    /// An ordinary image with one module as `/app.wasm`, from its text.
    pub fn of_text(containerd: &Containerd, text: &str) -> Self {
        Self::of_wasm(containerd, wat::parse_str(text).expect("the text is a module"))
    }

    /// An ordinary image with these bytes as `/app.wasm`.
    pub fn of_wasm(containerd: &Containerd, wasm: Vec<u8>) -> Self {
        containerd.image_once(&sha256(&wasm), || {
            Archive::ordinary(&[File::program("app.wasm", wasm)], &["/app.wasm"]).import(containerd)
        })
    }
}

/// A file of an ordinary image.
#[derive(Clone, Debug)]
pub struct File {
    path: String,
    content: Content,
}

#[derive(Clone, Debug)]
enum Content {
    Program(Vec<u8>),
    Text(String),
    Link(String),
    Device(u32, u32),
    Fifo,
}

impl File {
    /// A file that may be executed.
    pub fn program(path: &str, bytes: Vec<u8>) -> Self {
        Self { path: path.into(), content: Content::Program(bytes) }
    }

    /// A file of text.
    pub fn text(path: &str, text: &str) -> Self {
        Self { path: path.into(), content: Content::Text(text.into()) }
    }

    /// A symbolic link.
    pub fn link(path: &str, target: &str) -> Self {
        Self { path: path.into(), content: Content::Link(target.into()) }
    }

    /// A character device.
    pub fn device(path: &str, major: u32, minor: u32) -> Self {
        Self { path: path.into(), content: Content::Device(major, minor) }
    }

    /// A fifo.
    pub fn fifo(path: &str) -> Self {
        Self { path: path.into(), content: Content::Fifo }
    }

    fn append(&self, tar: &mut Builder<Vec<u8>>) -> std::io::Result<()> {
        let mut header = Header::new_gnu();
        let (mode, bytes): (u32, &[u8]) = match &self.content {
            Content::Program(bytes) => (0o755, bytes),
            Content::Text(text) => (0o644, text.as_bytes()),
            Content::Link(target) => {
                header.set_entry_type(EntryType::Symlink);
                header.set_size(0);
                header.set_mode(0o777);
                return tar.append_link(&mut header, &self.path, target);
            }
            Content::Device(major, minor) => {
                header.set_entry_type(EntryType::Char);
                header.set_device_major(*major)?;
                header.set_device_minor(*minor)?;
                (0o666, &[])
            }
            Content::Fifo => {
                header.set_entry_type(EntryType::Fifo);
                (0o666, &[])
            }
        };
        header.set_size(bytes.len() as u64);
        header.set_mode(mode);
        tar.append_data(&mut header, &self.path, bytes)
    }
}

impl Layer {
    /// A layer of this type.
    pub fn new(media_type: &str, bytes: Vec<u8>, title: Option<&str>) -> Self {
        Self { media_type: media_type.into(), bytes, title: title.map(str::to_string) }
    }
}

impl Archive {
    /// An ordinary image for this machine with one layer.
    pub fn ordinary(files: &[File], entrypoint: &[&str]) -> Self {
        let mut tar = Builder::new(Vec::new());
        for file in files {
            file.append(&mut tar).expect("an archive in memory can be written");
        }
        let layer = tar.into_inner().expect("an archive in memory can be written");
        let diff_ids = [format!("sha256:{}", sha256(&layer))];
        let config = json!({
            "architecture": "amd64", "os": "linux", "config": {"Entrypoint": entrypoint},
            "rootfs": {"type": "layers", "diff_ids": diff_ids},
        });
        Self { config_type: CONFIG.into(), config, layers: vec![Layer::new(TAR, layer, None)] }
    }

    /// The same with the signal that stops its containers, by its name.
    #[must_use]
    pub fn stopped_by(mut self, signal: &str) -> Self {
        self.config["config"]["StopSignal"] = signal.into();
        self
    }

    /// An image of layers that containerd does not unpack, with this configuration.
    pub fn of_layers(config_type: &str, config: Value, layers: Vec<Layer>) -> Self {
        Self { config_type: config_type.into(), config, layers }
    }

    /// Imports the image under a name of its own.
    pub fn import(&self, containerd: &Containerd) -> Image {
        let reference = format!("skiff.test/{}:1", random_name("made"));
        let path = containerd.directory().join(random_name("archive"));
        fs::write(&path, self.pack(&reference)).expect("the archive can be written");
        let path = path.to_string_lossy();
        let mut words = vec!["images", "import", "--local", "--all-platforms"];
        if self.layers.iter().any(|layer| layer.media_type != TAR) {
            words.push("--no-unpack");
        }
        words.push(&path);
        let said = containerd.ctr(words);
        assert_eq!(said.code, Some(0), "`ctr images import`: {}", said.stderr);
        Image::find(containerd, &reference)
    }

    /// The archive of the image, under the name `reference`.
    pub fn pack(&self, reference: &str) -> Vec<u8> {
        let mut tar = Builder::new(Vec::new());
        let config = self.config.to_string().into_bytes();
        let layers: Vec<Value> = self
            .layers
            .iter()
            .map(|layer| {
                let mut descriptor = descriptor(&layer.media_type, &layer.bytes);
                if let Some(title) = &layer.title {
                    descriptor["annotations"] = json!({TITLE: title});
                }
                descriptor
            })
            .collect();
        let manifest = json!({
            "schemaVersion": 2, "mediaType": MANIFEST, "config": descriptor(&self.config_type, &config), "layers": layers,
        }).to_string().into_bytes();
        let mut target = descriptor(MANIFEST, &manifest);
        target["annotations"] =
            json!({"io.containerd.image.name": reference, "org.opencontainers.image.ref.name": "1"});
        let index = json!({"schemaVersion": 2, "manifests": [target]}).to_string().into_bytes();
        let mut blobs = vec![manifest, config];
        blobs.extend(self.layers.iter().map(|layer| layer.bytes.clone()));
        let layout = br#"{"imageLayoutVersion":"1.0.0"}"#.to_vec();
        let mut files = vec![("oci-layout".to_string(), layout), ("index.json".to_string(), index)];
        files.extend(blobs.into_iter().map(|blob| (format!("blobs/sha256/{}", sha256(&blob)), blob)));
        for (path, bytes) in files {
            File::program(&path, bytes).append(&mut tar).expect("an archive in memory can be written");
        }
        tar.into_inner().expect("an archive in memory can be written")
    }
}

pub(crate) fn descriptor(media_type: &str, bytes: &[u8]) -> Value {
    json!({"mediaType": media_type, "digest": format!("sha256:{}", sha256(bytes)), "size": bytes.len()})
}

/// The name of the snapshot with these layers.
fn chain(diff_ids: &[String]) -> String {
    let mut ids = diff_ids.iter();
    let first = ids.next().cloned().unwrap_or_default();
    ids.fold(first, |chain, id| format!("sha256:{}", sha256(format!("{chain} {id}").as_bytes())))
}

fn strings(list: &Value) -> Vec<String> {
    list.as_array().into_iter().flatten().filter_map(|item| item.as_str().map(str::to_string)).collect()
}
