//! The real shim binary, driven as containerd drives it, without containerd: its actions are run, its Task service is
//! called over ttrpc, and a service of our own takes its events. Bundles are made by hand.
//!
//! Everything of one [`Host`] carries its random token: directories, container ids, cgroups and file names. What is
//! left of it anywhere on the machine is found by that.

use std::collections::HashSet;
use std::fs::{self, File};
use std::io::{Read, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::process::{Output, Stdio};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use async_trait::async_trait;
use containerd_shim_protos::api::{
    CreateTaskRequest, DeleteRequest, DeleteResponse, KillRequest, StartRequest, StateRequest, StateResponse, WaitRequest,
};
use containerd_shim_protos::bootstrap_api::{BootstrapParams, BootstrapResult};
use containerd_shim_protos::protobuf::well_known_types::any::Any;
use containerd_shim_protos::protobuf::well_known_types::empty::Empty;
use containerd_shim_protos::protobuf::{Message, MessageField};
use containerd_shim_protos::shim::events::ForwardRequest;
use containerd_shim_protos::shim_async::{Client, Events, TaskClient, create_events};
use containerd_shim_protos::types::mount::Mount;
use containerd_shim_protos::{events, topics};
use nix::mount::{MntFlags, umount2};
use nix::sys::signal::{Signal, kill};
use nix::sys::stat::Mode;
use nix::unistd::{Pid, mkfifo};
use serde_json::{Value, json};
use ttrpc::asynchronous::{Server, TtrpcContext};
use ttrpc::context::{Context, with_duration};

use crate::places::{guest, programs, tools};

/// The name of the shim's program.
pub const SHIM: &str = "containerd-shim-skiff-v1";
/// The containerd namespace of all bundles.
pub const NAMESPACE: &str = "skiff-test";
/// How long anything may take that is waited for.
pub const PATIENCE: Duration = Duration::from_secs(20);
/// The time that a request is given.
const CALL: Duration = Duration::from_secs(60);

/// A call's context with a time-out that nothing should reach.
pub fn call() -> Context {
    with_duration(CALL)
}

/// Waits until `condition` holds.
///
/// # Panics
/// With `what` when it does not hold in [`PATIENCE`].
pub async fn eventually(what: &str, mut condition: impl FnMut() -> bool) {
    let deadline = Instant::now() + PATIENCE;
    while !condition() {
        assert!(Instant::now() < deadline, "{what}: not so after {PATIENCE:?}");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

/// A random word that names a test's things.
pub fn token() -> String {
    let mut bytes = [0_u8; 5];
    File::open("/dev/urandom").unwrap().read_exact(&mut bytes).unwrap();
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// A containerd that is only pretended: its directories, its service of events, and the bundles that it makes.
pub struct Host {
    /// The random word in the names of everything.
    pub token: String,
    /// The directory that holds everything.
    pub dir: PathBuf,
    /// What the shims publish.
    pub events: Recorder,
    server: tokio::sync::Mutex<Option<Server>>,
    sockets: Mutex<HashSet<PathBuf>>,
}

impl Host {
    /// A host with nothing on it that takes events.
    pub async fn new() -> Self {
        let token = token();
        let dir = std::env::temp_dir().join(format!("skiff-{token}"));
        fs::create_dir(&dir).unwrap();
        let host = Self {
            token,
            dir,
            events: Recorder::default(),
            server: tokio::sync::Mutex::default(),
            sockets: Mutex::default(),
        };
        host.take_events().await;
        host
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

    /// The runtime's options in TOML, with `more` lines: everything of the shim lies in the host's directory.
    pub fn toml(&self, more: &str) -> String {
        format!("Root = \"{0}/runc\"\nCacheDir = \"{0}/cache\"\n{more}\n", self.dir.display())
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
        if spec["linux"]["cgroupsPath"].is_null() {
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
        self.bundle(name, &spec, |image| drop(fs::copy(module, image.join(&file)).unwrap()))
    }

    /// A bundle with busybox, run with `args`.
    pub fn native(&self, name: &str, args: &[&str]) -> Bundle {
        self.native_with(name, args, |_| {})
    }

    /// The same with a specification that `change` has changed.
    pub fn native_with(&self, name: &str, args: &[&str], change: impl FnOnce(&mut Value)) -> Bundle {
        let mut spec = spec(&[&["/busybox"], args].concat());
        change(&mut spec);
        self.bundle(name, &spec, |image| drop(fs::copy(tools().join("busybox"), image.join("busybox")).unwrap()))
    }

    /// The cgroup of container `id`, below the host's own.
    pub fn cgroup(&self, id: &str) -> String {
        format!("/skiff-test-{}/{id}", self.token)
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
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()).kill_on_drop(true);
        command
    }

    /// containerd's main socket, at which nobody listens here. Sockets of shims are named after it.
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
        Shim { address: address.into(), socket: path, tasks: TaskClient::new(client.clone()), client }
    }

    /// Starts a shim for `bundle` and creates and starts its container.
    pub async fn run(&self, bundle: &Bundle) -> Shim {
        let shim = self.start(bundle).await;
        shim.create(bundle).await.unwrap();
        shim.run(bundle).await.unwrap();
        shim
    }

    /// Waits until nothing of this host is left on the machine but its own directory.
    ///
    /// # Panics
    /// With a list of what is left after some seconds.
    pub async fn assert_nothing_left(&self) {
        let deadline = Instant::now() + Duration::from_secs(8);
        loop {
            let left = self.leftovers();
            if left.is_empty() {
                return;
            }
            assert!(Instant::now() < deadline, "left behind:\n  {}", left.join("\n  "));
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }

    /// Everything of this host that a shim should have taken away.
    pub fn leftovers(&self) -> Vec<String> {
        let mut left: Vec<String> = self.processes().into_iter().map(|(pid, what)| format!("process {pid}: {what}")).collect();
        left.extend(self.mounts().into_iter().map(|path| format!("mount {}", path.display())));
        left.extend(cgroups_of(&self.token).into_iter().skip_parents(&self.token));
        let sockets = self.sockets.lock().unwrap();
        left.extend(sockets.iter().filter(|path| path.exists()).map(|path| format!("socket {}", path.display())));
        for (what, dir) in [("runc's state", self.dir.join("runc").join(NAMESPACE)), ("cache", self.cache())] {
            let files = files_below(&dir).into_iter().filter(|path| path.extension().is_none_or(|kind| kind != "cwasm"));
            left.extend(files.map(|path| format!("{what} {}", path.display())));
        }
        left
    }

    /// The processes that carry the token, apart from this one.
    pub fn processes(&self) -> Vec<(i32, String)> {
        processes_with(&self.token)
    }

    fn mounts(&self) -> Vec<PathBuf> {
        mounts_with(&self.token)
    }
}

impl Drop for Host {
    fn drop(&mut self) {
        clean_up(&self.token);
        for socket in self.sockets.lock().unwrap().iter() {
            drop(fs::remove_file(socket));
        }
        drop(fs::remove_dir_all(&self.dir));
    }
}

/// Ends and removes everything that carries `token`: processes, mounts, cgroups.
pub fn clean_up(token: &str) {
    let deadline = Instant::now() + Duration::from_secs(5);
    loop {
        let processes = processes_with(token);
        for (pid, _) in &processes {
            drop(kill(Pid::from_raw(*pid), Signal::SIGKILL));
        }
        for mount in mounts_with(token).iter().rev() {
            drop(umount2(mount, MntFlags::MNT_DETACH));
        }
        for cgroup in cgroups_of(token).iter().rev() {
            drop(fs::remove_dir(cgroup));
        }
        if processes.is_empty() && cgroups_of(token).is_empty() || Instant::now() > deadline {
            return;
        }
        std::thread::yield_now();
    }
}

/// The processes that carry `token` in their command line, cgroup, working directory or open files, apart from this one
/// and from those that have ended.
pub fn processes_with(token: &str) -> Vec<(i32, String)> {
    let own = i32::try_from(std::process::id()).unwrap();
    let entries = fs::read_dir("/proc").unwrap().flatten();
    let pids = entries.filter_map(|entry| entry.file_name().to_str()?.parse::<i32>().ok()).filter(|pid| *pid != own);
    pids.filter_map(|pid| describe(pid, token).map(|what| (pid, what))).collect()
}

/// What shows that a process carries `token`.
fn describe(pid: i32, token: &str) -> Option<String> {
    let proc = PathBuf::from(format!("/proc/{pid}"));
    if status_field(pid, "State").is_none_or(|state| state.starts_with('Z')) {
        return None;
    }
    let command = String::from_utf8_lossy(&fs::read(proc.join("cmdline")).ok()?).replace('\0', " ");
    if command.contains(token) {
        return Some(command);
    }
    let cgroup = fs::read_to_string(proc.join("cgroup")).unwrap_or_default();
    if let Some(line) = cgroup.lines().find(|line| line.contains(token)) {
        return Some(format!("{command} in {line}"));
    }
    let mut files: Vec<_> = fs::read_dir(proc.join("fd")).into_iter().flatten().flatten().map(|file| file.path()).collect();
    files.push(proc.join("cwd"));
    let targets = files.iter().filter_map(|file| fs::read_link(file).ok());
    let found = targets.map(|target| target.to_string_lossy().into_owned()).find(|target| target.contains(token));
    found.map(|target| format!("{command} with {target}"))
}

/// A line of `/proc/PID/status`.
pub fn status_field(pid: i32, name: &str) -> Option<String> {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
    status.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':').map(|value| value.trim().to_string()))
}

/// The mount points whose paths hold `token`, outer ones first.
pub fn mounts_with(token: &str) -> Vec<PathBuf> {
    let mountinfo = fs::read_to_string("/proc/self/mountinfo").unwrap();
    mountinfo.lines().filter_map(|line| line.split(' ').nth(4)).filter(|path| path.contains(token)).map(PathBuf::from).collect()
}

/// The cgroup directories of all hierarchies whose paths hold `token`, outer ones first.
pub fn cgroups_of(token: &str) -> Vec<PathBuf> {
    let mut found = Vec::new();
    let mut todo = vec![PathBuf::from("/sys/fs/cgroup")];
    while let Some(dir) = todo.pop() {
        for entry in fs::read_dir(&dir).into_iter().flatten().flatten() {
            if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
                let path = entry.path();
                if path.to_string_lossy().contains(token) {
                    found.push(path.clone());
                }
                todo.push(path);
            }
        }
    }
    found.sort();
    found
}

trait SkipParents {
    /// Without the cgroups that only hold those of containers, which are the test's own.
    fn skip_parents(self, token: &str) -> impl Iterator<Item = String>;
}

impl<T: Iterator<Item = PathBuf>> SkipParents for T {
    fn skip_parents(self, token: &str) -> impl Iterator<Item = String> {
        let parent = format!("skiff-test-{token}");
        self.filter(move |path| !path.ends_with(&parent)).map(|path| format!("cgroup {}", path.display()))
    }
}

fn files_below(dir: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for entry in fs::read_dir(dir).into_iter().flatten().flatten() {
        let path = entry.path();
        if path.is_dir() { found.extend(files_below(&path)) } else { found.push(path) }
    }
    found
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
    fn new(path: &Path) -> Self {
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

/// A running shim.
pub struct Shim {
    /// What `start` answered.
    pub address: String,
    /// The path in it.
    pub socket: PathBuf,
    /// The Task service, version 3.
    pub tasks: TaskClient,
    /// The connection.
    pub client: Client,
}

impl Shim {
    /// The pid of the shim.
    pub async fn pid(&self) -> i32 {
        let answer = self.tasks.connect(call(), &Default::default()).await.unwrap();
        i32::try_from(answer.shim_pid).unwrap()
    }

    /// Creates the container of `bundle`; answers its pid.
    ///
    /// # Errors
    /// The shim's.
    pub async fn create(&self, bundle: &Bundle) -> ttrpc::Result<i32> {
        let created = self.tasks.create(call(), &bundle.create_request()).await?;
        Ok(i32::try_from(created.pid).unwrap())
    }

    /// Starts it.
    ///
    /// # Errors
    /// The shim's.
    pub async fn run(&self, bundle: &Bundle) -> ttrpc::Result<i32> {
        let request = StartRequest { id: bundle.id.clone(), ..StartRequest::default() };
        Ok(i32::try_from(self.tasks.start(call(), &request).await?.pid).unwrap())
    }

    /// Its state.
    ///
    /// # Errors
    /// The shim's.
    pub async fn state(&self, bundle: &Bundle) -> ttrpc::Result<StateResponse> {
        self.tasks.state(call(), &StateRequest { id: bundle.id.clone(), ..StateRequest::default() }).await
    }

    /// Sends it a signal.
    ///
    /// # Errors
    /// The shim's.
    pub async fn kill(&self, bundle: &Bundle, signal: Signal) -> ttrpc::Result<()> {
        let request = KillRequest { id: bundle.id.clone(), signal: u32::try_from(signal as i32).unwrap(), ..KillRequest::default() };
        self.tasks.kill(call(), &request).await.map(drop)
    }

    /// Waits for its end; answers the exit code.
    pub async fn wait(&self, bundle: &Bundle) -> u32 {
        let request = WaitRequest { id: bundle.id.clone(), ..WaitRequest::default() };
        self.tasks.wait(call(), &request).await.unwrap().exit_status
    }

    /// Deletes it; answers the exit code.
    ///
    /// # Errors
    /// The shim's.
    pub async fn delete(&self, bundle: &Bundle) -> ttrpc::Result<u32> {
        let request = DeleteRequest { id: bundle.id.clone(), ..DeleteRequest::default() };
        Ok(self.tasks.delete(call(), &request).await?.exit_status)
    }

    /// Kills it and deletes it.
    pub async fn end(&self, bundle: &Bundle) {
        self.kill(bundle, Signal::SIGKILL).await.unwrap();
        self.wait(bundle).await;
        self.delete(bundle).await.unwrap();
    }

    /// Shuts the shim down.
    pub async fn shutdown(&self) {
        // The shim may be gone before its answer is.
        drop(self.tasks.shutdown(call(), &Default::default()).await);
    }

    /// Calls `method` of the service `name` with `request`; answers the message as it came.
    ///
    /// # Errors
    /// The shim's.
    pub async fn raw(&self, name: &str, method: &str, request: &impl Message) -> ttrpc::Result<Vec<u8>> {
        let request = ttrpc::Request {
            service: name.into(),
            method: method.into(),
            payload: request.write_to_bytes().unwrap(),
            timeout_nano: i64::try_from(CALL.as_nanos()).unwrap(),
            ..ttrpc::Request::default()
        };
        Ok(self.client.request(request).await?.payload)
    }
}

/// The code and the sentence of an error.
pub fn refusal(error: &ttrpc::Error) -> (ttrpc::Code, String) {
    match error {
        ttrpc::Error::RpcStatus(status) => (status.code(), status.message.clone()),
        other => panic!("not an answer of the shim: {other}"),
    }
}

/// An event that a shim has published.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Event {
    /// `create`, `start`, `exit`, `delete`...
    pub topic: String,
    /// The container.
    pub container: String,
    /// The pid in it.
    pub pid: u32,
    /// The exit code in it.
    pub status: u32,
}

/// The service of events: keeps what it is sent.
#[derive(Clone, Default)]
pub struct Recorder(Arc<Mutex<Vec<Event>>>);

impl Recorder {
    /// Everything so far.
    pub fn all(&self) -> Vec<Event> {
        self.0.lock().unwrap().clone()
    }

    /// The topics of the events of `container` so far.
    pub fn topics(&self, container: &str) -> Vec<String> {
        self.all().into_iter().filter(|event| event.container == container).map(|event| event.topic).collect()
    }

    /// Waits until the topics of `container` are `expected`.
    pub async fn are(&self, container: &str, expected: &[&str]) {
        let deadline = Instant::now() + PATIENCE;
        while self.topics(container) != expected {
            assert!(Instant::now() < deadline, "{:?} instead of {expected:?}", self.topics(container));
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }
}

#[async_trait]
impl Events for Recorder {
    async fn forward(&self, _context: &TtrpcContext, request: ForwardRequest) -> ttrpc::Result<Empty> {
        let envelope = request.envelope.unwrap_or_default();
        assert_eq!(envelope.namespace, NAMESPACE);
        self.0.lock().unwrap().push(decode(&envelope.topic, &envelope.event.unwrap_or_default().value));
        Ok(Empty::default())
    }
}

fn decode(topic: &str, value: &[u8]) -> Event {
    let (container, pid, status) = match topic {
        topics::TASK_CREATE_EVENT_TOPIC => {
            let event = events::task::TaskCreate::parse_from_bytes(value).unwrap();
            (event.container_id, event.pid, 0)
        }
        topics::TASK_START_EVENT_TOPIC => {
            let event = events::task::TaskStart::parse_from_bytes(value).unwrap();
            (event.container_id, event.pid, 0)
        }
        topics::TASK_EXIT_EVENT_TOPIC => {
            let event = events::task::TaskExit::parse_from_bytes(value).unwrap();
            (event.container_id, event.pid, event.exit_status)
        }
        topics::TASK_DELETE_EVENT_TOPIC => {
            let event = events::task::TaskDelete::parse_from_bytes(value).unwrap();
            (event.container_id, event.pid, event.exit_status)
        }
        // The others begin with the container's id as well.
        _ => (events::task::TaskPaused::parse_from_bytes(value).unwrap().container_id, 0, 0),
    };
    Event { topic: topic.trim_start_matches("/tasks/").into(), container, pid, status }
}
