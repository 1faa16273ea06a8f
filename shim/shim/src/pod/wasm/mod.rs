//! Wasm containers: the engine runs their program. Further processes, checkpoints and terminals are not for them.

mod create;
mod handover;

use std::fs::File;
use std::sync::{Arc, Mutex, PoisonError};

use oci_spec::runtime::LinuxResources;
use skiff_linux::cgroup::Cgroup;
use skiff_protocol::{Figures, bytes_and_mi};

use self::handover::Handover;
use crate::error::{Error, Kind, Result};
use crate::events::Exit;
use crate::host::stdio::say;
use crate::pod::launched::LaunchedContainer;
use crate::pod::process::Process;

/// A wasm container.
pub(super) struct Wasm {
    pub(super) launched: LaunchedContainer,
    /// Held until Start takes it; with it go the control socket and the shim's descriptor of the code.
    handover: tokio::sync::Mutex<Option<Box<Handover>>>,
    /// Its stderr, for what the shim has to say of its end. Held until then: the output ends with its last writer.
    stderr: Mutex<Option<File>>,
    /// What its engine reports of the guest's memory.
    account: Arc<File>,
}

impl Wasm {
    /// Starts the engine, which is the `first` process, and waits until it has started the guest.
    pub(super) async fn start(&self, first: &Process) -> Result<()> {
        let handover = self.handover.lock().await.take();
        let handover = handover.ok_or_else(|| Error::new(Kind::Conflict, "the guest has already been started"))?;
        let engine = first.child().ok_or_else(|| Error::new(Kind::Conflict, "the engine has no process"))?;
        self.launched.launcher.start().await?;
        handover.wait_until_ready(engine).await
    }

    /// Sets the container's cgroup limits.
    pub(super) async fn update(&self, mut resources: LinuxResources) -> Result<()> {
        if let Some(memory) = resources.memory_mut() {
            // The kernel of cgroup v2 would kill the guest to get below a limit.
            memory.set_check_before_update(Some(true));
        }
        self.launched.launcher.update(&resources).await
    }

    /// Ends what the engine, which was the `first` process, has left behind, and says on the guest's stderr if the kernel killed
    /// it. Returns whether memory ran out.
    pub(super) async fn ended(&self, first: &Process, exit: Exit) -> bool {
        let is_killed = self.launched.ended(first, exit).await;
        let figures = self.figures();
        if let Some(stderr) = self.stderr.lock().unwrap_or_else(PoisonError::into_inner).take()
            && is_killed
        {
            say_why(&self.launched.cgroup, &figures.unwrap_or_default(), &stderr);
        }
        is_killed || figures.is_some_and(|figures| figures.ran_out)
    }

    /// What the engine reports of its guest's memory.
    fn figures(&self) -> Option<Figures> {
        let container = &self.launched.owner.container;
        Figures::read(&self.account)
            .inspect_err(|error| log::warn!("cannot read the account of container `{container}`: {error}"))
            .ok()
    }
}

/// Says on a guest's stderr why it is gone: the kernel itself reports it only to the node.
fn say_why(cgroup: &Cgroup, guest: &Figures, stderr: &File) {
    let limit = match (cgroup.exists(), cgroup.memory_limit_bytes(), guest.limit_bytes) {
        (true, Some(bytes), _) => format!("its memory limit of {}", bytes_and_mi(bytes)),
        (false, _, Some(bytes)) => {
            format!("its memory limit, which was {} when the guest last grew", bytes_and_mi(bytes))
        }
        _ => "the node's limit".into(),
    };
    let taken = bytes_and_mi(guest.linear_memory_bytes);
    let line =
        format!("skiff: killed by the kernel at {limit}; the guest's memories, tables and buffers took {taken}\n");
    if let Err(error) = say(stderr, &line) {
        log::warn!("cannot write to the container's stderr: {error}: {line}");
    }
}
