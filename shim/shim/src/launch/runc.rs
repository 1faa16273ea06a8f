//! The node's OCI runtime (runc), which makes containers, and runs further processes in native ones.

use std::fs;
use std::io;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::process::{ExitStatus, Stdio};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use async_trait::async_trait;
use oci_spec::runtime::{LinuxResources, Process as ProcessSpec};
use runc::options::{DeleteOpts, GlobalOpts};
use runc::{Command, Runc, Spawner};
use skiff_linux::cgroup::Cgroup;
use tokio::io::{AsyncRead, AsyncReadExt};

use crate::error::{Context, Error, Kind, Result};
use crate::host::process::{Child, OomScore, pass_descriptors, wait_within, work_for_a_pod};
use crate::host::record::Record;
use crate::launch::criu;
use crate::launch::exec_files::ExecFiles;
use crate::launch::launcher::{Attachment, Launched, Launcher};
use crate::request::{CheckpointOptions, StdioPaths};
use crate::spec::config::{CONFIG_FILE, Config};

/// The pid of the container's first process, in the bundle.
pub(super) const PID_FILE: &str = "init.pid";
/// The OCI runtime's log, in the bundle.
const LOG_FILE: &str = "runtime.log";

/// How long the runtime may take for anything; then it is killed.
pub(super) const LIMIT: Duration = Duration::from_secs(120);
/// The same where criu does the work, which reads or writes all of a container's memory.
const CRIU_LIMIT: Duration = Duration::from_secs(1800);
/// The most that is kept of what the runtime prints, in bytes.
const OUTPUT_BYTES_MAX: u64 = 64 << 10;

/// How often a pause is tried.
const PAUSE_TRIES: u32 = 5;

/// A container of the node's OCI runtime.
pub(super) struct OciRuntime {
    id: String,
    client: Runc,
    /// containerd's bundle, for the files that pass between the runtime and the shim.
    directory: PathBuf,
    record: Record,
    state_root: PathBuf,
    /// The container's cgroup, once it was asked for.
    cgroup: OnceLock<Cgroup>,
}

impl OciRuntime {
    /// The container `id`, as `record` describes it; the runtime's messages go to a file in `bundle`.
    pub(super) fn new(record: &Record, id: &str, bundle: &Path) -> Result<Self> {
        let settings = &record.settings;
        let state_root = settings.root.join(&record.namespace);
        let mut options = GlobalOpts::new();
        options.custom_spawner(Arc::new(Bounded));
        let client = options
            .command(&settings.binary_name)
            .root(&state_root)
            .log(bundle.join(LOG_FILE))
            .log_json()
            .systemd_cgroup(settings.systemd_cgroup)
            .build()
            .map_err(|_| Error::new(Kind::Host, format!("cannot find the OCI runtime `{}`", settings.binary_name)))?;
        Ok(Self {
            id: id.into(),
            client,
            directory: bundle.into(),
            record: record.clone(),
            state_root,
            cgroup: OnceLock::new(),
        })
    }

    /// The bundle for the runtime: containerd's, unless the specification differs from the one there. The root file system is
    /// always containerd's.
    fn bundle_of(&self, config: &Config) -> Result<PathBuf> {
        if !config.is_rewritten {
            return Ok(self.directory.clone());
        }
        let bundle = self.directory.join("runtime-bundle");
        let text = serde_json::to_vec(config).doing(|| "cannot encode the specification".into())?;
        let written = fs::create_dir_all(&bundle).and_then(|()| fs::write(bundle.join(CONFIG_FILE), text));
        written.doing(|| "cannot write the bundle for the OCI runtime".into())?;
        Ok(bundle)
    }

    /// The process that the runtime has just made.
    fn first_process(&self) -> Result<Child> {
        Child::of_child(read_pid(&self.directory.join(PID_FILE))?)
            .doing(|| "cannot watch the container's process".into())
    }

    /// The error of the client's last call.
    fn failed(&self, doing: &str, error: &dyn std::error::Error) -> Error {
        failed(&self.log(), doing, error)
    }

    /// The log of what is done with the whole container.
    fn log(&self) -> PathBuf {
        self.directory.join(LOG_FILE)
    }

    /// A command of the runtime that the client does not know, or not with all its options.
    fn command(&self, name: &str, log: &Path) -> Command {
        let mut command = Command::new(&self.record.settings.binary_name);
        command.arg("--root").arg(&self.state_root).arg("--log").arg(log).args(["--log-format", "json"]);
        if self.record.settings.systemd_cgroup {
            command.arg("--systemd-cgroup");
        }
        command.arg(name).env_remove("NOTIFY_SOCKET");
        command
    }

    /// A command that makes a container.
    fn making(&self, name: &str, bundle: &Path, attachment: Attachment, preserved: Vec<OwnedFd>) -> Command {
        let mut command = self.command(name, &self.log());
        command.arg("--bundle").arg(bundle).arg("--pid-file").arg(self.directory.join(PID_FILE));
        if self.record.settings.no_pivot_root {
            command.arg("--no-pivot");
        }
        connect(&mut command, attachment, preserved);
        command
    }

    async fn run(&self, name: &str, mut command: Command, limit: Duration, log: &Path) -> Result<()> {
        let child = command.arg(&self.id).kill_on_drop(true).spawn();
        let mut child = child.doing(|| "cannot run the OCI runtime".into())?;
        // The command holds the files that are the child's by now.
        drop(command);
        match wait_within(&mut child, limit).await {
            Ok(status) if status.success() => Ok(()),
            Ok(status) => Err(failed(log, name, &io::Error::other(format!("it ended with {status}")))),
            Err(error) => Err(Error::host(format!("OCI runtime {name} failed"), error)),
        }
    }

    /// The same for a command that leaves the work to criu, which writes `log`.
    async fn run_criu(&self, name: &str, command: Command, log: &Path) -> Result<()> {
        // What an earlier attempt left there must not explain this one.
        drop(fs::remove_file(log));
        self.run(name, command, CRIU_LIMIT, &self.log()).await.map_err(|error| criu::explain(error, log))
    }
}

#[async_trait]
impl Launcher for OciRuntime {
    async fn create(&self, config: &Config, attachment: Attachment, preserved: Vec<OwnedFd>) -> Result<Launched> {
        // The client knows nothing of descriptors to preserve.
        let mut command = self.making("create", &self.bundle_of(config)?, attachment, preserved);
        if self.record.settings.no_new_keyring {
            command.arg("--no-new-keyring");
        }
        self.run("create", command, LIMIT, &self.log()).await?;
        let child = self.first_process()?;
        let cgroup = Cgroup::of_pid(child.pid()).doing(|| "cannot find the container's cgroup".into())?;
        Ok(Launched { child, cgroup })
    }

    fn cgroup(&self) -> Result<Cgroup> {
        if let Some(cgroup) = self.cgroup.get() {
            return Ok(cgroup.clone());
        }
        let path = self.record.cgroups_path.as_deref().unwrap_or_default();
        let cgroup = Cgroup::from_spec(path, self.record.settings.systemd_cgroup, &self.id)
            .doing(|| "cannot find the container's cgroup".into())?;
        Ok(self.cgroup.get_or_init(|| cgroup).clone())
    }

    async fn restore(&self, config: &Config, attachment: Attachment, image: &Path) -> Result<Child> {
        let mut command = self.making("restore", &self.bundle_of(config)?, attachment, Vec::new());
        command.arg("--detach").arg("--image-path").arg(image).arg("--work-path").arg(&self.directory);
        let config = criu::prepare_restore(image, &self.directory);
        command.env(criu::CONFIG_VARIABLE, config.doing(|| "cannot prepare the restore".into())?);
        self.run_criu("restore", command, &self.directory.join("restore.log")).await?;
        self.first_process()
    }

    async fn checkpoint(&self, image: &Path, stdio: &StdioPaths, options: &CheckpointOptions) -> Result<()> {
        let config = criu::prepare(image, &self.directory, stdio)
            .doing(|| format!("cannot prepare a checkpoint in `{}`", image.display()))?;
        let mut command = self.command("checkpoint", &self.log());
        command.env(criu::CONFIG_VARIABLE, config);
        let work = if options.work_path.is_empty() { self.directory.as_path() } else { Path::new(&options.work_path) };
        command.arg("--image-path").arg(image).arg("--work-path").arg(work);
        for (flag, set) in [
            ("--leave-running", !options.exit),
            ("--tcp-established", options.open_tcp),
            ("--ext-unix-sk", options.external_unix_sockets),
            ("--shell-job", options.terminal),
            ("--file-locks", options.file_locks),
        ] {
            if set {
                command.arg(flag);
            }
        }
        for namespace in &options.empty_namespaces {
            command.arg("--empty-ns").arg(namespace);
        }
        if !options.cgroups_mode.is_empty() {
            command.arg("--manage-cgroups-mode").arg(&options.cgroups_mode);
        }
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
        self.run_criu("checkpoint", command, &work.join("dump.log")).await
    }

    async fn start(&self) -> Result<()> {
        self.client.start(&self.id).await.map(drop).map_err(|error| self.failed("start", &error))
    }

    async fn delete(&self) -> Result<()> {
        // The runtime makes this directory before anything else and removes it last.
        if !self.state_root.join(&self.id).exists() {
            return Ok(());
        }
        // By force runc sleeps for 100 ms before it looks whether the processes are gone; mostly they are.
        if self.client.delete(&self.id, None).await.is_ok() {
            return Ok(());
        }
        let options = DeleteOpts { force: true };
        self.client.delete(&self.id, Some(&options)).await.map_err(|error| self.failed("delete", &error))
    }

    async fn pause(&self) -> Result<()> {
        // With the freezer of cgroup v1, runc gives up on processes that are too busy to be caught.
        for _ in 1..PAUSE_TRIES {
            if self.client.pause(&self.id).await.is_ok() {
                return Ok(());
            }
        }
        self.client.pause(&self.id).await.map_err(|error| self.failed("pause", &error))
    }

    async fn resume(&self) -> Result<()> {
        self.client.resume(&self.id).await.map_err(|error| self.failed("resume", &error))
    }

    async fn update(&self, resources: &LinuxResources) -> Result<()> {
        self.client.update(&self.id, resources).await.map_err(|error| self.failed("update", &error))
    }

    async fn exec(
        &self,
        process: &ProcessSpec,
        attachment: Attachment,
        exec_id: &str,
        preserved: Vec<OwnedFd>,
    ) -> Result<Child> {
        let files = ExecFiles::write(&self.directory, exec_id, process)
            .doing(|| "cannot write the specification of the process".into())?;
        let mut command = self.command("exec", &files.log);
        command.arg("--detach").arg("--process").arg(&files.process).arg("--pid-file").arg(&files.pid);
        connect(&mut command, attachment, preserved);
        self.run("exec", command, LIMIT, &files.log).await?;
        Child::of_child(read_pid(&files.pid)?).doing(|| "cannot watch the process".into())
    }

    async fn end_interrupted(&self) -> Result<()> {
        // The first thing that it does is to open its log. Where it did not come so far, somebody else's processes may be in the
        // cgroup, which it refuses then.
        if !self.directory.join(LOG_FILE).exists() {
            return Ok(());
        }
        let cgroup = self.record.cgroup(&self.id).doing(|| "cannot find the container's cgroup".into())?;
        let Some(cgroup) = cgroup else { return Ok(()) };
        let removed = tokio::task::spawn_blocking(move || cgroup.kill_all().and_then(|()| cgroup.remove()));
        removed.await.map_err(io::Error::other).flatten().doing(|| "cannot remove the container's cgroup".into())
    }

    fn recorded_pid(&self) -> Option<i32> {
        read_pid(&self.directory.join(PID_FILE)).ok()
    }
}

/// The runtime's own words for its last failure in `log`, or those of the call.
fn failed(log: &Path, doing: &str, error: &dyn std::error::Error) -> Error {
    let said = fs::read_to_string(log).unwrap_or_default();
    let last = said
        .lines()
        .rev()
        .filter_map(|line| serde_json::from_str::<serde_json::Value>(line).ok())
        .find_map(|entry| (entry["level"] == "error").then(|| entry["msg"].as_str().map(str::to_string)).flatten());
    let words = last.unwrap_or_else(|| crate::error::chain(error));
    Error::new(Kind::Host, format!("OCI runtime {doing} failed: {words}"))
}

/// Connects the process that `command` makes, which gets `preserved` as descriptors 3, 4, ….
fn connect(command: &mut Command, attachment: Attachment, preserved: Vec<OwnedFd>) {
    match attachment {
        Attachment::Files(stdio) => {
            command.stdin(stdio.stdin).stdout(stdio.stdout).stderr(stdio.stderr);
        }
        Attachment::Console(socket) => {
            command.arg("--console-socket").arg(socket);
            command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
        }
    }
    if !preserved.is_empty() {
        command.arg("--preserve-fds").arg(preserved.len().to_string());
        pass_descriptors(command.as_std_mut(), preserved);
    }
    work_for_a_pod(command.as_std_mut(), libc::SIGKILL, OomScore::Ordinary);
}

/// Runs the client's commands: each is killed when nobody waits for it any more or its time is over, and has an OOM score
/// of its own.
#[derive(Debug)]
struct Bounded;

#[async_trait]
impl Spawner for Bounded {
    async fn execute(&self, mut command: Command) -> runc::Result<(ExitStatus, u32, String, String)> {
        let mut child = command.kill_on_drop(true).spawn().map_err(runc::error::Error::ProcessSpawnFailed)?;
        // The command holds the files that are the child's by now.
        drop(command);
        let pid = child.id().unwrap_or_default();
        // From here it costs less than between fork and exec. Where a score may not be lowered, the inherited one is the higher.
        drop(fs::write(format!("/proc/{pid}/oom_score_adj"), "0"));
        let (stdout, stderr) = (child.stdout.take(), child.stderr.take());
        let (status, stdout, stderr) = tokio::join!(wait_within(&mut child, LIMIT), text_of(stdout), text_of(stderr));
        Ok((status.map_err(runc::error::Error::InvalidCommand)?, pid, stdout, stderr))
    }
}

/// What is read from `stream` until its end; what cannot be read, or is too much, is left out.
async fn text_of(stream: Option<impl AsyncRead + Unpin>) -> String {
    let Some(mut stream) = stream else { return String::new() };
    let mut text = Vec::new();
    let read = async {
        (&mut stream).take(OUTPUT_BYTES_MAX).read_to_end(&mut text).await?;
        tokio::io::copy(&mut stream, &mut tokio::io::sink()).await
    };
    if let Err(error) = read.await {
        log::debug!("cannot read the OCI runtime's messages: {error}");
    }
    String::from_utf8_lossy(&text).into_owned()
}

fn read_pid(path: &Path) -> Result<i32> {
    let text = fs::read_to_string(path).doing(|| format!("cannot read `{}`", path.display()))?;
    text.trim().parse().doing(|| format!("there is no pid in `{}`", path.display()))
}
