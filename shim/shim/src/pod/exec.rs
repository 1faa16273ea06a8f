//! Further processes in containers.

use std::sync::Arc;
use std::time::SystemTime;

use oci_spec::runtime::Process as ProcessSpec;
use skiff_protocol::{EXIT_ENGINE, exit_code_of_signal};
use tokio::sync::RwLockReadGuard;

use crate::error::{Error, Kind, Result};
use crate::events::Exit;
use crate::host::process::Child;
use crate::pod::container::{Container, Deleted};
use crate::pod::kind::Found;
use crate::pod::launched::Connected;
use crate::pod::process::Process;
use crate::pod::state::State;
use crate::pod::wasm::Pending;
use crate::request::StdioPaths;

impl Container {
    /// Takes down the description of a further process.
    pub(crate) fn add_exec(&self, exec_id: &str, stdio: StdioPaths, spec: ProcessSpec) -> Result<()> {
        self.launched("exec")?;
        let mut execs = self.execs();
        if execs.contains_key(exec_id) {
            return Err(Error::new(Kind::Exists, format!("process `{exec_id}` already exists")));
        }
        execs.insert(exec_id.into(), Arc::new(Process::described(exec_id, stdio, spec)));
        drop(execs);
        self.events.exec_added(&self.id, exec_id);
        Ok(())
    }

    /// Starts the process that was described as `exec_id`. One that cannot be started, or is killed or deleted meanwhile, has
    /// ended.
    pub(crate) async fn start_exec(self: &Arc<Self>, exec_id: &str) -> Result<i32> {
        self.launched("exec")?;
        let process = self.process(exec_id)?;
        self.init.state().check_exec()?;
        process.begin()?;
        let started = self.start_further(&process).await;
        if started.is_err() {
            let code = if process.unwanted.is_cancelled() { exit_code_of_signal(libc::SIGKILL) } else { EXIT_ENGINE };
            process.set_state(State::Stopped(Exit { code, at: SystemTime::now() }));
        }
        started
    }

    async fn start_further(self: &Arc<Self>, process: &Arc<Process>) -> Result<i32> {
        let spec = process
            .spec()
            .ok_or_else(|| Error::new(Kind::Conflict, format!("process `{}` has no specification", process.exec_id)))?;
        let found = self.find(process, spec).await?;
        let (made, pending) = {
            let _changing = self.changing.read().await;
            self.init.state().check_exec()?;
            self.kind.exec(process, spec, found).await?
        };
        let Connected { child, attached, place } = made;
        let _changing = match self.come_to_run(process, &child, pending).await {
            Ok(changing) => changing,
            Err(error) => {
                child.end().await;
                return Err(error);
            }
        };
        // Invariant: from here to Running nothing is awaited, so on the shim's one thread no Kill or Delete comes in between.
        process.attach(child, attached);
        process.set_state(State::Running);
        let pid = process.pid();
        self.events.exec_started(&self.id, &process.exec_id, pid);
        self.supervise(process.clone(), place);
        Ok(pid)
    }

    /// What a further process runs. Other changes of the container do not wait for it, and it ends with the container.
    async fn find(&self, process: &Process, spec: &ProcessSpec) -> Result<Found> {
        let unwanted = process.unwanted.child_token();
        let _unwanted_when_dropped = unwanted.clone().drop_guard();
        tokio::select! {
            found = self.kind.find(&self.init, spec, &unwanted) => found,
            () = process.unwanted.cancelled() => Err(self.not_wanted(process)),
            _ended = self.init.wait() => Err(stopped()),
        }
    }

    /// Waits until `process` has come to run what it is for, if that is `pending`, and takes the lock under which it is shown to
    /// others. The lock is not held before: an engine may be kept from answering by other processes of its container.
    async fn come_to_run(
        &self,
        process: &Process,
        child: &Child,
        pending: Option<Pending>,
    ) -> Result<RwLockReadGuard<'_, ()>> {
        if let Some(pending) = pending {
            tokio::select! {
                ready = pending.wait_until_ready(child) => ready?,
                () = process.unwanted.cancelled() => return Err(self.not_wanted(process)),
                () = self.first_ended() => return Err(stopped()),
            }
        }
        let changing = self.changing.read().await;
        if process.unwanted.is_cancelled() {
            return Err(self.not_wanted(process));
        }
        if self.init.state().exit().is_some() { Err(stopped()) } else { Ok(changing) }
    }

    /// Waits for the end of the first process itself; its exit is published later.
    async fn first_ended(&self) {
        match self.init.child() {
            Some(child) => child.ended().await,
            None => std::future::pending().await,
        }
    }

    fn not_wanted(&self, process: &Process) -> Error {
        let (id, exec_id) = (&self.id, &process.exec_id);
        Error::new(
            Kind::Conflict,
            format!("process `{exec_id}` of container `{id}` was ended while it was being started"),
        )
    }

    /// Forgets a further process that has ended or was never started; one that is being started is ended first.
    pub(super) async fn delete_exec(&self, exec_id: &str, process: &Process) -> Result<Deleted> {
        if process.state() == State::Starting {
            process.unwanted.cancel();
            // It may just have come to run.
            process.wait_until_made().await?;
            process.state().check_delete()?;
        }
        let never = Exit { code: 0, at: SystemTime::now() };
        process.detach().await;
        self.execs().remove(exec_id);
        Ok(Deleted { pid: process.pid(), exit: process.state().exit().unwrap_or(never) })
    }
}

fn stopped() -> Error {
    Error::new(Kind::Conflict, "cannot start a process in a container that is stopped")
}
