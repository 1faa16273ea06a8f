//! The containers of one pod, and everything that is done to them. Containers of other pods have shims of their own.

mod container;
mod create;
mod exec;
mod guest;
mod member;
mod terminal;

use std::collections::HashMap;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use crate::containerd::publisher::Publisher;
use crate::error::{Context, Error, Kind, Result};
use crate::host::namespaces::Holder;
use crate::host::pid_namespace;
use crate::host::process::Process;

pub(crate) use container::{Container, unsigned};
pub(crate) use create::CreateRequest;
pub(crate) use member::Member;

/// A pod.
pub(crate) struct Pod {
    containers: Mutex<HashMap<String, Slot>>,
    pub(crate) events: Publisher,
    holder: Holder,
    identity: Identity,
    /// The first process of the pid namespace that containers of the pod share, once one does.
    pid_init: tokio::sync::Mutex<Option<Process>>,
}

/// Whom the shim serves, and where.
#[derive(Clone, Debug, Default)]
pub(crate) struct Identity {
    /// The namespace in containerd.
    pub(crate) namespace: String,
    /// containerd's gRPC socket.
    pub(crate) containerd: String,
    /// The shim's own socket.
    pub(crate) socket: String,
}

enum Slot {
    /// Taken by a create that is under way.
    Reserved,
    Ready(Arc<Container>),
}

impl Pod {
    pub(crate) fn new(identity: Identity, events: Publisher, holder: Holder) -> Self {
        Self { containers: Mutex::default(), events, holder, identity, pid_init: tokio::sync::Mutex::default() }
    }

    /// The container `id`.
    pub(crate) fn container(&self, id: &str) -> Result<Arc<Container>> {
        match self.slots().get(id) {
            Some(Slot::Ready(container)) => Ok(container.clone()),
            Some(Slot::Reserved) | None => Err(Error::new(Kind::NotFound, format!("container `{id}` does not exist"))),
        }
    }

    /// The process `exec_id` of the container `id`; the container's first process when it is empty.
    pub(crate) fn member(&self, id: &str, exec_id: &str) -> Result<(Arc<Container>, Arc<Member>)> {
        let container = self.container(id)?;
        let member = container.member(exec_id)?;
        Ok((container, member))
    }

    /// Whether no container is left, nor one being made.
    pub(crate) fn is_empty(&self) -> bool {
        self.slots().is_empty()
    }

    /// Deletes a process; with the first one goes the container. Gives its pid and exit.
    pub(crate) async fn delete(&self, id: &str, exec_id: &str) -> Result<Deleted> {
        let (container, member) = self.member(id, exec_id)?;
        member.state().check_delete()?;
        if !exec_id.is_empty() {
            return container.delete_exec(exec_id, &member).await;
        }
        let deleted = container.delete(&self.holder).await?;
        if container.is_sandbox() {
            self.end_pid_namespace().await?;
        }
        if self.slots().remove(id).is_none() {
            return Err(Error::new(Kind::NotFound, format!("container `{id}` was deleted by somebody else")));
        }
        self.events.publish(deleted.event(id, ""));
        Ok(deleted)
    }

    /// The pid namespace that the pod's containers share, made for the first of them.
    async fn pid_namespace(&self) -> Result<PathBuf> {
        let mut init = self.pid_init.lock().await;
        if init.is_none() {
            let started = pid_namespace::start_init().and_then(Process::of_child);
            *init = Some(started.doing(|| "could not make a pid namespace for the pod".into())?);
        }
        let pid = init.as_ref().map_or(0, Process::pid);
        Ok(format!("/proc/{pid}/ns/pid").into())
    }

    async fn end_pid_namespace(&self) -> Result<()> {
        let Some(init) = self.pid_init.lock().await.take() else { return Ok(()) };
        let ended = async {
            init.signal(libc::SIGKILL)?;
            init.wait().await
        };
        ended.await.map(drop).doing(|| "could not end the pid namespace of the pod".into())
    }

    fn reserve(self: &Arc<Self>, id: &str) -> Result<Reservation> {
        let mut slots = self.slots();
        if slots.contains_key(id) {
            return Err(Error::new(Kind::Exists, format!("container `{id}` exists already")));
        }
        slots.insert(id.into(), Slot::Reserved);
        Ok(Reservation { pod: self.clone(), id: id.into(), kept: false })
    }

    fn slots(&self) -> MutexGuard<'_, HashMap<String, Slot>> {
        self.containers.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The place of a container that is being made; given back when it is dropped without being filled.
struct Reservation {
    pod: Arc<Pod>,
    id: String,
    kept: bool,
}

impl Reservation {
    fn fill(mut self, container: Arc<Container>) {
        self.kept = true;
        self.pod.slots().insert(self.id.clone(), Slot::Ready(container));
    }
}

impl Drop for Reservation {
    fn drop(&mut self) {
        if !self.kept {
            self.pod.slots().remove(&self.id);
        }
    }
}

/// What is left to say of a process that was deleted.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Deleted {
    pub(crate) pid: i32,
    pub(crate) exit: crate::task::state::Exit,
}
