//! A private containerd: its own root, state, sockets and code cache, ended with the test.

use std::collections::{HashMap, HashSet};
use std::fs::{self, File};
use std::os::unix::net::UnixStream;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::{Sender, channel};
use std::sync::{Arc, Mutex, OnceLock};
use std::time::Duration;

use nix::sys::signal::Signal;
use tempfile::TempDir;

use crate::api::Api;
use crate::cgroup::{are_systemds, hierarchies};
use crate::image::Image;
use crate::machine::mounts_with;
use crate::names::random_name;
use crate::places;
use crate::process::{compilers_of, processes_with, signal};
use crate::wait::until;

/// The namespace of everything that tests make.
pub(crate) const NAMESPACE: &str = "skiff-test";
/// The runtime under test, as containerd knows it.
pub(crate) const RUNTIME: &str = "io.containerd.skiff.v1";
/// How long containerd may take to start.
const START_LIMIT: Duration = Duration::from_secs(30);
/// How many lines of the log a failed test shows.
const LOG_LINES: usize = 60;
/// Plugins that no test needs, and that take time to start or touch the machine.
const DISABLED_PLUGINS: [&str; 9] = [
    "io.containerd.grpc.v1.cri",
    "io.containerd.cri.v1.images",
    "io.containerd.cri.v1.runtime",
    "io.containerd.nri.v1.nri",
    "io.containerd.snapshotter.v1.blockfile",
    "io.containerd.snapshotter.v1.erofs",
    "io.containerd.snapshotter.v1.native",
    "io.containerd.differ.v1.erofs",
    "io.containerd.podsandbox.controller.v1.podsandbox",
];

/// A running containerd.
pub struct Containerd {
    directory: Mutex<Option<TempDir>>,
    path: PathBuf,
    /// The parent of the containers' cgroups, `/NAME` in every hierarchy.
    cgroup: String,
    child: Mutex<Option<Child>>,
    api: OnceLock<Api>,
    images: Mutex<HashMap<String, Arc<OnceLock<Image>>>>,
    /// The shims that [`Self::shim_of`] found.
    pub(crate) shims: Mutex<HashSet<u32>>,
    programs: PathBuf,
}

/// The result of a call of `ctr`.
#[derive(Debug)]
pub struct Ctr {
    /// The exit code; none when a signal ended it.
    pub code: Option<i32>,
    /// Its standard output.
    pub stdout: String,
    /// Its standard error.
    pub stderr: String,
}

impl Ctr {
    fn of(output: &std::process::Output) -> Self {
        Self {
            code: output.status.code(),
            stdout: String::from_utf8_lossy(&output.stdout).into_owned(),
            stderr: String::from_utf8_lossy(&output.stderr).into_owned(),
        }
    }
}

impl Containerd {
    /// Starts a containerd that uses the suites' shared cache of compiled code.
    pub fn start() -> Self {
        Self::with_options(&format!("CacheDir = \"{}\"\n", places::shared_code().display()))
    }

    /// Starts a containerd with an empty cache of compiled code of its own.
    pub fn with_own_cache() -> Self {
        Self::with_options("")
    }

    /// Starts a containerd with further options of the runtime, as TOML. `CacheDir` and `Root` are its own unless they are given.
    pub fn with_options(options: &str) -> Self {
        Self::with_programs(places::programs(), options)
    }

    /// The same with the programs in this directory.
    pub fn with_programs(programs: &Path, options: &str) -> Self {
        let directory = tempfile::Builder::new().prefix("skiff-test-").tempdir().expect("a temporary directory");
        let path = directory.path().to_path_buf();
        let containerd = Self {
            directory: Mutex::new(Some(directory)),
            // A hyphen in the name of a slice means a slice within another.
            cgroup: random_name("skiff-test").replace('-', if are_systemds() { "" } else { "-" }),
            child: Mutex::default(),
            api: OnceLock::new(),
            images: Mutex::default(),
            shims: Mutex::default(),
            programs: programs.into(),
            path,
        };
        containerd.write_configuration(options);
        containerd.spawn();
        containerd
    }

    /// The containerd that the tests of one program share. It ends with the program.
    pub fn shared() -> &'static Self {
        static SHARED: OnceLock<Containerd> = OnceLock::new();
        extern "C" fn at_exit() {
            if let Some(containerd) = SHARED.get() {
                containerd.clean_up();
            }
        }
        SHARED.get_or_init(|| {
            // SAFETY: the function is a plain one and stays where it is until the program ends.
            let registered = unsafe { libc::atexit(at_exit) };
            assert_eq!(registered, 0, "the clean-up can be registered");
            Self::start()
        })
    }

    fn write_configuration(&self, options: &str) {
        let path = self.path.display();
        let disabled: Vec<String> = DISABLED_PLUGINS.iter().map(|plugin| format!("\"{plugin}\"")).collect();
        let configuration = format!(
            "version = 3\nroot = \"{path}/root\"\nstate = \"{path}/state\"\ndisabled_plugins = [{}]\n\
             [grpc]\naddress = \"{path}/c.sock\"\n[ttrpc]\naddress = \"{path}/c.sock.ttrpc\"\n\
             [plugins.\"io.containerd.internal.v1.opt\"]\npath = \"{path}/opt\"\n",
            disabled.join(", ")
        );
        let mut lines = String::new();
        if !options.contains("CacheDir") {
            lines += &format!("CacheDir = \"{}\"\n", self.own_cache().display());
        }
        if !options.contains("OwnLauncher") {
            lines += places::launcher();
        }
        if !options.contains("Root") {
            lines += &format!("Root = \"{}\"\n", self.runtime_root().display());
        }
        fs::write(self.path.join("config.toml"), configuration).expect("the configuration can be written");
        fs::write(self.options_file(), lines + options).expect("the options can be written");
    }

    fn spawn(&self) {
        let log = File::options().append(true).create(true).open(self.log_file()).expect("the log can be opened");
        let mut command = Command::new(places::tools().join("containerd"));
        command.arg("--config").arg(self.path.join("config.toml")).env("PATH", places::search_path(&self.programs));
        command.stdin(Stdio::null()).stdout(log.try_clone().expect("a descriptor")).stderr(log).process_group(0);
        *self.child.lock().unwrap() = Some(spawn_for_good(command));
        let answers =
            until(START_LIMIT, || UnixStream::connect(self.address()).is_ok() && self.api().version().is_ok());
        assert!(answers, "containerd did not start:\n{}", self.log_of(""));
    }

    /// Ends containerd as a crash would, and starts it again on the same state.
    pub fn restart(&self) {
        self.kill();
        self.start_again();
    }

    /// Ends containerd as a crash would.
    pub fn kill(&self) {
        if let Some(mut child) = self.child.lock().unwrap().take() {
            child.kill().expect("containerd can be killed");
            child.wait().expect("containerd can be waited for");
        }
    }

    /// Starts containerd again after [`Containerd::kill`].
    pub fn start_again(&self) {
        self.spawn();
    }

    /// containerd's API.
    pub fn api(&self) -> &Api {
        self.api.get_or_init(|| Api::connect(&self.address()))
    }

    /// The image of a guest, made by `skiff pack` and imported by `ctr` on first use.
    pub fn guest(&self, name: &str) -> Image {
        self.image_once(name, || {
            let archive = self.path.join(format!("{name}.tar"));
            let reference = format!("skiff.test/{name}:1");
            let output = Command::new(places::programs().join("skiff"))
                .args(["pack", "--force", "--name", &reference, "--output"])
                .arg(&archive)
                .arg(places::guest(name))
                .output()
                .expect("`skiff` can be run");
            assert!(output.status.success(), "`skiff pack`: {}", String::from_utf8_lossy(&output.stderr));
            self.import(&archive, &reference)
        })
    }

    /// Imports an archive and returns the image that it names `reference`.
    pub fn import(&self, archive: &Path, reference: &str) -> Image {
        let said = self.ctr(["images", "import", "--local", "--all-platforms", &archive.to_string_lossy()]);
        assert_eq!(said.code, Some(0), "`ctr images import`: {}", said.stderr);
        Image::find(self, reference)
    }

    /// The image that containerd has under this name.
    pub fn image(&self, reference: &str) -> Image {
        Image::find(self, reference)
    }

    /// The image `name`, which `make` imports on first use.
    pub(crate) fn image_once(&self, name: &str, make: impl FnOnce() -> Image) -> Image {
        let slot = self.images.lock().unwrap().entry(name.to_string()).or_default().clone();
        slot.get_or_init(make).clone()
    }

    /// Runs `ctr` with these arguments, connected to this containerd.
    pub fn ctr<S: AsRef<std::ffi::OsStr>>(&self, arguments: impl IntoIterator<Item = S>) -> Ctr {
        Ctr::of(&self.ctr_command(arguments).output().expect("`ctr` can be run"))
    }

    /// `ctr` with these arguments, to be run.
    pub fn ctr_command<S: AsRef<std::ffi::OsStr>>(&self, arguments: impl IntoIterator<Item = S>) -> Command {
        let mut command = Command::new(places::tools().join("ctr"));
        command.arg("--address").arg(self.address()).args(["--namespace", NAMESPACE]).args(arguments);
        command.env("PATH", places::search_path(&self.programs)).stdin(Stdio::null());
        command
    }

    /// Runs a container of `image` by `ctr run --rm`; `arguments` are the program's, `flags` those of `ctr run`.
    pub fn ctr_run(&self, image: &Image, flags: &[&str], arguments: &[&str]) -> Ctr {
        let id = random_name("ctr");
        let output = self.ctr_run_command(&id, image, flags, arguments).output().expect("`ctr` can be run");
        crate::left::assert_nothing_left(self, &id);
        Ctr::of(&output)
    }

    /// The same command, to be run, for the container `id`.
    pub fn ctr_run_command(&self, id: &str, image: &Image, flags: &[&str], arguments: &[&str]) -> Command {
        let cgroup = self.cgroups_path(id);
        let options = self.options_file();
        let mut words = vec!["run", "--rm", "--runtime", RUNTIME, "--cgroup", &cgroup, "--runtime-config-path"];
        words.push(options.to_str().expect("temporary paths are UTF-8"));
        words.extend(flags);
        words.extend([image.name.as_str(), id]);
        words.extend(arguments);
        self.ctr_command(words)
    }

    /// The last lines of the log, containerd's and the shims', that contain `id`.
    pub fn log_of(&self, id: &str) -> String {
        let log = fs::read_to_string(self.log_file()).unwrap_or_default();
        let lines: Vec<&str> = log.lines().filter(|line| line.contains(id)).collect();
        lines[lines.len().saturating_sub(LOG_LINES)..].join("\n")
    }

    /// Removes a container without a task. Nothing of it may be left.
    pub fn forget(&self, id: &str) {
        self.api().delete_container(id).unwrap_or_else(|refused| panic!("container `{id}` was not removed: {refused}"));
        crate::left::assert_nothing_left(self, id);
    }

    /// The pid of the shim that was started for a container.
    pub fn shim_of(&self, id: &str) -> Option<u32> {
        let wanted = format!("-address {} ", self.address().display());
        // It keeps the command line of the action `start`.
        let is_its = |line: &str| line.contains(&format!("-id {id} ")) && line.trim_end().ends_with("start");
        let shim = processes_with(&wanted).into_iter().find(|(_, line)| is_its(line)).map(|(pid, _)| pid);
        self.shims.lock().unwrap().extend(shim);
        shim
    }

    /// The compilers that its shims have started.
    pub fn compilers(&self) -> Vec<u32> {
        let shims = processes_with(&format!("-address {}", self.address().display()));
        shims.into_iter().flat_map(|(pid, _)| compilers_of(pid)).collect()
    }

    /// containerd's gRPC socket.
    pub fn address(&self) -> PathBuf {
        self.path.join("c.sock")
    }

    /// The directory of everything that this containerd and its shims write, except the shared cache.
    pub fn directory(&self) -> &Path {
        &self.path
    }

    /// containerd's `root`.
    pub fn root(&self) -> PathBuf {
        self.path.join("root")
    }

    /// containerd's `state`.
    pub fn state(&self) -> PathBuf {
        self.path.join("state")
    }

    /// The bundle of a container.
    pub fn bundle(&self, id: &str) -> PathBuf {
        self.state().join("io.containerd.runtime.v2.task").join(NAMESPACE).join(id)
    }

    /// The OCI runtime's state directory.
    pub fn runtime_root(&self) -> PathBuf {
        self.path.join("runc")
    }

    /// The cache of compiled code, when it is this containerd's own.
    pub fn own_cache(&self) -> PathBuf {
        self.path.join("code")
    }

    /// The file with the runtime's options.
    pub fn options_file(&self) -> PathBuf {
        self.path.join("options.toml")
    }

    /// The file of a blob in the content store; `digest` with its `sha256:`.
    pub fn blob(&self, digest: &str) -> PathBuf {
        let hex = digest.strip_prefix("sha256:").expect("a digest of sha256");
        self.root().join("io.containerd.content.v1.content/blobs/sha256").join(hex)
    }

    /// The cgroup's path in the specification of container `id`.
    pub fn cgroups_path(&self, id: &str) -> String {
        if are_systemds() { format!("{}.slice:test:{id}", self.cgroup) } else { format!("/{}/{id}", self.cgroup) }
    }

    /// The name of the parent of all containers' cgroups.
    pub fn cgroup(&self) -> &str {
        &self.cgroup
    }

    fn log_file(&self) -> PathBuf {
        self.path.join("containerd.log")
    }

    /// Ends everything and removes the directory, together with the containers that a failed test left.
    fn clean_up(&self) {
        self.kill();
        for text in [self.address().to_string_lossy().as_ref(), self.cgroup.as_str()] {
            for (pid, _) in processes_with(text) {
                signal(pid, Signal::SIGKILL).ok();
            }
        }
        for mount in mounts_with("self", &self.path.to_string_lossy()).iter().rev() {
            nix::mount::umount2(mount, nix::mount::MntFlags::MNT_DETACH).ok();
        }
        for hierarchy in hierarchies() {
            remove_cgroups(&hierarchy.join(&self.cgroup));
        }
        drop(self.directory.lock().unwrap().take());
    }
}

impl Drop for Containerd {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("containerd's log:\n{}", self.log_of(""));
        }
        self.clean_up();
    }
}

/// Removes a cgroup and those below it, as far as they are empty.
fn remove_cgroups(directory: &Path) {
    for entry in fs::read_dir(directory).into_iter().flatten().flatten() {
        if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            remove_cgroups(&entry.path());
        }
    }
    drop(fs::remove_dir(directory));
}

/// Starts a process that the kernel kills when this program ends, however it ends. The kernel watches the thread that started
/// the process, so a thread that lives as long as the program does it.
fn spawn_for_good(mut command: Command) -> Child {
    type Job = (Command, Sender<Child>);
    static KEEPER: OnceLock<Mutex<Sender<Job>>> = OnceLock::new();
    // SAFETY: the closure makes one system call and allocates nothing.
    unsafe { command.pre_exec(|| nix::sys::prctl::set_pdeathsig(Signal::SIGKILL).map_err(Into::into)) };
    let keeper = KEEPER.get_or_init(|| {
        let (jobs, received) = channel::<Job>();
        std::thread::spawn(move || {
            for (mut command, answer) in received {
                answer.send(command.spawn().expect("the program can be started")).expect("the caller waits");
            }
        });
        Mutex::new(jobs)
    });
    let (answer, started) = channel();
    keeper.lock().unwrap().send((command, answer)).expect("the keeper lives");
    started.recv().expect("the keeper replies")
}
