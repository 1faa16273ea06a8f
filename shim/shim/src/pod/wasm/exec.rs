//! Further processes of a wasm container: a module runs in an engine of its own, a native program as it would under the OCI
//! runtime, and what names neither is asked of the guest's engine, or refused.

use std::fs::File;
use std::io::ErrorKind;
use std::os::fd::AsRawFd;
use std::path::{Path, PathBuf};
use std::time::Duration;

use oci_spec::runtime::Process as ProcessSpec;
use skiff_protocol::{EnginePlan, MemoryLimit, Task};
use tokio_util::sync::CancellationToken;

use crate::code::Compiled;
use crate::error::{Context, Error, Kind, Result};
use crate::host::call_socket;
use crate::host::engine::open_engine;
use crate::host::lookup::open_directory_of;
use crate::host::process::Child;
use crate::host::reader::blocking;
use crate::image::{self, Module, Program, Wanted};
use crate::pod::launched::Connected;
use crate::pod::places::Place;
use crate::pod::process::Process;
use crate::pod::wasm::Wasm;
use crate::pod::wasm::create::limits_of;
use crate::pod::wasm::handover::{Given, Handover, control_socket};
use crate::spec::exec::{for_engine, plan_of, task_of};
use crate::spec::wasm::VIEW_ROOT;

/// How long a further engine may take to answer.
const READY_LIMIT: Duration = Duration::from_secs(120);

/// What a further process runs.
pub(crate) enum Further {
    /// A native program.
    Native,
    /// An engine with this plan, and with the code of its module if it runs one.
    Engine {
        plan: Box<EnginePlan>,
        code: Option<Box<Compiled>>,
        /// Held as long as the module may be read again.
        view: View,
    },
}

/// The guest's view of files, held open.
pub(crate) struct View(File);

impl View {
    /// Where it is found by any thread of the shim.
    fn path(&self) -> PathBuf {
        format!("/proc/{}/fd/{}", std::process::id(), self.0.as_raw_fd()).into()
    }
}

impl Wasm {
    /// Finds what a process of `spec` runs, beside the guest's engine, which is the `first` process.
    pub(crate) async fn find(
        &self,
        first: &Process,
        spec: &ProcessSpec,
        unwanted: &CancellationToken,
    ) -> Result<Further> {
        let args = spec.args().as_deref().unwrap_or_default();
        let argument = args.first().filter(|argument| !argument.is_empty());
        let argument = argument.ok_or_else(|| Error::invalid("a process needs a program: its arguments are empty"))?;
        let view = view_of(first).await?;
        let env = spec.env().clone().unwrap_or_default();
        let wanted = Wanted { argument: argument.clone(), cwd: spec.cwd().clone(), env };
        let turn = self.looking.clone().acquire_owned().await.doing(|| "cannot look for a program".into())?;
        match image::find_in(view.path(), wanted, turn, unwanted).await? {
            Some(Program::Native) => Ok(Further::Native),
            Some(Program::Wasm(module)) => self.further_guest(spec, module, view, unwanted).await,
            None => {
                let plan = Box::new(plan_of(&self.guest, spec, task_of(args)));
                Ok(Further::Engine { plan, code: None, view })
            }
        }
    }

    /// The engine of a module that is run beside the guest.
    async fn further_guest(
        &self,
        spec: &ProcessSpec,
        module: Module,
        view: View,
        unwanted: &CancellationToken,
    ) -> Result<Further> {
        let Module { name, function, source, digest } = module;
        let plan = EnginePlan { module: name.clone(), function, ..plan_of(&self.guest, spec, Task::Run) };
        let (settings, tenant, unwanted) = (self.settings.clone(), self.tenant.clone(), unwanted.clone());
        let code = blocking(move || Compiled::load(&name, source, digest, &settings, tenant, &unwanted)).await?;
        Ok(Further::Engine { plan: Box::new(plan), code: Some(Box::new(code)), view })
    }

    /// Makes the `process` of `spec`; its engine, if it has one, has yet to come to run what it is for.
    pub(crate) async fn exec(
        &self,
        process: &Process,
        spec: &ProcessSpec,
        further: Further,
    ) -> Result<(Connected, Option<Pending>)> {
        let memory_limits = limits_of(&self.launched.owner.container, &self.launched.cgroup)?;
        let place = self.places.take(&memory_limits)?;
        let (mut connected, pending) = match further {
            Further::Native => (self.launched.exec(process, spec, Vec::new()).await?, None),
            Further::Engine { plan, code, view } => {
                let given = self.given(*plan, code.map(|code| *code), &place, memory_limits)?;
                let (connected, handover) = self.exec_engine(process, spec, given).await?;
                (connected, Some(Pending { handover, view }))
            }
        };
        connected.place = Some(place);
        Ok((connected, pending))
    }

    fn given(
        &self,
        mut plan: EnginePlan,
        code: Option<Compiled>,
        place: &Place,
        memory_limits: Vec<MemoryLimit>,
    ) -> Result<Given> {
        plan.place = place.index();
        plan.processors = self.launched.cgroup.processors();
        let calls = match &plan.task {
            Task::Run | Task::Refuse(_) => None,
            Task::Invoke(_) | Task::Look(_) => ask(&self.bundle)?,
        };
        Ok(Given { code, plan, account: self.account.clone(), memory_limits, calls })
    }

    async fn exec_engine(&self, process: &Process, spec: &ProcessSpec, given: Given) -> Result<(Connected, Handover)> {
        let (control, theirs) = control_socket()?;
        let handover = Handover::send(given, control)?;
        let engine = open_engine().doing(|| "cannot open the engine".into())?;
        let connected = self.launched.exec(process, &for_engine(spec), vec![engine.into(), theirs]).await?;
        Ok((connected, handover))
    }
}

/// What an engine that was made has been given, until it has come to run that.
pub(crate) struct Pending {
    handover: Handover,
    view: View,
}

impl Pending {
    /// Waits until the engine, which is `process`, says that it is about to run what it is for, or has run it to its end.
    ///
    /// # Errors
    /// `Invalid` with the engine's sentence when it refuses that; the host's if it does not answer.
    pub(crate) async fn wait_until_ready(self, process: &Child) -> Result<()> {
        let Self { handover, view: _view } = self;
        handover.wait_until_ready(process, READY_LIMIT).await
    }
}

/// The guest's view of files, as its engine, which is the `first` process, has it by now.
async fn view_of(first: &Process) -> Result<View> {
    let pid = first.pid();
    let view = blocking(move || {
        open_directory_of(pid, Path::new(VIEW_ROOT)).doing(|| "cannot look into the container".into())
    });
    let view = view.await;
    // Whose pid it was: as long as the engine can be signalled, nobody else has it.
    first.signal(0)?;
    Ok(View(view?))
}

/// A connection to the engine of the guest of the container in `bundle`, if it listens.
fn ask(bundle: &Path) -> Result<Option<File>> {
    call_socket::ask(bundle).map_err(|error| match error.kind() {
        ErrorKind::WouldBlock => Error::new(
            Kind::Conflict,
            "too many questions wait for the engine of the guest: try again when it has answered some",
        ),
        _ => Error::host("cannot connect to the call socket", error),
    })
}
