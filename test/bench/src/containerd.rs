//! A private containerd in a temporary directory, and its end.

use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use containerd_client::Client;
use containerd_client::services::v1::{
    DeleteTaskRequest, KillRequest, ListContainersRequest, ListTasksRequest, WaitRequest,
};
use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use tempfile::TempDir;
use tokio::process::{Child, Command};
use tonic::Request;
use tonic::metadata::MetadataValue;

use crate::cgroup::Group;
use crate::container;
use crate::cri::Cri;
use crate::image::{Form, Image};
use crate::processes;
use crate::programs::Programs;

/// containerd's namespace of the containers here.
const NAMESPACE: &str = "bench";
/// containerd's namespace of everything that comes through the CRI.
const POD_NAMESPACE: &str = "k8s.io";
/// The image of the sandboxes that need one.
const PAUSE: &str = "localhost/pause-file:1";
const PATIENCE: Duration = Duration::from_secs(30);
const OFTEN: Duration = Duration::from_millis(5);

/// What a containerd is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Serves {
    /// Containers of its own interface.
    Containers,
    /// Pods of the CRI, too.
    Pods,
}

/// A running containerd.
pub(crate) struct Containerd {
    process: Child,
    directory: TempDir,
    client: Client,
    cri: Cri,
    ctr: PathBuf,
    tag: String,
    group: Group,
}

impl Containerd {
    /// Starts it and waits until it responds.
    ///
    /// # Errors
    /// When it does not start.
    pub(crate) async fn start(programs: &Programs, serves: Serves) -> Result<Self> {
        let directory = tempfile::Builder::new().prefix("skiff-bench.").tempdir()?;
        let home = directory.path();
        // As `/run` is on nodes.
        let state = home.join("state");
        std::fs::create_dir(&state)?;
        mount(Some("tmpfs"), &state, Some("tmpfs"), MsFlags::empty(), None::<&str>).context("cannot mount a tmpfs")?;
        std::fs::write(home.join("config.toml"), configuration(home, serves))?;
        let log = std::fs::File::create(home.join("containerd.log"))?;
        let process = Command::new(programs.tool("containerd"))
            .arg("--config")
            .arg(home.join("config.toml"))
            .env("PATH", search_path(programs)?)
            // containerd also looks for shims in the working directory.
            .current_dir(home)
            .stdin(Stdio::null())
            .stdout(log.try_clone()?)
            .stderr(log)
            .spawn()
            .context("cannot start containerd")?;
        let client = answering(&home.join("c.sock")).await.context("containerd does not answer")?;
        let tag = format!("sb{}", std::process::id());
        let group = Group::of(&tag, pid_of(&process)?)?;
        let cri = Cri::new(client.channel());
        Ok(Self { process, client, cri, ctr: programs.tool("ctr"), tag, group, directory })
    }

    /// Its process.
    ///
    /// # Errors
    /// When it has ended.
    pub(crate) fn pid(&self) -> Result<u32> {
        pid_of(&self.process)
    }

    /// The cgroup that it is in, with all of its containers.
    pub(crate) fn group(&self) -> &Group {
        &self.group
    }

    /// The client of its API.
    pub(crate) fn client(&self) -> &Client {
        &self.client
    }

    /// The client of its CRI.
    pub(crate) fn cri(&self) -> &Cri {
        &self.cri
    }

    /// What the command line of each of its shims holds, and that of nothing else.
    pub(crate) fn shims(&self) -> String {
        self.directory().join("c.sock").display().to_string()
    }

    /// Where everything is kept.
    pub(crate) fn directory(&self) -> &Path {
        self.directory.path()
    }

    /// A name for a container that no other run uses. All of its processes are found by it.
    pub(crate) fn id(&self, words: &str) -> String {
        format!("{}-{words}", self.tag)
    }

    /// Makes an image of the program, imports and unpacks it.
    ///
    /// # Errors
    /// When the program cannot be read or `ctr` fails.
    pub(crate) async fn image_of(&self, program: &Path, form: Form) -> Result<Image> {
        self.import(program, form, NAMESPACE).await
    }

    /// The same for pods, as a file.
    ///
    /// # Errors
    /// Those of [`Containerd::image_of`].
    pub(crate) async fn pod_image(&self, program: &Path) -> Result<Image> {
        self.import(program, Form::File, POD_NAMESPACE).await
    }

    async fn import(&self, program: &Path, form: Form, namespace: &str) -> Result<Image> {
        let image = Image::pack(program, form, self.directory())?;
        let output = Command::new(&self.ctr)
            .args(["--namespace", namespace, "--address"])
            .arg(self.directory().join("c.sock"))
            .args(["images", "import", "--local", "--platform", &image.platform])
            .arg(format!("--no-unpack={}", form == Form::WasmLayer))
            .arg(&image.archive)
            .output()
            .await?;
        let said = String::from_utf8_lossy(&output.stderr);
        ensure!(output.status.success(), "cannot import the image `{}`: {said}", image.name);
        Ok(image)
    }

    /// The last lines of its log.
    pub(crate) fn log_tail(&self) -> String {
        let log = std::fs::read_to_string(self.directory().join("containerd.log")).unwrap_or_default();
        let lines: Vec<_> = log.lines().collect();
        lines[lines.len().saturating_sub(15)..].join("\n")
    }

    /// Ends all containers, containerd itself, and what is left of either.
    ///
    /// # Errors
    /// When something cannot be ended.
    pub(crate) async fn stop(mut self) -> Result<()> {
        self.end_tasks().await;
        let pid = Pid::from_raw(i32::try_from(self.pid()?)?);
        kill(pid, Signal::SIGTERM)?;
        if tokio::time::timeout(PATIENCE, self.process.wait()).await.is_err() {
            self.process.kill().await?;
        }
        processes::kill_all(&self.tag);
        self.group.remove().await;
        unmount_below(self.directory());
        self.directory.close().context("cannot remove the temporary directory")
    }

    /// Best effort: what fails here is killed afterwards.
    async fn end_tasks(&self) {
        let tasks = self.client.tasks().list(request(ListTasksRequest::default())).await;
        for task in tasks.map(|answer| answer.into_inner().tasks).unwrap_or_default() {
            self.end_task(task.id).await.unwrap_or_default();
        }
        let containers = self.client.containers().list(request(ListContainersRequest::default())).await;
        for container in containers.map(|answer| answer.into_inner().containers).unwrap_or_default() {
            container::forget(self, &container.id).await.unwrap_or_default();
        }
    }

    async fn end_task(&self, container_id: String) -> Result<(), tonic::Status> {
        let mut tasks = self.client.tasks();
        let kill = KillRequest { container_id: container_id.clone(), signal: 9, all: true, ..KillRequest::default() };
        tasks.kill(request(kill)).await?;
        tasks.wait(request(WaitRequest { container_id: container_id.clone(), ..WaitRequest::default() })).await?;
        tasks.delete(request(DeleteTaskRequest { container_id })).await?;
        Ok(())
    }
}

fn pid_of(containerd: &Child) -> Result<u32> {
    containerd.id().context("containerd has ended by itself")
}

/// A request in the benchmark's namespace.
pub(crate) fn request<T>(message: T) -> Request<T> {
    let mut request = Request::new(message);
    request.metadata_mut().insert("containerd-namespace", MetadataValue::from_static(NAMESPACE));
    request
}

fn configuration(home: &Path, serves: Serves) -> String {
    let home = home.display();
    let served = match serves {
        Serves::Containers => "disabled_plugins = ['io.containerd.grpc.v1.cri', 'io.containerd.cri.v1.runtime', \
             'io.containerd.cri.v1.images']\n"
            .into(),
        Serves::Pods => {
            let cri = "plugins.'io.containerd.cri.v1.runtime'";
            format!(
                "[plugins.'io.containerd.nri.v1.nri']\ndisable = true\n\
                 [plugins.'io.containerd.cri.v1.images'.pinned_images]\nsandbox = '{PAUSE}'\n\
                 [{cri}]\nrestrict_oom_score_adj = true\n\
                 [{cri}.containerd.runtimes.runc]\nruntime_type = 'io.containerd.runc.v2'\n\
                 [{cri}.containerd.runtimes.runc.options]\nRoot = '{home}/runc'\n\
                 [{cri}.containerd.runtimes.skiff]\nruntime_type = 'io.containerd.skiff.v1'\n\
                 [{cri}.containerd.runtimes.skiff.options]\nRoot = '{home}/skiff'\nCacheDir = '{home}/cache'\n"
            )
        }
    };
    format!(
        "version = 3\nroot = '{home}/root'\nstate = '{home}/state'\n{served}\
         [grpc]\naddress = '{home}/c.sock'\n[ttrpc]\naddress = '{home}/c.sock.ttrpc'\n[debug]\nlevel = 'warn'\n"
    )
}

/// The shims first, then the inherited path, which has `mount` and the like.
fn search_path(programs: &Programs) -> Result<std::ffi::OsString> {
    let own = [&programs.skiff, &programs.baseline, &programs.tools];
    let inherited = std::env::var_os("PATH").unwrap_or_default();
    let all = own.into_iter().cloned().chain(std::env::split_paths(&inherited));
    std::env::join_paths(all).context("a directory of the programs has a colon in its name")
}

async fn answering(socket: &Path) -> Result<Client> {
    let answer = async {
        loop {
            if let Ok(client) = Client::from_path(socket).await
                && client.version().version(()).await.is_ok()
            {
                return client;
            }
            tokio::time::sleep(OFTEN).await;
        }
    };
    Ok(tokio::time::timeout(PATIENCE, answer).await?)
}

/// Unmounts what a failed container may have left, innermost first.
fn unmount_below(directory: &Path) {
    let mounts = std::fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
    let points = mounts.lines().filter_map(|line| line.split(' ').nth(4)).map(Path::new);
    for point in points.filter(|point| point.starts_with(directory)).collect::<Vec<_>>().into_iter().rev() {
        umount2(point, MntFlags::MNT_DETACH).unwrap_or_default();
    }
}
