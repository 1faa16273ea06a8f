//! A container of the pod: its life after it was made.

use std::collections::HashMap;
use std::fs::File;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::SystemTime;

use containerd_shim::protos::events::task::{TaskCheckpointed, TaskExit, TaskOOM, TaskPaused, TaskResumed, TaskStart};
use containerd_shim::protos::shim::oci::CheckpointOptions;
use oci_spec::runtime::LinuxResources;
use protobuf::well_known_types::any::Any;
use skiff_protocol::{Figures, exit_code_of_signal};

use crate::containerd::publisher::Publisher;
use crate::containerd::time::timestamp;
use crate::error::{Context, Error, Kind, Result};
use crate::host::cgroup::Cgroup;
use crate::host::metrics;
use crate::host::namespaces::Holder;
use crate::host::process::Process;
use crate::host::rootfs::Rootfs;
use crate::host::runtime::Launcher;
use crate::host::stdio::{Owner, say};
use crate::pod::exec::attachment_for;
use crate::pod::guest::Guest;
use crate::pod::state::{Exit, State};
use crate::pod::{Deleted, Member};

/// A container of the pod.
pub(crate) struct Container {
    pub(crate) id: String,
    pub(crate) bundle: PathBuf,
    /// For whom programs that take the container's output do so.
    pub(super) owner: Owner,
    pub(crate) init: Arc<Member>,
    execs: Mutex<HashMap<String, Arc<Member>>>,
    pub(super) body: Body,
    /// The pod ends with it.
    pub(super) is_pods_sandbox: bool,
    /// Held while a change of state is made and its event published: the exit event waits for it.
    // Invariant: start < exit of a process, because an exit is published only under this lock.
    pub(super) changing: tokio::sync::Mutex<()>,
    pub(super) events: Publisher,
}

/// What a container is made of.
pub(crate) enum Body {
    /// The pod's sandbox: the shim's main thread holds its namespaces.
    Sandbox(Option<Cgroup>),
    /// A container whose program the kernel runs.
    Native(Box<Made>),
    /// A container whose program the engine runs; the guest is handed over by Start.
    Wasm(Box<Made>, Wasm),
}

/// What a wasm container has besides.
pub(crate) struct Wasm {
    pub(crate) guest: tokio::sync::Mutex<Option<Box<Guest>>>,
    /// Its stderr, for what the shim has to say of its end. Held until then: the output ends with its last writer.
    pub(crate) stderr: Mutex<Option<File>>,
    /// What its engine says of the guest's memory.
    pub(crate) account: Arc<File>,
}

/// A container that the OCI runtime made.
pub(crate) struct Made {
    pub(crate) launcher: Box<dyn Launcher>,
    pub(crate) rootfs: Mutex<Option<Rootfs>>,
    pub(crate) cgroup: Cgroup,
    /// How many OOM kills the cgroup above had counted when the container was made.
    pub(crate) oom_kills_before: Option<u64>,
    /// The kernel ends all processes of the container with the first one.
    pub(crate) own_pids: bool,
    /// What Start makes the process from, if it is restored.
    pub(crate) checkpoint: Option<Checkpoint>,
}

/// A checkpoint that a container is restored from.
pub(crate) struct Checkpoint {
    /// The directory that it lies in.
    pub(crate) image: PathBuf,
    /// The bundle for the OCI runtime.
    pub(crate) bundle: PathBuf,
}

impl Body {
    pub(super) fn made(&self) -> Option<&Made> {
        match self {
            Body::Sandbox(_) => None,
            Body::Native(made) | Body::Wasm(made, _) => Some(made),
        }
    }

    fn cgroup(&self) -> Option<&Cgroup> {
        match self {
            Body::Sandbox(cgroup) => cgroup.as_ref(),
            Body::Native(made) | Body::Wasm(made, _) => Some(&made.cgroup),
        }
    }
}

impl Made {
    /// Whether the kernel killed a process of the container for want of memory; `unasked`: one was killed, and not by
    /// the shim.
    fn is_oom_killed(&self, unasked: bool) -> bool {
        match self.cgroup.oom_kills() {
            Some(count) => count > 0,
            // systemd removes the cgroup of a scope that has ended, maybe before this.
            None => unasked && self.cgroup.oom_kills_above() > self.oom_kills_before,
        }
    }
}

impl Container {
    pub(super) fn new(
        bundle: PathBuf,
        owner: Owner,
        init: Member,
        body: Body,
        events: Publisher,
        is_pods_sandbox: bool,
    ) -> Self {
        Self {
            id: owner.container.clone(),
            bundle,
            owner,
            init: Arc::new(init),
            execs: Mutex::default(),
            body,
            is_pods_sandbox,
            changing: tokio::sync::Mutex::new(()),
            events,
        }
    }

    /// The process `exec_id`; the first one when it is empty.
    pub(crate) fn member(&self, exec_id: &str) -> Result<Arc<Member>> {
        if exec_id.is_empty() {
            return Ok(self.init.clone());
        }
        let found = self.execs().get(exec_id).cloned();
        found.ok_or_else(|| {
            Error::new(Kind::NotFound, format!("process `{exec_id}` does not exist in container `{}`", self.id))
        })
    }

    pub(super) fn execs(&self) -> MutexGuard<'_, HashMap<String, Arc<Member>>> {
        self.execs.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Starts the first process.
    pub(crate) async fn start(self: &Arc<Self>) -> Result<i32> {
        let _changing = self.changing.lock().await;
        self.init.state().check_start()?;
        match &self.body {
            Body::Sandbox(_) => {}
            Body::Native(made) => match &made.checkpoint {
                Some(checkpoint) => self.restore(made, checkpoint).await?,
                None => made.launcher.start().await?,
            },
            Body::Wasm(made, wasm) => {
                let guest = wasm.guest.lock().await.take();
                let guest = guest.ok_or_else(|| Error::new(Kind::Conflict, "the guest was started before"))?;
                let process = self.init.process();
                let process = process.ok_or_else(|| Error::new(Kind::Conflict, "the engine has no process"))?;
                made.launcher.start().await?;
                guest.wait_until_ready(process).await?;
            }
        }
        self.init.set_state(State::Running);
        let pid = self.init.pid();
        self.events.publish(TaskStart { container_id: self.id.clone(), pid: unsigned(pid), ..TaskStart::default() });
        Ok(pid)
    }

    async fn restore(self: &Arc<Self>, made: &Made, from: &Checkpoint) -> Result<()> {
        let (attachment, pending) = attachment_for(&self.init.stdio, &self.owner).await?;
        let pid = made.launcher.restore(&from.bundle, attachment, &from.image).await?;
        let process = Process::of_child(pid).doing(|| "cannot watch the container's process".into())?;
        self.init.attach(process, pending.complete(&self.init.stdio).await?);
        self.supervise(self.init.clone());
        Ok(())
    }

    /// Writes a checkpoint of a native container into the directory `image`.
    pub(crate) async fn checkpoint(&self, image: &Path, options: &CheckpointOptions) -> Result<()> {
        let made = match &self.body {
            Body::Native(made) => made,
            Body::Wasm(..) => return Err(self.unsupported("checkpoint", "a wasm container")),
            Body::Sandbox(_) => return Err(self.unsupported("checkpoint", "the sandbox of a pod")),
        };
        let _changing = self.changing.lock().await;
        self.init.state().check_checkpoint()?;
        made.launcher.checkpoint(image, &self.init.stdio, options).await?;
        let checkpoint = image.to_string_lossy().into_owned();
        self.events.publish(TaskCheckpointed {
            container_id: self.id.clone(),
            checkpoint,
            ..TaskCheckpointed::default()
        });
        Ok(())
    }

    /// Owns the waiting for `member`: publishes its exit, once.
    pub(super) fn supervise(self: &Arc<Self>, member: Arc<Member>) {
        let container = self.clone();
        tokio::spawn(async move {
            let exit = member.reap().await;
            let _changing = container.changing.lock().await;
            container.ended(&member, exit).await;
        });
    }

    pub(super) async fn ended(&self, member: &Member, exit: Exit) {
        if member.exec_id.is_empty()
            && let Some(made) = self.body.made()
        {
            if !made.own_pids
                && let Err(error) = self.signal_all(made, libc::SIGKILL).await
            {
                log::warn!("{}", crate::error::chain(&error));
            }
            let is_killed = made.is_oom_killed(exit.code == exit_code_of_signal(libc::SIGKILL) && !member.is_killed());
            let guest = self.figures();
            if let Body::Wasm(_, wasm) = &self.body
                && let Some(stderr) = wasm.stderr.lock().unwrap_or_else(PoisonError::into_inner).take()
                && let Some(guest) = guest.filter(|_| is_killed)
            {
                tell_kill(&made.cgroup, &guest, &stderr);
            }
            if is_killed || guest.is_some_and(|guest| guest.ran_out) {
                self.events.publish(TaskOOM { container_id: self.id.clone(), ..TaskOOM::default() });
            }
        }
        member.set_state(State::Stopped(exit));
        self.events.publish(TaskExit {
            container_id: self.id.clone(),
            id: if member.exec_id.is_empty() { self.id.clone() } else { member.exec_id.clone() },
            pid: unsigned(member.pid()),
            exit_status: unsigned(exit.code),
            exited_at: Some(timestamp(exit.at)).into(),
            ..TaskExit::default()
        });
    }

    /// What the engine of a wasm container says of its guest's memory.
    fn figures(&self) -> Option<Figures> {
        let Body::Wasm(_, wasm) = &self.body else { return None };
        Figures::read(&wasm.account)
            .inspect_err(|error| log::warn!("cannot read the account of container `{}`: {error}", self.id))
            .ok()
    }

    /// Stops every process of the container where it is.
    pub(crate) async fn pause(&self) -> Result<()> {
        let _changing = self.changing.lock().await;
        self.init.state().check_pause()?;
        self.made("pause")?.launcher.pause().await?;
        self.init.set_state(State::Paused);
        self.events.publish(TaskPaused { container_id: self.id.clone(), ..TaskPaused::default() });
        Ok(())
    }

    /// Lets them go on.
    pub(crate) async fn resume(&self) -> Result<()> {
        let _changing = self.changing.lock().await;
        self.init.state().check_resume()?;
        self.made("resume")?.launcher.resume().await?;
        self.init.set_state(State::Running);
        self.events.publish(TaskResumed { container_id: self.id.clone(), ..TaskResumed::default() });
        Ok(())
    }

    /// Sets the size of a process's terminal, in characters.
    pub(crate) fn resize(&self, member: &Member, width: u16, height: u16) -> Result<()> {
        match &self.body {
            Body::Native(_) => member.resize(width, height),
            Body::Wasm(..) => Err(self.unsupported("resize of a terminal", "a wasm container")),
            Body::Sandbox(_) => Err(self.unsupported("resize of a terminal", "the sandbox of a pod")),
        }
    }

    /// Sets the container's cgroup limits.
    pub(crate) async fn update(&self, mut resources: LinuxResources) -> Result<()> {
        if let Body::Wasm(..) = self.body
            && let Some(memory) = resources.memory_mut()
        {
            // The kernel of cgroup v2 would kill the guest to get below a limit.
            memory.set_check_before_update(Some(true));
        }
        self.made("update")?.launcher.update(&resources).await
    }

    /// Every process of the container with the exec id that it was started under.
    pub(crate) fn pids(&self) -> Result<Vec<(i32, String)>> {
        // containerd asks after its own restart, and takes a container without processes for one whose shim leaked.
        self.init.state().check_pids()?;
        let Some(made) = self.body.made() else { return Ok(vec![(self.init.pid(), String::new())]) };
        let pids = made.cgroup.pids().doing(|| format!("cannot list the processes of container `{}`", self.id))?;
        let execs = self.execs();
        let exec_of = |pid| execs.values().find(|member| member.pid() == pid).map(|member| member.exec_id.clone());
        Ok(pids.into_iter().map(|pid| (pid, exec_of(pid).unwrap_or_default())).collect())
    }

    /// The cgroup's figures, as containerd's metrics of the node's cgroup version.
    pub(crate) fn stats(&self) -> Result<Any> {
        let cgroup = self.body.cgroup().ok_or_else(|| self.unsupported("stats", "a sandbox without a cgroup"))?;
        metrics::collect(cgroup).doing(|| format!("cannot read the metrics of container `{}`", self.id))
    }

    /// Removes what is left of the container. The first process must have ended or never have been started.
    pub(super) async fn delete(&self, holder: &Holder) -> Result<Deleted> {
        if self.init.state() == State::Created && self.init.pid() == 0 {
            let _changing = self.changing.lock().await;
            self.ended(&self.init, Exit { code: exit_code_of_signal(libc::SIGKILL), at: SystemTime::now() }).await;
        } else if self.init.state() == State::Created {
            match self.kill(&self.init, libc::SIGKILL, false).await {
                Err(error) if error.kind() != Kind::NotFound => return Err(error),
                _ended_or_about_to => {}
            }
        }
        let exit = self.init.wait().await?;
        let _changing = self.changing.lock().await;
        match &self.body {
            Body::Sandbox(cgroup) => {
                holder.leave().await.doing(|| "cannot leave the namespaces of the pod".into())?;
                if let Some(cgroup) = cgroup {
                    remove_cgroup(cgroup).await?;
                }
            }
            Body::Native(made) | Body::Wasm(made, _) => {
                made.launcher.delete().await?;
                self.init.detach().await;
                let rootfs = made.rootfs.lock().unwrap_or_else(PoisonError::into_inner).take();
                tokio::task::spawn_blocking(move || drop(rootfs)).await.doing(|| "cannot unmount".into())?;
            }
        }
        Ok(Deleted { pid: self.init.pid(), exit })
    }

    fn made(&self, verb: &str) -> Result<&Made> {
        self.body.made().ok_or_else(|| self.unsupported(verb, "the sandbox of a pod"))
    }

    pub(super) fn unsupported(&self, verb: &str, of: &str) -> Error {
        Error::new(Kind::Unsupported, format!("{verb} is not implemented for {of} (container `{}`)", self.id))
    }
}

/// Says on a guest's stderr why it is gone: the kernel itself tells only the node.
fn tell_kill(cgroup: &Cgroup, guest: &Figures, stderr: &File) {
    let limit = match (cgroup.exists(), cgroup.memory_limit_bytes(), guest.limit_bytes) {
        (true, Some(bytes), _) => format!("its memory limit of {bytes} bytes"),
        (false, _, Some(bytes)) => format!("its memory limit, which was {bytes} bytes when the guest last grew"),
        _ => "the node's limit".into(),
    };
    let taken = guest.linear_memory_bytes;
    let line = format!("skiff: killed by the kernel at {limit}; the guest's memories and tables took {taken} bytes\n");
    if let Err(error) = say(stderr, &line) {
        log::warn!("cannot write to the container's stderr: {error}: {line}");
    }
}

/// Removes the cgroup of a sandbox; the kernel may need a moment to see that it is empty.
pub(super) async fn remove_cgroup(cgroup: &Cgroup) -> Result<()> {
    let cgroup = cgroup.clone();
    let removed = tokio::task::spawn_blocking(move || cgroup.remove()).await;
    removed.map_err(std::io::Error::other).flatten().doing(|| "cannot remove the cgroup of the sandbox".into())
}

/// A pid or an exit code for the wire, which knows no negative ones.
pub(crate) fn unsigned(number: i32) -> u32 {
    u32::try_from(number).unwrap_or_default()
}
