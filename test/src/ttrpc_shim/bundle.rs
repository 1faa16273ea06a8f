//! Bundles made by hand: the specification, the options and the streams of a container.

use std::fs::File;
use std::io::Read;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::Mutex;
use std::time::{Duration, Instant};

use containerd_shim_protos::api::CreateTaskRequest;
use containerd_shim_protos::protobuf::MessageField;
use containerd_shim_protos::protobuf::well_known_types::any::Any;
use containerd_shim_protos::types::mount::Mount;
use nix::sys::stat::Mode;
use nix::unistd::mkfifo;
use serde_json::{Value, json};

use super::PATIENCE;

/// `runtimeoptions.v1.Options` with `toml` as the body, as containerd's CRI passes options.
pub fn runtime_options(toml: &str) -> Any {
    any("runtimeoptions.v1.Options", &[field(1, "io.containerd.skiff.v1"), field(3, toml)].concat())
}

/// A length-delimited field of a message.
pub fn field(number: u8, text: &str) -> Vec<u8> {
    let mut bytes = vec![number << 3 | 2];
    let mut length = text.len();
    while length >= 0x80 {
        bytes.push(u8::try_from(length & 0x7f).unwrap() | 0x80);
        length >>= 7;
    }
    bytes.push(u8::try_from(length).unwrap());
    bytes.extend_from_slice(text.as_bytes());
    bytes
}

/// An `Any` of the type `url`.
pub fn any(url: &str, value: &[u8]) -> Any {
    Any { type_url: url.into(), value: value.into(), ..Any::default() }
}

/// A specification like containerd's own default one.
pub fn spec(args: &[&str]) -> Value {
    json!({
        "ociVersion": "1.1.0",
        "process": {
            "user": {"uid": 0, "gid": 0}, "args": args, "cwd": "/", "env": ["PATH=/bin:/"], "noNewPrivileges": true,
            "capabilities": capabilities(&["CAP_CHOWN", "CAP_KILL", "CAP_NET_BIND_SERVICE"]),
            "rlimits": [{"type": "RLIMIT_NOFILE", "hard": 1024, "soft": 1024}]
        },
        "root": {"path": "rootfs"},
        "mounts": [
            {"destination": "/proc", "type": "proc", "source": "proc", "options": ["nosuid", "noexec", "nodev"]},
            {"destination": "/dev", "type": "tmpfs", "source": "tmpfs", "options": ["nosuid", "strictatime", "mode=755", "size=65536k"]},
            {"destination": "/dev/shm", "type": "tmpfs", "source": "shm", "options": ["nosuid", "noexec", "nodev", "mode=1777", "size=65536k"]},
            {"destination": "/sys", "type": "sysfs", "source": "sysfs", "options": ["nosuid", "noexec", "nodev", "ro"]}
        ],
        "linux": {
            "namespaces": [{"type": "pid"}, {"type": "ipc"}, {"type": "uts"}, {"type": "mount"}, {"type": "network"}],
            "resources": {"devices": [{"allow": false, "access": "rwm"}]},
            "maskedPaths": ["/proc/kcore", "/proc/keys"],
            "readonlyPaths": ["/proc/sys", "/proc/sysrq-trigger"]
        }
    })
}

/// The same capabilities in the three sets that containerd fills.
pub fn capabilities(names: &[&str]) -> Value {
    json!({"bounding": names, "effective": names, "permitted": names})
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
        let deadline = Instant::now() + PATIENCE;
        while !self.text().contains(text) {
            assert!(Instant::now() < deadline, "`{text}` is not in `{}`", self.text());
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }
}
