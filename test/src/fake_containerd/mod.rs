//! The real shim binary, driven as containerd drives it, without containerd: its actions are run, its Task service is
//! called over ttrpc, and a service of our own takes its events. Bundles are made by hand.
//!
//! Everything of one [`FakeContainerd`] carries its random token: directories, container ids, cgroups and file names. What
//! is left of it anywhere on the machine is found by that.

mod bundle;
mod recorder;
mod shim;

use std::collections::HashSet;
use std::fs;
use std::io::Write;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Output, Stdio};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use containerd_shim_protos::api::DeleteResponse;
use containerd_shim_protos::bootstrap_api::{BootstrapParams, BootstrapResult};
use containerd_shim_protos::protobuf::Message;
use containerd_shim_protos::protobuf::well_known_types::any::Any;
use containerd_shim_protos::shim_async::{Client, TaskClient, create_events};
use serde_json::{Value, json};
use ttrpc::asynchronous::Server;

use crate::left::orphaned_terminals;
use crate::machine::{cgroups_with, clean_up, files_below, mounts_with};
use crate::names::token;
use crate::places::{SHIM, guest, launcher, programs, search_path, tools};
use crate::process::processes_touching;
use crate::wait::holds_within;

pub use bundle::{Bundle, Fifo, annotations, any, runtime_options, sandbox_spec, spec};
pub use recorder::Recorder;
pub use shim::{Shim, call, refusal, refused};

/// The containerd namespace of all bundles.
pub const NAMESPACE: &str = "skiff-test";
/// A shim ends a moment after its last container is deleted.
const LEFT_LIMIT: Duration = Duration::from_secs(8);
/// A containerd that is only pretended: its directories, its service of events, and the bundles that it makes.
pub struct FakeContainerd {
    /// The random word in the names of everything.
    pub token: String,
    /// The directory that holds everything.
    pub dir: PathBuf,
    /// What the shims publish.
    pub events: Recorder,
    server: tokio::sync::Mutex<Option<Server>>,
    sockets: Mutex<HashSet<PathBuf>>,
    shims: Mutex<HashSet<u32>>,
}

impl FakeContainerd {
    /// Makes the directories and takes events from now on.
    pub async fn new() -> Self {
        let token = token();
        let dir = std::env::temp_dir().join(format!("skiff-{token}"));
        fs::create_dir(&dir).unwrap();
        let fake = Self {
            token,
            dir,
            events: Recorder::default(),
            server: tokio::sync::Mutex::default(),
            sockets: Mutex::default(),
            shims: Mutex::default(),
        };
        fake.take_events().await;
        fake
    }

    /// The socket to which shims send events.
    pub fn events_address(&self) -> String {
        format!("{}/containerd.sock.ttrpc", self.dir.display())
    }

    /// Serves events from now on.
    pub async fn take_events(&self) {
        let service = create_events(Arc::new(self.events.clone()));
        let address = format!("unix://{}", self.events_address());
        let mut server = Server::new().bind(&address).unwrap().register_service(service);
        server.start().await.unwrap();
        *self.server.lock().await = Some(server);
    }

    /// Is down from now on: the socket is gone, and connections end.
    pub async fn refuse_events(&self) {
        let mut server = self.server.lock().await.take().unwrap();
        server.disconnect().await;
        server.shutdown().await.unwrap();
        drop(fs::remove_file(self.events_address()));
    }

    /// An id that no other test uses.
    pub fn id(&self, name: &str) -> String {
        format!("{name}-{}", self.token)
    }

    /// The directory of compiled code.
    pub fn cache(&self) -> PathBuf {
        self.dir.join("cache")
    }

    /// The runtime's options in TOML, with `more` lines: everything of the shim is in [`FakeContainerd::dir`].
    pub fn toml(&self, more: &str) -> String {
        let launcher = if more.contains("OwnLauncher") { "" } else { launcher() };
        format!("Root = \"{0}/runc\"\nCacheDir = \"{0}/cache\"\n{launcher}{more}\n", self.dir.display())
    }

    /// These options as containerd passes them: `runtimeoptions.v1.Options` with a body.
    pub fn options(&self, more: &str) -> Any {
        let runtime = match more.contains("BinaryName") {
            true => String::new(),
            false => format!("BinaryName = \"{}/runc\"\n", tools().display()),
        };
        runtime_options(&self.toml(&format!("{runtime}{more}")))
    }

    /// Makes a bundle with `spec`, whose root file system is the directory that `fill` fills.
    pub fn bundle(&self, name: &str, spec: &Value, fill: impl FnOnce(&Path)) -> Bundle {
        let id = self.id(name);
        let path = self.dir.join("bundles").join(&id);
        let image = self.dir.join("images").join(&id);
        for dir in [&path.join("rootfs"), &image, &self.dir.join("fifos")] {
            fs::create_dir_all(dir).unwrap();
        }
        fill(&image);
        let mut spec = spec.clone();
        if spec["linux"]["cgroupsPath"] == "" {
            spec["linux"]["cgroupsPath"] = json!(self.cgroup(&id));
        }
        fs::write(path.join("config.json"), spec.to_string()).unwrap();
        let fifo = |stream: &str| Fifo::new(&self.dir.join("fifos").join(format!("{id}-{stream}")));
        let log = Fifo::new(&path.join("log"));
        Bundle { stdout: fifo("stdout"), stderr: fifo("stderr"), log, image, options: self.options(""), path, id }
    }

    /// A bundle with the wasm guest `module` as its only file, which `args` follow.
    pub fn wasm(&self, name: &str, module: &str, args: &[&str]) -> Bundle {
        self.wasm_with(name, &guest(module), args, |_| {})
    }

    /// The same with any module, and a specification that `change` has changed.
    pub fn wasm_with(&self, name: &str, module: &Path, args: &[&str], change: impl FnOnce(&mut Value)) -> Bundle {
        let file = format!("app-{}.wasm", self.token);
        let entrypoint = format!("/{file}");
        let mut spec = spec(&[&[entrypoint.as_str()], args].concat());
        change(&mut spec);
        self.bundle(name, &spec, |image| copy(module, &image.join(&file)))
    }

    /// A bundle with busybox, run with `args`.
    pub fn native(&self, name: &str, args: &[&str]) -> Bundle {
        self.native_with(name, args, |_| {})
    }

    /// The same with a specification that `change` has changed.
    pub fn native_with(&self, name: &str, args: &[&str], change: impl FnOnce(&mut Value)) -> Bundle {
        let mut spec = spec(&[&["/busybox"], args].concat());
        change(&mut spec);
        self.bundle(name, &spec, |image| copy(&tools().join("busybox"), &image.join("busybox")))
    }

    /// The cgroup of container `id`, below the one of this containerd.
    pub fn cgroup(&self, id: &str) -> String {
        format!("/skiff-test-{}/{id}", self.token)
    }

    /// Writes a script for use as the OCI runtime, which does `more` and then runs runc. Returns its path.
    pub fn oci_runtime(&self, more: &str) -> String {
        let path = self.dir.join("runtime.sh");
        let script = format!("#!/bin/sh\n{more}\nexec {} \"$@\"\n", tools().join("runc").display());
        fs::write(&path, script).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).unwrap();
        path.to_str().unwrap().into()
    }

    /// The command that containerd runs for `action` on `bundle`.
    pub fn command(&self, bundle: &Bundle, action: &str) -> tokio::process::Command {
        let mut command = tokio::process::Command::new(programs().join(SHIM));
        command.args(["-namespace", NAMESPACE, "-address", &self.grpc_address(), "-publish-binary", "containerd"]);
        command.args(["-id", &bundle.id]);
        if action == "delete" {
            command.arg("-bundle").arg(&bundle.path);
        }
        command.arg(action).current_dir(&bundle.path);
        command.env("TTRPC_ADDRESS", self.events_address()).env("GRPC_ADDRESS", self.grpc_address());
        command.env("NAMESPACE", NAMESPACE).env("MAX_SHIM_VERSION", "2").env("GOMAXPROCS", "2");
        command.env("PATH", search_path(programs()));
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()).kill_on_drop(true);
        command
    }

    /// The path of containerd's main socket. Nobody listens there; shims name their sockets after it.
    fn grpc_address(&self) -> String {
        format!("{}/containerd.sock", self.dir.display())
    }

    /// Runs `start` the way of containerd before 2.3.
    pub async fn start(&self, bundle: &Bundle) -> Shim {
        let output = self.command(bundle, "start").output().await.unwrap();
        let answer: Value = serde_json::from_slice(&succeeded(&output).stdout).unwrap();
        assert_eq!((&answer["version"], &answer["protocol"]), (&json!(3), &json!("ttrpc")), "{answer}");
        self.connect(answer["address"].as_str().unwrap()).await
    }

    /// Runs `start` the way of containerd 2.3 and later.
    pub async fn start_with_parameters(&self, bundle: &Bundle) -> Shim {
        let parameters = BootstrapParams {
            instance_id: bundle.id.clone(),
            namespace: NAMESPACE.into(),
            containerd_version: "2.4.2".into(),
            containerd_ttrpc_address: self.events_address(),
            containerd_grpc_address: self.grpc_address(),
            containerd_binary: "containerd".into(),
            ..BootstrapParams::default()
        };
        let mut command = self.command(bundle, "start");
        command.env_remove("TTRPC_ADDRESS").env_remove("GRPC_ADDRESS");
        let output = with_input(command, &parameters.write_to_bytes().unwrap()).await;
        let answer = BootstrapResult::parse_from_bytes(&succeeded(&output).stdout).unwrap();
        assert_eq!((answer.version, answer.protocol.as_str()), (3, "ttrpc"));
        self.connect(&answer.address).await
    }

    /// Runs `delete`, as containerd does after a shim that is gone.
    pub async fn delete(&self, bundle: &Bundle) -> DeleteResponse {
        let output = self.command(bundle, "delete").output().await.unwrap();
        DeleteResponse::parse_from_bytes(&succeeded(&output).stdout).unwrap()
    }

    /// A client of the shim that listens at `address`.
    pub async fn connect(&self, address: &str) -> Shim {
        let path = PathBuf::from(address.strip_prefix("unix://").unwrap());
        let client = Client::connect(address).await.unwrap();
        self.sockets.lock().unwrap().insert(path.clone());
        let shim = Shim { address: address.into(), socket: path, tasks: TaskClient::new(client.clone()), client };
        let pid = shim.pid().await;
        self.shims.lock().unwrap().insert(pid);
        shim
    }

    /// Starts a shim for `bundle` and creates and starts its container.
    pub async fn run(&self, bundle: &Bundle) -> Shim {
        let shim = self.start(bundle).await;
        shim.create(bundle).await.unwrap();
        shim.run(bundle).await.unwrap();
        shim
    }

    /// Waits until nothing of this containerd is left on the machine but its own directory.
    ///
    /// # Panics
    /// With a list of what is left after some seconds.
    pub async fn assert_nothing_left(&self) {
        let is_clean = holds_within(LEFT_LIMIT, || self.leftovers().is_empty()).await;
        assert!(is_clean, "left behind:\n  {}", self.leftovers().join("\n  "));
    }

    /// Everything that a shim should have removed.
    pub fn leftovers(&self) -> Vec<String> {
        let mut left: Vec<String> =
            self.processes().into_iter().map(|(pid, what)| format!("process {pid}: {what}")).collect();
        left.extend(mounts_with("self", &self.token).into_iter().map(|path| format!("mount {}", path.display())));
        // The parent of the containers' cgroups is the test's own.
        let parent = format!("skiff-test-{}", self.token);
        let cgroups = cgroups_with(&self.token).into_iter().filter(|path| !path.ends_with(&parent));
        left.extend(cgroups.map(|path| format!("cgroup {}", path.display())));
        left.extend(orphaned_terminals(&self.shims.lock().unwrap()));
        let sockets = self.sockets.lock().unwrap();
        left.extend(sockets.iter().filter(|path| path.exists()).map(|path| format!("socket {}", path.display())));
        for (what, dir) in [("runc's state", self.dir.join("runc").join(NAMESPACE)), ("cache", self.cache())] {
            let files = files_below(&dir).into_iter().filter(|path| !is_the_caches(path));
            left.extend(files.map(|path| format!("{what} {}", path.display())));
        }
        left
    }

    /// The processes that carry the token, apart from this one.
    pub fn processes(&self) -> Vec<(u32, String)> {
        processes_touching(&self.token)
    }
}

impl Drop for FakeContainerd {
    fn drop(&mut self) {
        clean_up(&self.token);
        for socket in self.sockets.lock().unwrap().iter() {
            drop(fs::remove_file(socket));
        }
        drop(fs::remove_dir_all(&self.dir));
    }
}

/// Runs a command with `input` on its standard input.
pub async fn with_input(mut command: tokio::process::Command, input: &[u8]) -> Output {
    let (reader, mut writer) = std::io::pipe().unwrap();
    writer.write_all(input).unwrap();
    drop(writer);
    command.stdin(reader).output().await.unwrap()
}

/// The output of an action that must succeed without a word on standard error, which containerd reads as well.
pub fn succeeded(output: &Output) -> &Output {
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success() && said.is_empty(), "the shim ended with {}: {said}", output.status);
    output
}

/// Whether a file is one that a cache keeps: compiled code, what is remembered of a failure, filters, or its counters.
fn is_the_caches(path: &Path) -> bool {
    let is_filter = path.parent().is_some_and(|directory| directory.ends_with("cache/filters"));
    is_filter
        || path.ends_with("counters.1")
        || path.extension().is_some_and(|kind| kind == "cwasm" || kind == "failed")
}

fn copy(from: &Path, to: &Path) {
    fs::copy(from, to).unwrap();
}
