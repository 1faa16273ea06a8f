//! Further processes in containers.

use std::sync::Arc;
use std::time::SystemTime;

use oci_spec::runtime::Process as ProcessSpec;

use crate::error::{Error, Kind, Result};
use crate::events::Exit;
use crate::pod::container::{Container, Deleted};
use crate::pod::native::Connected;
use crate::pod::process::Process;
use crate::pod::state::State;
use crate::request::StdioPaths;

impl Container {
    /// Takes down the description of a further process.
    pub(crate) fn add_exec(&self, exec_id: &str, stdio: StdioPaths, spec: ProcessSpec) -> Result<()> {
        self.native("exec")?;
        let mut execs = self.execs();
        if execs.contains_key(exec_id) {
            return Err(Error::new(Kind::Exists, format!("process `{exec_id}` already exists")));
        }
        execs.insert(exec_id.into(), Arc::new(Process::described(exec_id, stdio, spec)));
        drop(execs);
        self.events.exec_added(&self.id, exec_id);
        Ok(())
    }

    /// Starts the process that was described as `exec_id`.
    pub(crate) async fn start_exec(self: &Arc<Self>, exec_id: &str) -> Result<i32> {
        let native = self.native("exec")?;
        let process = self.process(exec_id)?;
        let _changing = self.changing.lock().await;
        self.init.state().check_exec()?;
        process.state().check_start()?;
        let spec = process
            .spec()
            .ok_or_else(|| Error::new(Kind::Conflict, format!("process `{exec_id}` has no specification")))?;
        match native.exec(&process, spec).await {
            Ok(Connected { child, attached }) => process.attach(child, attached),
            Err(error) => {
                let exit = Exit { code: skiff_protocol::EXIT_ENGINE, at: SystemTime::now() };
                process.set_state(State::Stopped(exit));
                return Err(error);
            }
        }
        process.set_state(State::Running);
        let pid = process.pid();
        self.events.exec_started(&self.id, exec_id, pid);
        self.supervise(process);
        Ok(pid)
    }

    /// Forgets a further process that has ended or was never started.
    pub(super) async fn delete_exec(&self, exec_id: &str, process: &Process) -> Result<Deleted> {
        let never = Exit { code: 0, at: SystemTime::now() };
        process.detach().await;
        self.execs().remove(exec_id);
        Ok(Deleted { pid: process.pid(), exit: process.state().exit().unwrap_or(never) })
    }
}
