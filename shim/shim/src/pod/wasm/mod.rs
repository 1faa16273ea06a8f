//! Wasm containers: the engine runs their program. Checkpoints are not for them.

mod create;
mod exec;
mod handover;

use std::fs::File;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use oci_spec::runtime::LinuxResources;
use skiff_linux::cgroup::Cgroup;
use skiff_protocol::{EnginePlan, Figures, bytes_and_mi};
use tokio::sync::Semaphore;

pub(super) use self::exec::{Further, Pending};
use self::handover::Handover;
use crate::code::Tenant;
use crate::error::{Context, Error, Kind, Result, chain};
use crate::events::Exit;
use crate::host::reader::blocking;
use crate::host::stdio::Voice;
use crate::host::termination_log::TerminationLog;
use crate::pod::launched::LaunchedContainer;
use crate::pod::places::Places;
use crate::pod::process::Process;
use crate::settings::Settings;

/// How long the last words of the shim wait for what the guest wrote to its terminal.
const TERMINAL_LIMIT: Duration = Duration::from_millis(500);

/// A wasm container.
pub(super) struct Wasm {
    pub(super) launched: LaunchedContainer,
    /// Held until Start takes it; with it go the control socket and the shim's descriptor of the code.
    handover: tokio::sync::Mutex<Option<Box<Handover>>>,
    /// For what the shim has to say of its end. Held until then: the output ends with its last writer.
    voice: Mutex<Option<Voice>>,
    /// Where the pod's status has that from, if the kubelet made a file for it.
    termination_log: Option<Arc<TerminationLog>>,
    /// What its engine reports of the guest's memory.
    account: Arc<File>,
    /// What of it belongs to processes beside the guest.
    places: Arc<Places>,
    /// How many programs of further processes are looked for at once: the shim has few readers, and other containers need some.
    /// A reader has its turn until it has ended.
    looking: Arc<Semaphore>,
    /// Where the call socket is.
    bundle: PathBuf,
    /// The plan of its guest, without arguments and environment: further processes have the same view and limits.
    guest: EnginePlan,
    /// How modules are compiled that are run beside the guest, and for whom.
    settings: Settings,
    tenant: Tenant,
}

impl Wasm {
    /// Starts the engine, which is the `first` process, and waits until it has started the guest.
    pub(super) async fn start(&self, first: &Process) -> Result<()> {
        let handover = self.handover.lock().await.take();
        let handover = handover.ok_or_else(|| Error::new(Kind::Conflict, "the guest has already been started"))?;
        let engine = first.child().ok_or_else(|| Error::new(Kind::Conflict, "the engine has no process"))?;
        self.launched.launcher.start().await?;
        handover.wait_until_ready(engine, Duration::MAX).await
    }

    /// Sets the container's cgroup limits.
    pub(super) async fn update(&self, mut resources: LinuxResources) -> Result<()> {
        if let Some(memory) = resources.memory_mut() {
            // The kernel of cgroup v2 would kill the guest to get below a limit.
            memory.set_check_before_update(Some(true));
        }
        self.launched.launcher.update(&resources).await
    }

    /// Ends what the engine, which was the `first` process, has left behind, and says in the guest's output and in the pod's status
    /// if the kernel killed it. Returns whether memory ran out.
    pub(super) async fn ended(&self, first: &Process, exit: Exit) -> bool {
        let is_killed = self.launched.ended(first, exit).await;
        let figures = self.figures();
        let voice = self.voice.lock().unwrap_or_else(PoisonError::into_inner).take();
        if is_killed {
            let why = why_killed(&self.launched.cgroup, &figures.unwrap_or_default());
            // The file's volume may hang, and the end must not wait for it.
            if tokio::time::timeout(TERMINAL_LIMIT, self.leave(why.clone())).await.is_err() {
                log::warn!("the termination log cannot be written in time: {why}");
            }
            first.delivered(TERMINAL_LIMIT).await;
            if let Some(Err(error)) = voice.map(|voice| voice.say(&why)) {
                log::warn!("cannot write to the container's output: {error}: {why}");
            }
        }
        is_killed || figures.is_some_and(|figures| figures.ran_out)
    }

    /// Leaves a sentence where the pod's status has it from.
    async fn leave(&self, sentence: String) {
        let Some(file) = self.termination_log.clone() else { return };
        let written = blocking(move || file.leave(&sentence).doing(|| "cannot write the termination log".into())).await;
        if let Err(error) = written {
            log::warn!("{}", chain(&error));
        }
    }

    /// What the engine reports of its guest's memory.
    fn figures(&self) -> Option<Figures> {
        let container = &self.launched.owner.container;
        Figures::read(&self.account)
            .inspect_err(|error| log::warn!("cannot read the account of container `{container}`: {error}"))
            .ok()
    }
}

/// Why the kernel killed a guest, which it reports only to the node itself.
fn why_killed(cgroup: &Cgroup, guest: &Figures) -> String {
    let limit = match (cgroup.exists(), cgroup.memory_limit_bytes(), guest.limit_bytes) {
        (true, Some(bytes), _) => format!("its memory limit of {}", bytes_and_mi(bytes)),
        (false, _, Some(bytes)) => {
            format!("its memory limit, which was {} when the guest last grew", bytes_and_mi(bytes))
        }
        _ => "the node's limit".into(),
    };
    let taken = bytes_and_mi(guest.linear_memory_bytes);
    format!("skiff: killed by the kernel at {limit}; the guest's memories, tables and buffers took {taken}")
}
