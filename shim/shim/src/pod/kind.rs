//! The kinds of containers, each with a room of its own: who does what a verb asks for, and who refuses it.

use std::sync::Arc;

use oci_spec::runtime::{LinuxResources, Process as ProcessSpec};
use skiff_linux::cgroup::Cgroup;

use tokio_util::sync::CancellationToken;

use crate::error::{Error, Kind as ErrorKind, Result};
use crate::events::Exit;
use crate::pod::launched::{Connected, Created, LaunchedContainer};
use crate::pod::native::Native;
use crate::pod::process::Process;
use crate::pod::sandbox::Sandbox;
use crate::pod::wasm::{Further, Pending, Wasm};

/// What a container is.
pub(super) enum Kind {
    /// The view of the pod's sandbox that the Task API has.
    Sandbox(Arc<Sandbox>),
    /// A container whose program the kernel runs.
    Native(Box<Native>),
    /// A container whose program the engine runs.
    Wasm(Box<Wasm>),
}

/// What a further process runs.
pub(super) enum Found {
    /// What the kernel makes of its arguments.
    Native,
    /// What the engine's process is for, or a native program beside a guest.
    BesideAGuest(Box<Further>),
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

    /// The native container, for what only that one does: checkpoints.
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

    /// Finds what a further process of `spec` runs, beside the `first` process, and compiles it. May take long.
    pub(super) async fn find(
        &self,
        first: &Process,
        spec: &ProcessSpec,
        unwanted: &CancellationToken,
    ) -> Result<Found> {
        match self {
            Kind::Sandbox(_) => Err(Error::new(ErrorKind::Unsupported, "exec is not implemented for a sandbox")),
            Kind::Native(_) => Ok(Found::Native),
            Kind::Wasm(wasm) => Ok(Found::BesideAGuest(Box::new(wasm.find(first, spec, unwanted).await?))),
        }
    }

    /// Makes a further `process` of `spec`, which runs what was `found`, maybe only after something that is pending.
    pub(super) async fn exec(
        &self,
        process: &Process,
        spec: &ProcessSpec,
        found: Found,
    ) -> Result<(Connected, Option<Pending>)> {
        match (self, found) {
            (Kind::Wasm(wasm), Found::BesideAGuest(further)) => wasm.exec(process, spec, *further).await,
            (Kind::Native(native), Found::Native) => Ok((native.launched.exec(process, spec, Vec::new()).await?, None)),
            (Kind::Sandbox(_) | Kind::Native(_) | Kind::Wasm(_), Found::Native | Found::BesideAGuest(_)) => {
                Err(Error::new(ErrorKind::Host, "a process was found for a container of another kind"))
            }
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
