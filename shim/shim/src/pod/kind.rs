//! The kinds of containers, each with a room of its own: who does what a verb asks for, and who refuses it.

use std::sync::Arc;

use oci_spec::runtime::LinuxResources;
use skiff_linux::cgroup::Cgroup;

use crate::error::Result;
use crate::events::Exit;
use crate::pod::launched::{Created, LaunchedContainer};
use crate::pod::native::Native;
use crate::pod::process::Process;
use crate::pod::sandbox::Sandbox;
use crate::pod::wasm::Wasm;

/// What a container is.
pub(super) enum Kind {
    /// The view of the pod's sandbox that the Task API has.
    Sandbox(Arc<Sandbox>),
    /// A container whose program the kernel runs.
    Native(Box<Native>),
    /// A container whose program the engine runs.
    Wasm(Box<Wasm>),
}

impl Kind {
    /// Its name in messages.
    pub(super) fn name(&self) -> &'static str {
        match self {
            Kind::Sandbox(_) => "the sandbox of a pod",
            Kind::Native(_) => "a native container",
            Kind::Wasm(_) => "a wasm container",
        }
    }

    /// What a launcher made, unless the container has no process.
    pub(super) fn launched(&self) -> Option<&LaunchedContainer> {
        match self {
            Kind::Sandbox(_) => None,
            Kind::Native(native) => Some(&native.launched),
            Kind::Wasm(wasm) => Some(&wasm.launched),
        }
    }

    /// The native container, for what only that one does: further processes, checkpoints, terminals.
    pub(super) fn native(&self) -> Option<&Native> {
        match self {
            Kind::Native(native) => Some(native),
            Kind::Sandbox(_) | Kind::Wasm(_) => None,
        }
    }

    pub(super) fn cgroup(&self) -> Option<Cgroup> {
        match self {
            Kind::Sandbox(sandbox) => sandbox.cgroup(),
            Kind::Native(native) => Some(native.launched.cgroup.clone()),
            Kind::Wasm(wasm) => Some(wasm.launched.cgroup.clone()),
        }
    }

    /// Starts the `first` process.
    pub(super) async fn start(&self, first: &Process) -> Result<()> {
        match self {
            Kind::Sandbox(sandbox) => {
                sandbox.start();
                Ok(())
            }
            Kind::Native(native) => native.start(first).await,
            Kind::Wasm(wasm) => wasm.start(first).await,
        }
    }

    /// Sets the container's cgroup limits; `None` for a container without a launcher.
    pub(super) async fn update(&self, resources: LinuxResources) -> Option<Result<()>> {
        match self {
            Kind::Sandbox(_) => None,
            Kind::Native(native) => Some(native.launched.launcher.update(&resources).await),
            Kind::Wasm(wasm) => Some(wasm.update(resources).await),
        }
    }

    /// Ends what the `first` process has left behind. Returns whether memory ran out.
    pub(super) async fn ended(&self, first: &Process, exit: Exit) -> bool {
        match self {
            Kind::Sandbox(sandbox) => {
                sandbox.end().await;
                false
            }
            Kind::Native(native) => native.launched.ended(first, exit).await,
            Kind::Wasm(wasm) => wasm.ended(first, exit).await,
        }
    }

    /// Takes back a container that nobody has seen yet.
    pub(super) async fn undo(&self) -> Result<()> {
        match self {
            Kind::Sandbox(sandbox) => sandbox.delete().await,
            Kind::Native(native) => native.launched.launcher.delete().await,
            Kind::Wasm(wasm) => wasm.launched.launcher.delete().await,
        }
    }

    /// Removes what is left of the container, whose `first` process has ended.
    pub(super) async fn delete(&self, first: &Process) -> Result<()> {
        match self {
            Kind::Sandbox(sandbox) => sandbox.delete().await,
            Kind::Native(native) => native.launched.delete(first).await,
            Kind::Wasm(wasm) => wasm.launched.delete(first).await,
        }
    }
}

impl Created<Kind> {
    pub(super) fn of_native(created: Created<Native>) -> Self {
        Self { first: created.first, kind: Kind::Native(Box::new(created.kind)) }
    }

    pub(super) fn of_wasm(created: Created<Wasm>) -> Self {
        Self { first: created.first, kind: Kind::Wasm(Box::new(created.kind)) }
    }
}
