//! The life of containers, with ordinary children of the test in the place of containers' processes: needs neither root nor a
//! shim.

use std::fs;
use std::io::Write;
use std::os::fd::OwnedFd;
use std::path::Path;
use std::process::{ChildStdin, Command, Stdio};
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use async_trait::async_trait;
use oci_spec::runtime::{LinuxResources, Process as ProcessSpec};
use skiff_linux::cgroup::Cgroup;
use tempfile::TempDir;

use super::kind::Kind as ContainerKind;
use super::launched::{Created, Parts};
use super::native::Native;
use super::slots::Reservation;
use super::state::State;
use super::*;
use crate::events::{Exit, Recorder};
use crate::host::logging_program::Owner;
use crate::host::namespaces;
use crate::host::process::Child;
use crate::host::rootfs::Rootfs;
use crate::launch::{Attachment, Launched, Launcher};
use crate::request::{CheckpointOptions, CreateRequest, StdioPaths};
use crate::spec::config::Config;

/// Longer than anything here takes.
const DEADLINE: Duration = Duration::from_secs(20);

/// Makes children that end with the code that they are told.
struct FakeLauncher {
    cgroup: Cgroup,
    /// The inputs of the children, in the order in which they were made.
    children: Mutex<Vec<(i32, ChildStdin)>>,
    /// What was asked of it, besides making processes.
    calls: Mutex<Vec<&'static str>>,
    /// Start ends the process with this code before it returns.
    ends_at_start: Option<i32>,
    fails: AtomicBool,
}

impl FakeLauncher {
    #[expect(clippy::zombie_processes, reason = "the process's owner waits for it by its pidfd")]
    fn make(&self) -> Result<Child> {
        if self.fails.load(Ordering::Relaxed) {
            return Err(Error::new(Kind::Host, "nothing is made today"));
        }
        let mut command = Command::new("sh");
        command.args(["-c", "read code; exit $code"]).stdin(Stdio::piped());
        let mut child = command.spawn().unwrap();
        let pid = i32::try_from(child.id()).unwrap();
        self.children.lock().unwrap().push((pid, child.stdin.take().unwrap()));
        Ok(Child::of_child(pid).unwrap())
    }

    /// Lets the child that was made as number `index` end with `code`.
    fn end(&self, index: usize, code: i32) -> i32 {
        let (pid, input) = &mut self.children.lock().unwrap()[index];
        writeln!(input, "{code}").unwrap();
        *pid
    }

    fn note(&self, call: &'static str) -> Result<()> {
        self.calls.lock().unwrap().push(call);
        Ok(())
    }

    fn calls(&self) -> Vec<&'static str> {
        std::mem::take(&mut *self.calls.lock().unwrap())
    }
}

#[async_trait]
impl Launcher for FakeLauncher {
    async fn create(&self, _config: &Config, _attachment: Attachment, _preserved: Vec<OwnedFd>) -> Result<Launched> {
        Ok(Launched { child: self.make()?, cgroup: self.cgroup.clone() })
    }

    fn cgroup(&self) -> Result<Cgroup> {
        Ok(self.cgroup.clone())
    }

    async fn restore(&self, _config: &Config, _attachment: Attachment, _image: &Path) -> Result<Child> {
        self.make()
    }

    async fn checkpoint(&self, _image: &Path, _stdio: &StdioPaths, _options: &CheckpointOptions) -> Result<()> {
        self.note("checkpoint")
    }

    async fn start(&self) -> Result<()> {
        if let Some(code) = self.ends_at_start {
            let place = format!("/proc/{}", self.end(0, code));
            // Whoever supervises it has reaped it by then.
            until(|| !Path::new(&place).exists()).await;
        }
        self.note("start")
    }

    async fn delete(&self) -> Result<()> {
        self.note("delete")
    }

    async fn end_interrupted(&self) -> Result<()> {
        self.note("end_interrupted")
    }

    async fn pause(&self) -> Result<()> {
        self.note("pause")
    }

    async fn resume(&self) -> Result<()> {
        self.note("resume")
    }

    async fn update(&self, _resources: &LinuxResources) -> Result<()> {
        self.note("update")
    }

    async fn exec(
        &self,
        _process: &ProcessSpec,
        _attachment: Attachment,
        _exec_id: &str,
        _preserved: Vec<OwnedFd>,
    ) -> Result<Child> {
        self.make()
    }

    fn recorded_pid(&self) -> Option<i32> {
        None
    }
}

async fn until(mut is_so: impl FnMut() -> bool) {
    let deadline = Instant::now() + DEADLINE;
    while !is_so() {
        assert!(Instant::now() < deadline, "it does not come to pass");
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
}

/// A pod in which the container `c` is made.
struct Bed {
    pod: Arc<Pod>,
    events: Arc<Recorder>,
    launcher: Arc<FakeLauncher>,
    request: CreateRequest,
    directory: TempDir,
}

impl Bed {
    fn new() -> Self {
        Self::with(None)
    }

    fn with(ends_at_start: Option<i32>) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path();
        fs::create_dir_all(path.join("rootfs/etc")).unwrap();
        fs::create_dir_all(path.join("cgroup/c")).unwrap();
        let launcher = Arc::new(FakeLauncher {
            cgroup: Cgroup::unified(&path.join("cgroup"), path.join("cgroup/c")),
            children: Mutex::default(),
            calls: Mutex::default(),
            ends_at_start,
            fails: AtomicBool::new(false),
        });
        let (holder, jobs) = namespaces::holder();
        std::thread::spawn(|| jobs.serve());
        let events = Arc::new(Recorder::default());
        let pod = Arc::new(Pod::new(Identity::default(), events.clone(), holder));
        let request = CreateRequest { id: "c".into(), bundle: path.into(), ..CreateRequest::default() };
        Self { pod, events, launcher, request, directory }
    }

    fn parts(&self) -> Parts<'_> {
        let config = Config::parse(br#"{"process":{"args":["/app"],"cwd":"/"}}"#, self.directory.path()).unwrap();
        let rootfs = Rootfs::mount(config.root.path.clone(), &[]).unwrap();
        let (owner, launcher) = (Owner::default(), self.launcher.clone());
        Parts { request: &self.request, owner, config: Arc::new(config), rootfs, launcher }
    }

    async fn announce(&self, created: Created<ContainerKind>, reservation: Reservation) -> Result<Arc<Container>> {
        let is_sandbox = created.kind.launched().is_none();
        let container = Arc::new(Container::new(&self.request, created, self.events.clone(), is_sandbox));
        self.pod.announce(container.clone(), reservation, &self.request).await?;
        Ok(container)
    }

    async fn native(&self) -> Arc<Container> {
        let created = Created::of_native(Native::create(self.parts()).await.unwrap());
        self.announce(created, self.pod.slots.reserve("c").unwrap()).await.unwrap()
    }

    async fn started(&self) -> Arc<Container> {
        let container = self.native().await;
        container.start().await.unwrap();
        container
    }

    async fn sandbox(&self) -> Arc<Container> {
        let first = Process::held_by_the_shim(StdioPaths::default());
        let created = Created { first, kind: ContainerKind::Sandbox(self.pod.sandbox.clone()) };
        self.announce(created, self.pod.slots.reserve("c").unwrap()).await.unwrap()
    }

    fn check(&self, expected: &[&str]) {
        assert_eq!(self.events.said(), expected);
    }
}

fn refusal<T>(result: Result<T>) -> String {
    result.map(drop).unwrap_err().to_string()
}

#[tokio::test]
async fn events_come_in_the_order_of_a_containers_life() {
    let bed = Bed::new();
    let container = bed.started().await;
    bed.launcher.end(0, 3);
    assert_eq!(container.init.wait().await.unwrap().code, 3);
    let deleted = bed.pod.delete("c", "").await.unwrap();
    assert_eq!((deleted.pid, deleted.exit.code), (container.init.pid(), 3));
    bed.check(&["created c", "started c", "exited c 3", "deleted c 3"]);
    assert_eq!(bed.launcher.calls(), ["start", "delete"]);
    assert_eq!(refusal(bed.pod.container("c")), "container `c` does not exist");
}

#[tokio::test]
async fn memory_that_ran_out_is_reported_before_the_exit() {
    let bed = Bed::new();
    let container = bed.started().await;
    fs::write(bed.directory.path().join("cgroup/c/memory.events"), "oom 1\noom_kill 1\n").unwrap();
    bed.launcher.end(0, 137);
    container.init.wait().await.unwrap();
    bed.pod.delete("c", "").await.unwrap();
    bed.check(&["created c", "started c", "out of memory c", "exited c 137", "deleted c 137"]);
}

#[tokio::test]
async fn a_container_is_started_once() {
    let bed = Bed::new();
    let container = bed.started().await;
    assert_eq!(refusal(container.start().await), "cannot start a container that is running");
    bed.launcher.end(0, 0);
    container.init.wait().await.unwrap();
    assert_eq!(refusal(container.start().await), "cannot start a container that is stopped");
    bed.check(&["created c", "started c", "exited c 0"]);
}

#[tokio::test]
async fn a_process_that_ends_while_it_is_started_exits_after_its_start() {
    let bed = Bed::with(Some(7));
    let container = bed.started().await;
    assert_eq!(container.init.wait().await.unwrap().code, 7);
    bed.check(&["created c", "started c", "exited c 7"]);
}

#[tokio::test]
async fn a_container_that_is_killed_before_its_start_cannot_be_started() {
    let bed = Bed::new();
    let container = bed.native().await;
    container.kill(&container.init, libc::SIGKILL, false).await.unwrap();
    assert_eq!(container.init.wait().await.unwrap().code, 137);
    assert_eq!(refusal(container.start().await), "cannot start a container that is stopped");
    assert_eq!(refusal(container.kill(&container.init, 0, false).await), "the process has already ended");
    bed.check(&["created c", "exited c 137"]);
}

#[tokio::test]
async fn a_running_container_is_not_deleted_and_one_that_never_ran_is_ended_first() {
    let bed = Bed::new();
    let container = bed.started().await;
    assert_eq!(refusal(bed.pod.delete("c", "").await), "cannot delete a container that is running");
    assert_eq!(container.init.state(), State::Running);
    bed.check(&["created c", "started c"]);
    let bed = Bed::new();
    bed.native().await;
    assert_eq!(bed.pod.delete("c", "").await.unwrap().exit.code, 137);
    bed.check(&["created c", "exited c 137", "deleted c 137"]);
}

#[tokio::test]
async fn a_container_is_paused_and_resumed_in_turn() {
    let bed = Bed::new();
    let container = bed.native().await;
    assert_eq!(refusal(container.pause().await), "cannot pause a container that is created");
    container.start().await.unwrap();
    assert_eq!(refusal(container.resume().await), "cannot resume a container that is running");
    container.pause().await.unwrap();
    assert_eq!(refusal(container.pause().await), "cannot pause a container that is paused");
    container.resume().await.unwrap();
    bed.check(&["created c", "started c", "paused c", "resumed c"]);
    // A frozen process cannot die.
    container.pause().await.unwrap();
    container.kill(&container.init, libc::SIGKILL, false).await.unwrap();
    assert_eq!(container.init.wait().await.unwrap().code, 137);
    assert_eq!(bed.launcher.calls(), ["start", "pause", "resume", "pause", "resume"]);
}

#[tokio::test]
async fn a_checkpoint_is_made_of_what_runs_and_restored_by_start() {
    let bed = Bed::new();
    let container = bed.native().await;
    let (image, options) = (Path::new("/image"), CheckpointOptions::default());
    let early = container.checkpoint(image, &options).await;
    assert_eq!(refusal(early), "cannot checkpoint a container that is created");
    container.start().await.unwrap();
    container.checkpoint(image, &options).await.unwrap();
    bed.check(&["created c", "started c", "checkpointed c /image"]);

    let mut bed = Bed::new();
    bed.request.checkpoint = "/image".into();
    let created = || Created::of_native(Native::from_checkpoint(bed.parts()).unwrap());
    let container = bed.announce(created(), bed.pod.slots.reserve("c").unwrap()).await.unwrap();
    assert_eq!(container.init.pid(), 0);
    assert_eq!(bed.pod.delete("c", "").await.unwrap().exit.code, 137);
    let container = bed.announce(created(), bed.pod.slots.reserve("c").unwrap()).await.unwrap();
    assert_ne!(container.start().await.unwrap(), 0);
    bed.launcher.end(0, 4);
    assert_eq!(container.init.wait().await.unwrap().code, 4);
    bed.check(&["created c", "exited c 137", "deleted c 137", "created c", "started c", "exited c 4"]);
}

#[tokio::test]
async fn a_further_process_has_events_of_its_own() {
    let bed = Bed::new();
    let container = bed.native().await;
    let add = |id| container.add_exec(id, StdioPaths::default(), ProcessSpec::default());
    add("e").unwrap();
    assert_eq!(refusal(add("e")), "process `e` already exists");
    assert_eq!(refusal(container.start_exec("e").await), "cannot start a process in a container that is created");
    container.start().await.unwrap();
    container.start_exec("e").await.unwrap();
    assert_eq!(refusal(bed.pod.delete("c", "e").await), "cannot delete a container that is running");
    bed.launcher.end(1, 2);
    assert_eq!(container.process("e").unwrap().wait().await.unwrap().code, 2);
    assert_eq!(bed.pod.delete("c", "e").await.unwrap().exit.code, 2);
    assert_eq!(refusal(container.process("e")), "process `e` does not exist in container `c`");
    bed.check(&["created c", "exec added c e", "started c", "exec started c e", "exited c e 2"]);
}

#[tokio::test]
async fn a_further_process_that_cannot_be_made_has_ended() {
    let bed = Bed::new();
    let container = bed.started().await;
    container.add_exec("e", StdioPaths::default(), ProcessSpec::default()).unwrap();
    bed.launcher.fails.store(true, Ordering::Relaxed);
    assert_eq!(refusal(container.start_exec("e").await), "nothing is made today");
    assert!(matches!(container.process("e").unwrap().state(), State::Stopped(Exit { code, .. }) if code != 0));
    bed.pod.delete("c", "e").await.unwrap();
    bed.check(&["created c", "started c", "exec added c e"]);
}

#[tokio::test]
async fn a_sandbox_ends_as_a_pause_program_does() {
    for (signal, code) in [(libc::SIGTERM, 0), (libc::SIGKILL, 137)] {
        let bed = Bed::new();
        let container = bed.sandbox().await;
        assert_eq!(container.start().await.unwrap(), nix::unistd::getpid().as_raw());
        container.kill(&container.init, 0, false).await.unwrap();
        let exec = container.add_exec("e", StdioPaths::default(), ProcessSpec::default());
        assert_eq!(refusal(exec), "exec is not implemented for the sandbox of a pod (container `c`)");
        container.kill(&container.init, signal, false).await.unwrap();
        assert_eq!(refusal(container.kill(&container.init, signal, false).await), "the process has already ended");
        bed.pod.delete("c", "").await.unwrap();
        bed.check(&["created c", "started c", &format!("exited c {code}"), &format!("deleted c {code}")]);
        assert_eq!(refusal(bed.pod.slots.reserve("d")), "the pod of container `d` has been deleted");
    }
}

#[tokio::test]
async fn a_container_that_is_not_wanted_any_more_is_undone_unseen() {
    let bed = Bed::new();
    let reservation = bed.pod.slots.reserve("c").unwrap();
    let created = Created::of_native(Native::create(bed.parts()).await.unwrap());
    let delete = async {
        let deleted = bed.pod.delete("c", "").await;
        assert_eq!(refusal(deleted), "container `c` does not exist");
    };
    let announce = async {
        // By now the deletion waits.
        tokio::task::yield_now().await;
        assert_eq!(
            refusal(bed.announce(created, reservation).await),
            "container `c` was deleted while it was being created"
        );
    };
    tokio::join!(delete, announce);
    bed.check(&[]);
    assert_eq!(bed.launcher.calls(), ["delete"]);
    assert!(!Path::new(&format!("/proc/{}", bed.launcher.children.lock().unwrap()[0].0)).exists());
}
