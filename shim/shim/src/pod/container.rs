//! A container of the pod: its life after it was made. Each verb takes the lock, checks the state, lets the container's kind do
//! the work, and reports the event.

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::SystemTime;

use oci_spec::runtime::LinuxResources;
use skiff_linux::cgroup::Cgroup;
use skiff_protocol::exit_code_of_signal;

use crate::error::{self, Context, Error, Result, chain};
use crate::events::{Events, Exit};
use crate::pod::kind::Kind;
use crate::pod::launched::{Created, LaunchedContainer};
use crate::pod::native::Native;
use crate::pod::places::Place;
use crate::pod::process::Process;
use crate::pod::sandbox::Sandbox;
use crate::pod::state::State;
use crate::request::{CheckpointOptions, CreateRequest};

/// A container of the pod.
pub(crate) struct Container {
    pub(crate) id: String,
    pub(crate) bundle: PathBuf,
    pub(crate) init: Arc<Process>,
    pub(super) kind: Kind,
    /// The pod ends with it.
    pub(super) is_pods_sandbox: bool,
    execs: Mutex<HashMap<String, Arc<Process>>>,
    /// Held while a change of state is made and its event published: the exit event of the first process waits for it. Further
    /// processes are made and end side by side.
    // Invariant: start < exit of a process, because an exit is published only under this lock.
    pub(super) changing: tokio::sync::RwLock<()>,
    pub(super) events: Arc<dyn Events>,
}

/// A process that was deleted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Deleted {
    pub(crate) pid: i32,
    pub(crate) exit: Exit,
}

impl Container {
    pub(super) fn new(
        request: &CreateRequest,
        created: Created<Kind>,
        events: Arc<dyn Events>,
        is_pods_sandbox: bool,
    ) -> Self {
        Self {
            id: request.id.clone(),
            bundle: request.bundle.clone(),
            init: Arc::new(created.first),
            kind: created.kind,
            is_pods_sandbox,
            execs: Mutex::default(),
            changing: tokio::sync::RwLock::new(()),
            events,
        }
    }

    /// The process `exec_id`; the first one when it is empty.
    pub(crate) fn process(&self, exec_id: &str) -> Result<Arc<Process>> {
        if exec_id.is_empty() {
            return Ok(self.init.clone());
        }
        let found = self.execs().get(exec_id).cloned();
        found.ok_or_else(|| {
            Error::new(error::Kind::NotFound, format!("process `{exec_id}` does not exist in container `{}`", self.id))
        })
    }

    pub(super) fn execs(&self) -> MutexGuard<'_, HashMap<String, Arc<Process>>> {
        self.execs.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Starts the first process.
    pub(crate) async fn start(self: &Arc<Self>) -> Result<i32> {
        let _changing = self.changing.write().await;
        self.init.state().check_start()?;
        let is_supervised = self.init.child().is_some();
        self.kind.start(&self.init).await?;
        if !is_supervised {
            self.supervise(self.init.clone(), None);
        }
        self.init.set_state(State::Running);
        let pid = self.init.pid();
        self.events.started(&self.id, pid);
        Ok(pid)
    }

    /// Owns the waiting for `process`: publishes its exit, once, and gives back its `place`. Does nothing for one that is not a
    /// child of the shim.
    pub(super) fn supervise(self: &Arc<Self>, process: Arc<Process>, place: Option<Place>) {
        if process.child().is_none() {
            return;
        }
        let container = self.clone();
        tokio::spawn(async move {
            let exit = process.reap().await;
            drop(place);
            if process.exec_id.is_empty() {
                let _changing = container.changing.write().await;
                container.ended(&process, exit).await;
            } else {
                let _changing = container.changing.read().await;
                container.report_exit(&process, exit);
            }
        });
    }

    /// Notes the end of the first process, which is `process`; under the lock.
    async fn ended(&self, process: &Process, exit: Exit) {
        if self.kind.ended(process, exit).await {
            self.events.out_of_memory(&self.id);
        }
        self.report_exit(process, exit);
    }

    fn report_exit(&self, process: &Process, exit: Exit) {
        process.set_state(State::Stopped(exit));
        self.events.exited(&self.id, &process.exec_id, process.pid(), exit);
    }

    /// Sends `signal` to a process, or to all of the container.
    pub(crate) async fn kill(&self, process: &Process, signal: i32, all: bool) -> Result<()> {
        let Some(launched) = self.kind.launched() else { return self.stop_sandbox(signal).await };
        if all && process.exec_id.is_empty() {
            // The first process must not see the others die and end by itself.
            if signal == libc::SIGKILL {
                process.signal(signal)?;
            }
            launched.signal_all(signal).await?;
        } else {
            process.signal(signal)?;
        }
        // A frozen process cannot die; SIGKILL must not wait for a resume.
        if signal == libc::SIGKILL && process.state() == State::Paused {
            launched.launcher.resume().await?;
        }
        Ok(())
    }

    async fn stop_sandbox(&self, signal: i32) -> Result<()> {
        let _changing = self.changing.write().await;
        if self.init.state().exit().is_some() {
            return Err(Error::new(error::Kind::NotFound, "the process has already ended"));
        }
        if let Some(code) = Sandbox::exit_code(signal) {
            self.ended(&self.init, Exit { code, at: SystemTime::now() }).await;
        }
        Ok(())
    }

    /// Ends the sandbox of a pod that has lost its shared pid namespace, unless it has ended already.
    pub(super) async fn lost_its_pids(&self) {
        match self.kill(&self.init, libc::SIGKILL, false).await {
            Err(error) if error.kind() != error::Kind::NotFound => log::error!("{}", chain(&error)),
            _ended => {}
        }
    }

    /// Stops every process of the container where it is.
    pub(crate) async fn pause(&self) -> Result<()> {
        let _changing = self.changing.write().await;
        self.init.state().check_pause()?;
        self.launched("pause")?.launcher.pause().await?;
        self.init.set_state(State::Paused);
        self.events.paused(&self.id);
        Ok(())
    }

    /// Lets them go on.
    pub(crate) async fn resume(&self) -> Result<()> {
        let _changing = self.changing.write().await;
        self.init.state().check_resume()?;
        self.launched("resume")?.launcher.resume().await?;
        self.init.set_state(State::Running);
        self.events.resumed(&self.id);
        Ok(())
    }

    /// Writes a checkpoint of a native container into the directory `image`.
    pub(crate) async fn checkpoint(&self, image: &Path, options: &CheckpointOptions) -> Result<()> {
        let native = self.native("checkpoint")?;
        let _changing = self.changing.write().await;
        self.init.state().check_checkpoint()?;
        native.checkpoint(&self.init, image, options).await?;
        self.events.checkpointed(&self.id, image);
        Ok(())
    }

    /// Sets the size of a process's terminal, in characters.
    pub(crate) fn resize(&self, process: &Process, width: u16, height: u16) -> Result<()> {
        self.launched("resize of a terminal")?;
        process.resize(width, height)
    }

    /// Sets the container's cgroup limits.
    pub(crate) async fn update(&self, resources: LinuxResources) -> Result<()> {
        self.kind.update(resources).await.unwrap_or_else(|| Err(self.unsupported("update")))
    }

    /// Every process of the container with the exec id that it was started under.
    pub(crate) fn pids(&self) -> Result<Vec<(i32, String)>> {
        // containerd asks after its own restart, and takes a container without processes for one whose shim leaked.
        self.init.state().check_pids()?;
        let Some(launched) = self.kind.launched() else { return Ok(vec![(self.init.pid(), String::new())]) };
        let pids = launched.cgroup.pids().doing(|| format!("cannot list the processes of container `{}`", self.id))?;
        let execs = self.execs();
        let exec_of = |pid| execs.values().find(|process| process.pid() == pid).map(|process| process.exec_id.clone());
        Ok(pids.into_iter().map(|pid| (pid, exec_of(pid).unwrap_or_default())).collect())
    }

    /// The cgroup whose figures are those of the container.
    pub(crate) fn cgroup(&self) -> Result<Cgroup> {
        self.kind.cgroup().ok_or_else(|| unsupported("stats", "a sandbox without a cgroup", &self.id))
    }

    /// Removes what is left of the container. The first process must have ended or never have been started.
    pub(super) async fn delete(&self) -> Result<Deleted> {
        self.end_unstarted().await?;
        let exit = self.init.wait().await?;
        let _changing = self.changing.write().await;
        self.kind.delete(&self.init).await?;
        Ok(Deleted { pid: self.init.pid(), exit })
    }

    /// Ends a first process that was never started.
    async fn end_unstarted(&self) -> Result<()> {
        if self.init.state() != State::Created {
            return Ok(());
        }
        if self.init.pid() == 0 {
            let _changing = self.changing.write().await;
            self.ended(&self.init, Exit { code: exit_code_of_signal(libc::SIGKILL), at: SystemTime::now() }).await;
            return Ok(());
        }
        match self.kill(&self.init, libc::SIGKILL, false).await {
            Err(error) if error.kind() != error::Kind::NotFound => Err(error),
            _ended_or_about_to => Ok(()),
        }
    }

    pub(super) fn launched(&self, verb: &str) -> Result<&LaunchedContainer> {
        self.kind.launched().ok_or_else(|| self.unsupported(verb))
    }

    fn native(&self, verb: &str) -> Result<&Native> {
        self.kind.native().ok_or_else(|| self.unsupported(verb))
    }

    fn unsupported(&self, verb: &str) -> Error {
        unsupported(verb, self.kind.name(), &self.id)
    }
}

fn unsupported(verb: &str, of: &str, id: &str) -> Error {
    Error::new(error::Kind::Unsupported, format!("{verb} is not implemented for {of} (container `{id}`)"))
}
