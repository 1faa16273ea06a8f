//! Further processes in native containers.

use std::sync::Arc;

use containerd_shim::protos::events::task::{TaskDelete, TaskExecAdded, TaskExecStarted};
use oci_spec::runtime::Process as ProcessSpec;

use crate::error::{Context, Error, Kind, Result};
use crate::host::process::Process;
use crate::host::runtime::Attachment;
use crate::host::stdio::{self, Owner, StdioPaths};
use crate::pod::container::{Body, Container, Made, unsigned};
use crate::pod::member::Attached;
use crate::pod::state::{Exit, State};
use crate::pod::terminal::{self, Terminal};
use crate::pod::{Deleted, Member};

impl Container {
    /// Takes down the description of a further process.
    pub(crate) fn add_exec(&self, exec_id: &str, stdio: StdioPaths, process: ProcessSpec) -> Result<()> {
        self.native("exec")?;
        let mut execs = self.execs();
        if execs.contains_key(exec_id) {
            return Err(Error::new(Kind::Exists, format!("process `{exec_id}` exists already")));
        }
        execs.insert(exec_id.into(), Arc::new(Member::described(exec_id, stdio, process)));
        drop(execs);
        self.events.publish(TaskExecAdded {
            container_id: self.id.clone(),
            exec_id: exec_id.into(),
            ..TaskExecAdded::default()
        });
        Ok(())
    }

    /// Starts the process that was described as `exec_id`.
    pub(crate) async fn start_exec(self: &Arc<Self>, exec_id: &str) -> Result<i32> {
        let made = self.native("exec")?;
        let member = self.member(exec_id)?;
        let _changing = self.changing.lock().await;
        self.init.state().check_exec()?;
        member.state().check_start()?;
        let spec = member.spec().ok_or_else(|| Error::new(Kind::Conflict, "the process has no description"))?;
        let (process, attached) = match run(made, self, &member, spec).await {
            Ok(made) => made,
            Err(error) => {
                member.set_state(State::Stopped(Exit {
                    code: skiff_protocol::EXIT_ENGINE,
                    at: std::time::SystemTime::now(),
                }));
                return Err(error);
            }
        };
        member.attach(process, attached);
        member.set_state(State::Running);
        let pid = member.pid();
        self.events.publish(TaskExecStarted {
            container_id: self.id.clone(),
            exec_id: exec_id.into(),
            pid: unsigned(pid),
            ..TaskExecStarted::default()
        });
        self.supervise(member);
        Ok(pid)
    }

    /// Forgets a further process that has ended or was never started.
    pub(super) async fn delete_exec(&self, exec_id: &str, member: &Member) -> Result<Deleted> {
        let never = Exit { code: 0, at: std::time::SystemTime::now() };
        member.detach().await;
        self.execs().remove(exec_id);
        Ok(Deleted { pid: member.pid(), exit: member.state().exit().unwrap_or(never) })
    }

    fn native(&self, verb: &str) -> Result<&Made> {
        match &self.body {
            Body::Native(made) => Ok(made),
            Body::Wasm(..) => Err(self.unsupported(verb, "a wasm container")),
            Body::Sandbox(_) => Err(self.unsupported(verb, "the sandbox of a pod")),
        }
    }
}

async fn run(made: &Made, container: &Container, member: &Member, spec: &ProcessSpec) -> Result<(Process, Attached)> {
    let (attachment, pending) = attachment_for(&member.stdio, &container.owner).await?;
    let pid = made.launcher.exec(spec, attachment, &member.exec_id).await?;
    let process = Process::of_child(pid).doing(|| "cannot watch the process".into())?;
    match pending.complete(&member.stdio).await {
        Ok(attached) => Ok((process, attached)),
        Err(error) => {
            // It runs, but nobody would know of it.
            process.end().await;
            Err(error)
        }
    }
}

/// The shim's side of streams, until the process is there.
pub(super) enum Pending {
    Files(stdio::Holds),
    Terminal(crate::host::console::ConsoleSocket),
}

/// Opens the streams that `paths` describe, for a process that is about to be made.
pub(super) async fn attachment_for(paths: &StdioPaths, owner: &Owner) -> Result<(Attachment, Pending)> {
    if paths.terminal {
        let socket = terminal::listen()?;
        return Ok((Attachment::Console(socket.path().into()), Pending::Terminal(socket)));
    }
    let opened = if paths.has_program() {
        let (paths, owner) = (paths.clone(), owner.clone());
        tokio::task::spawn_blocking(move || stdio::open(&paths, &owner)).await.map_err(std::io::Error::other).flatten()
    } else {
        stdio::open(paths, owner)
    };
    let (child, holds) = opened.doing(|| "cannot open the streams".into())?;
    Ok((Attachment::Files(child), Pending::Files(holds)))
}

impl Pending {
    pub(super) async fn complete(self, paths: &StdioPaths) -> Result<Attached> {
        match self {
            Pending::Files(holds) => Ok(Attached::Files(holds)),
            Pending::Terminal(socket) => Terminal::receive(socket, paths).await.map(Attached::Terminal),
        }
    }
}

impl Deleted {
    /// The event of the deletion.
    pub(super) fn event(&self, id: &str, exec_id: &str) -> TaskDelete {
        TaskDelete {
            container_id: id.into(),
            id: exec_id.into(),
            pid: unsigned(self.pid),
            exit_status: unsigned(self.exit.code),
            exited_at: Some(crate::containerd::time::timestamp(self.exit.at)).into(),
            ..TaskDelete::default()
        }
    }
}
