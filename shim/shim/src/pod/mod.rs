//! The containers of one pod, and everything that is done to them. Containers of other pods have shims of their own.

mod config;
mod container;
mod create;
mod exec;
mod guest;
mod kill;
mod member;
mod program;
mod shared_pids;
pub(crate) mod state;
mod terminal;

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;

use crate::containerd::publisher::Publisher;
use crate::error::{Error, Kind, Result};
use crate::host::namespaces::Holder;

pub(crate) use container::{Container, unsigned};
pub(crate) use create::CreateRequest;
pub(crate) use member::Member;
use shared_pids::SharedPids;

/// How long a create that is not wanted any more may take to be undone before nobody waits for it.
const UNDO_LIMIT: Duration = Duration::from_secs(10);

/// A pod.
pub(crate) struct Pod {
    slots: Mutex<Slots>,
    /// A create has given its slot back, or filled it.
    settled: Notify,
    pub(crate) events: Publisher,
    holder: Holder,
    identity: Identity,
    /// The pid namespace that containers of the pod share, once one does.
    shared_pids: tokio::sync::Mutex<Option<SharedPids>>,
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

#[derive(Default)]
struct Slots {
    containers: HashMap<String, Slot>,
    /// The sandbox is gone, and with it the pod's namespaces: nothing is made any more.
    is_closed: bool,
}

enum Slot {
    /// Taken by a create that is under way; cancelled when its container is not wanted any more.
    Reserved(CancellationToken),
    Ready(Arc<Container>),
}

impl Slots {
    /// The creates under way for which `is_meant`.
    fn reserved(&self, is_meant: impl Fn(&str) -> bool) -> impl Iterator<Item = &CancellationToken> {
        self.containers.iter().filter_map(move |(id, slot)| match slot {
            Slot::Reserved(unwanted) if is_meant(id) => Some(unwanted),
            Slot::Reserved(_) | Slot::Ready(_) => None,
        })
    }
}

impl Pod {
    pub(crate) fn new(identity: Identity, events: Publisher, holder: Holder) -> Self {
        Self {
            slots: Mutex::default(),
            settled: Notify::new(),
            events,
            holder,
            identity,
            shared_pids: tokio::sync::Mutex::default(),
        }
    }

    /// The container `id`.
    pub(crate) fn container(&self, id: &str) -> Result<Arc<Container>> {
        match self.slots().containers.get(id) {
            Some(Slot::Ready(container)) => Ok(container.clone()),
            Some(Slot::Reserved(_)) | None => Err(not_found(id)),
        }
    }

    /// The process `exec_id` of the container `id`; the container's first process when it is empty.
    pub(crate) fn member(&self, id: &str, exec_id: &str) -> Result<(Arc<Container>, Arc<Member>)> {
        let container = self.container(id)?;
        let member = container.member(exec_id)?;
        Ok((container, member))
    }

    /// Whether the shim may end when containerd asks for it on behalf of container `id`: no container is left, nor another one
    /// being made. What is still made of `id`, or in a pod without its sandbox, is undone first, and not waited for for ever:
    /// `delete` finds what is left by the record.
    pub(crate) async fn is_over(&self, id: &str) -> bool {
        let is_closed = self.slots().is_closed;
        let is_unwanted = |other: &str| is_closed || other == id;
        self.undo_creates(is_unwanted).await;
        self.slots().containers.iter().all(|(id, slot)| match slot {
            Slot::Reserved(_) => is_unwanted(id),
            Slot::Ready(_) => false,
        })
    }

    /// Deletes a process; with the first one goes the container, with the sandbox whatever is still made in the pod. Gives
    /// its pid and exit.
    ///
    /// # Errors
    /// `NotFound` for a container that is still being made: that is undone.
    pub(crate) async fn delete(&self, id: &str, exec_id: &str) -> Result<Deleted> {
        if matches!(self.slots().containers.get(id), Some(Slot::Reserved(_))) {
            self.undo_creates(|other| other == id).await;
            return Err(not_found(id));
        }
        let (container, member) = self.member(id, exec_id)?;
        member.state().check_delete()?;
        if !exec_id.is_empty() {
            return container.delete_exec(exec_id, &member).await;
        }
        if container.is_pods_sandbox {
            self.close().await;
        }
        let deleted = container.delete(&self.holder).await?;
        if container.is_pods_sandbox {
            let shared = self.shared_pids.lock().await.take();
            if let Some(shared) = shared {
                shared.end().await?;
            }
        }
        {
            let mut slots = self.slots();
            match slots.containers.get(id) {
                Some(Slot::Ready(current)) if Arc::ptr_eq(current, &container) => slots.containers.remove(id),
                // Whoever has the id by now is another.
                Some(Slot::Ready(_) | Slot::Reserved(_)) | None => {
                    return Err(Error::new(Kind::NotFound, format!("container `{id}` was deleted by somebody else")));
                }
            };
        }
        self.events.publish(deleted.event(id, ""));
        Ok(deleted)
    }

    /// Lets nothing more be made in the pod, and undoes what is being made: it would come up in the namespaces that the shim
    /// goes back to, which are the node's.
    async fn close(&self) {
        self.slots().is_closed = true;
        self.undo_creates(|_| true).await;
    }

    /// Says of the creates under way for which `is_meant` that they are not wanted any more, and waits, not for ever, until
    /// they are undone.
    async fn undo_creates(&self, is_meant: impl Fn(&str) -> bool) {
        self.slots().reserved(&is_meant).for_each(CancellationToken::cancel);
        let undone = async {
            loop {
                let settled = self.settled.notified();
                if self.slots().reserved(&is_meant).next().is_none() {
                    return;
                }
                settled.await;
            }
        };
        if tokio::time::timeout(UNDO_LIMIT, undone).await.is_err() {
            log::error!("a create that is not wanted any more has not been undone within {UNDO_LIMIT:?}");
        }
    }

    /// The path of the pid namespace that the pod's containers share, made for the first of them.
    async fn shared_pids(self: &Arc<Self>) -> Result<String> {
        let mut shared = self.shared_pids.lock().await;
        let shared = match shared.take() {
            Some(there) => shared.insert(there),
            None => shared.insert(SharedPids::start(self).await?),
        };
        Ok(shared.path())
    }

    /// The end of the shared pid namespace is the end of the pod, as that of a pause process is: the kubelet makes a new one.
    async fn shared_pids_ended(&self) {
        let sandbox = self.slots().containers.values().find_map(|slot| match slot {
            Slot::Ready(container) if container.is_pods_sandbox => Some(container.clone()),
            Slot::Ready(_) | Slot::Reserved(_) => None,
        });
        match sandbox {
            Some(sandbox) => sandbox.lost_its_pids().await,
            // Containers that are grouped without one get a new namespace with the next of them.
            None => drop(self.shared_pids.lock().await.take()),
        }
    }

    fn reserve(self: &Arc<Self>, id: &str) -> Result<Reservation> {
        let mut slots = self.slots();
        if slots.containers.contains_key(id) {
            return Err(Error::new(Kind::Exists, format!("container `{id}` exists already")));
        }
        if slots.is_closed {
            return Err(Error::new(Kind::Conflict, format!("the pod of container `{id}` has been deleted")));
        }
        let unwanted = CancellationToken::new();
        slots.containers.insert(id.into(), Slot::Reserved(unwanted.clone()));
        Ok(Reservation { pod: self.clone(), id: id.into(), unwanted, kept: false })
    }

    fn slots(&self) -> MutexGuard<'_, Slots> {
        self.slots.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn not_found(id: &str) -> Error {
    Error::new(Kind::NotFound, format!("container `{id}` does not exist"))
}

/// The place of a container that is being made; given back when it is dropped without being filled.
struct Reservation {
    pod: Arc<Pod>,
    id: String,
    unwanted: CancellationToken,
    kept: bool,
}

impl Reservation {
    /// Puts the container in its place, and does `announce` before anybody can find it there; unless it is not wanted any
    /// more.
    fn fill(&mut self, container: &Arc<Container>, announce: impl FnOnce()) -> bool {
        let mut slots = self.pod.slots();
        if self.unwanted.is_cancelled() {
            return false;
        }
        announce();
        slots.containers.insert(self.id.clone(), Slot::Ready(container.clone()));
        self.kept = true;
        true
    }
}

impl Drop for Reservation {
    fn drop(&mut self) {
        if !self.kept {
            self.pod.slots().containers.remove(&self.id);
        }
        self.pod.settled.notify_waiters();
    }
}

/// What is left to say of a process that was deleted.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Deleted {
    pub(crate) pid: i32,
    pub(crate) exit: crate::pod::state::Exit,
}
