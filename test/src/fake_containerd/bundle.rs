//! Bundles made by hand: the specification, the options and the streams of a container.

use std::fs::File;
use std::io::Read;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::Mutex;

use containerd_shim_protos::api::CreateTaskRequest;
use containerd_shim_protos::protobuf::MessageField;
use containerd_shim_protos::protobuf::well_known_types::any::Any;
use containerd_shim_protos::types::mount::Mount;
use nix::sys::stat::Mode;
use nix::unistd::mkfifo;
use serde_json::{Value, json};

use crate::encoding::field;
use crate::spec::default_spec;
use crate::wait::{PATIENCE, holds_within};

/// `runtimeoptions.v1.Options` with `toml` as the body, as containerd's CRI passes options.
pub fn runtime_options(toml: &str) -> Any {
    any("runtimeoptions.v1.Options", &[field(1, "io.containerd.skiff.v1"), field(3, toml)].concat())
}

/// An `Any` of the type `url`.
pub fn any(url: &str, value: &[u8]) -> Any {
    Any { type_url: url.into(), value: value.into(), ..Any::default() }
}

/// The specification of a container that runs `args`; [`super::FakeContainerd::bundle`] fills in its cgroup.
pub fn spec(args: &[&str]) -> Value {
    let args: Vec<_> = args.iter().map(|arg| (*arg).to_string()).collect();
    default_spec(&args, &["PATH=/bin:/".to_string()], "")
}

/// The specification of the sandbox of `pod`, on the node's network.
pub fn sandbox_spec(pod: &str) -> Value {
    let mut spec = spec(&["/pause"]);
    spec["annotations"] = annotations(pod, "sandbox");
    spec["hostname"] = json!("pod-1");
    spec["linux"]["namespaces"].as_array_mut().unwrap().retain(|namespace| namespace["type"] != "network");
    spec
}

/// The annotations of a container of `pod`.
pub fn annotations(pod: &str, kind: &str) -> Value {
    json!({"io.kubernetes.cri.sandbox-id": pod, "io.kubernetes.cri.container-type": kind})
}

/// A container's directory with its streams.
pub struct Bundle {
    /// The container's id.
    pub id: String,
    /// The directory.
    pub path: PathBuf,
    /// The directory that is mounted as the root file system.
    pub image: PathBuf,
    /// The options that go with Create.
    pub options: Any,
    /// What the container writes.
    pub stdout: Fifo,
    /// What the container writes as errors.
    pub stderr: Fifo,
    /// The shim's log.
    pub log: Fifo,
}

impl Bundle {
    /// The request that creates the container.
    pub fn create_request(&self) -> CreateTaskRequest {
        let mount = Mount {
            type_: "bind".into(),
            source: self.image.to_str().unwrap().into(),
            options: vec!["rbind".into(), "rw".into()],
            ..Mount::default()
        };
        CreateTaskRequest {
            id: self.id.clone(),
            bundle: self.path.to_str().unwrap().into(),
            rootfs: vec![mount],
            stdout: self.stdout.path.clone(),
            stderr: self.stderr.path.clone(),
            options: MessageField::some(self.options.clone()),
            ..CreateTaskRequest::default()
        }
    }
}

/// A fifo whose reading end is held open.
pub struct Fifo {
    /// Its path.
    pub path: String,
    file: File,
    read: Mutex<String>,
}

impl Fifo {
    /// Makes the fifo `path`.
    pub fn new(path: &Path) -> Self {
        mkfifo(path, Mode::S_IRWXU).unwrap();
        let file = File::options().read(true).custom_flags(nix::libc::O_NONBLOCK).open(path).unwrap();
        Self { path: path.to_str().unwrap().into(), file, read: Mutex::default() }
    }

    /// Everything that has been written to it so far.
    pub fn text(&self) -> String {
        let mut text = self.read.lock().unwrap();
        let mut block = [0; 4096];
        while let Ok(length @ 1..) = (&self.file).read(&mut block) {
            text.push_str(&String::from_utf8_lossy(&block[..length]));
        }
        text.clone()
    }

    /// Waits until `text` has been written to it.
    pub async fn says(&self, text: &str) {
        let said = holds_within(PATIENCE, || self.text().contains(text)).await;
        assert!(said, "`{text}` is not in `{}`", self.text());
    }
}
