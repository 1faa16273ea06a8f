//! The containers of one pod, and everything that is done to them. Containers of other pods have shims of their own.

mod container;
mod create;
mod exec;
mod kind;
mod launched;
mod native;
mod places;
mod process;
mod sandbox;
mod sandbox_api;
mod shared_pids;
mod slots;
mod standin;
pub(crate) mod state;
mod streams;
mod terminal;
#[cfg(test)]
mod tests;
mod wasm;

use std::io::ErrorKind;
use std::path::Path;
use std::sync::Arc;

use self::container::{Container, Deleted};
use self::process::Process;
use self::sandbox::Sandbox;
use self::slots::Slots;
use crate::error::{Error, Kind, Result};
use crate::events::Events;
use crate::host::namespaces::Holder;
use crate::host::record::Record;
use crate::identity::Identity;

/// A pod.
pub(crate) struct Pod {
    slots: Arc<Slots>,
    sandbox: Arc<Sandbox>,
    events: Arc<dyn Events>,
    identity: Identity,
}

impl Pod {
    /// An empty pod; `holder` reaches the thread that will hold its namespaces.
    pub(crate) fn new(identity: Identity, events: Arc<dyn Events>, holder: Holder) -> Self {
        Self { slots: Arc::default(), sandbox: Arc::new(Sandbox::new(holder)), events, identity }
    }

    /// The container `id`.
    pub(crate) fn container(&self, id: &str) -> Result<Arc<Container>> {
        self.slots.get(id).ok_or_else(|| not_found(id))
    }

    /// The process `exec_id` of the container `id`; the container's first process when it is empty.
    pub(crate) fn process(&self, id: &str, exec_id: &str) -> Result<(Arc<Container>, Arc<Process>)> {
        let container = self.container(id)?;
        let process = container.process(exec_id)?;
        Ok((container, process))
    }

    /// Whether the shim may end when containerd asks for it on behalf of container `id`: no container is left, nor another one
    /// being made. What is still made of `id`, or in a pod without its sandbox, is undone first.
    pub(crate) async fn is_over(&self, id: &str) -> bool {
        self.slots.are_over(id).await
    }

    /// Lets nothing be made any more if nothing is there now. Returns whether that is so.
    pub(crate) fn close_if_empty(&self) -> bool {
        self.slots.close_if_empty()
    }

    /// Deletes a process; with the first one goes the container, with the sandbox whatever is still made in the pod. Returns
    /// its pid and exit.
    ///
    /// # Errors
    /// `NotFound` for a container that is still being made: that is undone.
    pub(crate) async fn delete(&self, id: &str, exec_id: &str) -> Result<Deleted> {
        if self.slots.is_reserved(id) {
            self.slots.undo_creates(|other| other == id).await;
            return Err(not_found(id));
        }
        let (container, process) = self.process(id, exec_id)?;
        process.state().check_delete()?;
        if !exec_id.is_empty() {
            return container.delete_exec(exec_id, &process).await;
        }
        if container.is_pods_sandbox {
            self.slots.close().await;
        }
        let deleted = container.delete().await?;
        if container.is_pods_sandbox {
            self.sandbox.end_pids().await?;
        }
        self.leave_only_the_shim(&container.bundle);
        if !self.slots.remove(&container) {
            return Err(Error::new(Kind::NotFound, format!("container `{id}` was deleted by somebody else")));
        }
        container.events.deleted(id, deleted.pid, deleted.exit);
        Ok(deleted)
    }

    /// Leaves a record in `bundle` by which the action `delete`, for whose end containerd waits after that of each shim, looks for nothing
    /// but the shim's socket.
    fn leave_only_the_shim(&self, bundle: &Path) {
        let Identity { namespace, socket, .. } = self.identity.clone();
        match (Record { namespace, socket, ..Record::default() }).save(bundle) {
            // The bundle of a pod that is no longer wanted may be gone.
            Err(error) if error.kind() != ErrorKind::NotFound => {
                log::warn!("cannot write the record of a deleted container: {error}");
            }
            _ => {}
        }
    }

    /// The path of the pid namespace that the pod's containers share, made for the first of them.
    async fn shared_pids(self: &Arc<Self>) -> Result<String> {
        let pod = Arc::downgrade(self);
        let at_the_end = async move {
            if let Some(pod) = pod.upgrade() {
                pod.shared_pids_ended().await;
            }
        };
        self.sandbox.pids(at_the_end).await
    }

    /// The end of the shared pid namespace is the end of the pod, as that of a pause process is: the kubelet makes a new one.
    async fn shared_pids_ended(&self) {
        match self.slots.sandbox() {
            Some(sandbox) => sandbox.lost_its_pids().await,
            // Containers that are grouped without one get a new namespace with the next of them.
            None => self.sandbox.forget_pids().await,
        }
    }
}

fn not_found(id: &str) -> Error {
    Error::new(Kind::NotFound, format!("container `{id}` does not exist"))
}
