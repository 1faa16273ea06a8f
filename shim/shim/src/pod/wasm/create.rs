//! Making a wasm container: its specification is rewritten for the engine, and the guest is handed over to it.

use std::sync::{Arc, Mutex};
use std::time::Duration;

use skiff_linux::cgroup::Cgroup;
use skiff_protocol::{Account, EnginePlan, MemoryLimit};
use tokio::sync::Semaphore;

use crate::code::Compiled;
use crate::error::{Context, Error, Kind, Result};
use crate::host::engine::open_engine;
use crate::host::kernel_files::KernelFiles;
use crate::host::lookup::resolve;
use crate::host::reader::{blocking, read_apart};
use crate::host::stdio::Voice;
use crate::host::termination_log::TerminationLog;
use crate::host::{account, call_socket, memory_limits};
use crate::launch::Launched;
use crate::pod::launched::{Created, LaunchedContainer, Parts};
use crate::pod::places::Places;
use crate::pod::process::Process;
use crate::pod::streams::attachment_for;
use crate::pod::wasm::Wasm;
use crate::pod::wasm::handover::{Given, Handover, control_socket};
use crate::request::CreateRequest;
use crate::settings::Settings;
use crate::spec::config::Config;
use crate::spec::termination::kubelets_file;
use crate::spec::wasm::{self, Entrypoint};

/// How many programs of further processes of a container are looked for at once.
const LOOKING_MAX: usize = 4;
/// How long compiling takes at least if the container's owner is told: as long as people wait without wondering.
const WORTH_SAYING: Duration = Duration::from_secs(10);

impl Wasm {
    /// Refuses what the module `name` cannot be run with, before it is compiled.
    ///
    /// # Errors
    /// `Unsupported` for a restore.
    pub(crate) fn check(request: &CreateRequest, name: &str) -> Result<()> {
        if request.checkpoint.is_empty() {
            return Ok(());
        }
        Err(Error::new(Kind::Unsupported, format!("restore is not implemented for a wasm container (`{name}`)")))
    }

    /// Makes a container whose engine waits to be started, and hands the guest over: the export `function` of `code`, or its
    /// default entry point.
    pub(crate) async fn create(
        parts: Parts<'_>,
        code: Compiled,
        function: Option<String>,
        settings: Settings,
    ) -> Result<Created<Self>> {
        let stdio = &parts.request.stdio;
        let (attachment, pending) = attachment_for(stdio, &parts.owner).await?;
        let (config, mut plan) = rewrite(parts.config.clone(), code.name().into(), function).await?;
        let termination_log = termination_log_of(&parts.config).await?;
        let (control, theirs) = control_socket()?;
        let voice = pending.voice(&attachment, stdio)?;
        if let (Some(took), Some(voice)) = (code.took(), &voice) {
            say_how_long_it_took(code.name(), took, voice);
        }
        let engine = open_engine().doing(|| "cannot open the engine".into())?;
        let bundle = &parts.request.bundle;
        // While others make the container.
        let meanwhile = async {
            let account = Account::create().and_then(|account| account::show_in(bundle, account));
            let account = account.doing(|| "cannot make the account of the guest's memory".into())?;
            Ok((account, call_socket::listen(bundle).doing(|| "cannot make the call socket".into())?))
        };
        let launching = parts.launcher.create(&config, attachment, vec![engine.into(), theirs]);
        let (launched, meanwhile) = tokio::join!(launching, meanwhile);
        let (Launched { child, cgroup }, (account, calls)) = (launched?, meanwhile?);
        plan.processors = cgroup.processors();
        let (tenant, guest) = (code.tenant().clone(), EnginePlan { args: vec![], env: vec![], ..plan.clone() });
        let memory_limits = limits_of(&parts.request.id, &cgroup)?;
        let given = Given { code: Some(code), plan, account: account.clone(), memory_limits, calls: Some(calls) };
        let handover = Handover::send(given, control)?;
        let attached = pending.complete(stdio).await?;
        let first = Process::created("", stdio.clone(), child, attached);
        let bundle = parts.request.bundle.clone();
        let kind = Self {
            launched: LaunchedContainer::new(parts, cgroup),
            places: Places::new(account.clone()),
            looking: Arc::new(Semaphore::new(LOOKING_MAX)),
            bundle,
            guest,
            settings,
            tenant,
            handover: tokio::sync::Mutex::new(Some(Box::new(handover))),
            voice: Mutex::new(voice),
            termination_log,
            account,
        };
        Ok(Created { first, kind })
    }
}

/// The specification for the engine, and its plan. Waits for as long as the volumes do.
async fn rewrite(config: Arc<Config>, module: String, function: Option<String>) -> Result<(Config, EnginePlan)> {
    let rewrite = move || {
        let kernel = KernelFiles::default();
        let rootfs = &config.root.path;
        let node = wasm::Node { resolve: &|path| resolve(rootfs, path), shown_by: &|source| kernel.shown_by(source) };
        let entrypoint = Entrypoint { module: &module, function: function.as_deref() };
        wasm::for_engine(Config::clone(&config), &entrypoint, &node)
    };
    read_apart(rewrite).await
}

/// The kubelet's file for the container's last words. Nothing of the container runs yet.
async fn termination_log_of(config: &Config) -> Result<Option<Arc<TerminationLog>>> {
    match kubelets_file(config) {
        Some(path) => blocking(move || Ok(TerminationLog::open(&path).map(Arc::new))).await,
        None => Ok(None),
    }
}

/// Explains a slow first start where the owner looks.
fn say_how_long_it_took(name: &str, took: Duration, voice: &Voice) {
    if took >= WORTH_SAYING {
        let seconds = took.as_secs();
        let line = format!("skiff: compiling {name} took {seconds} s; this node keeps the code for the next start");
        if let Err(error) = voice.say(&line) {
            log::warn!("cannot write to the container's output: {error}: {line}");
        }
    }
}

/// The memory limits of the container `id`.
pub(super) fn limits_of(id: &str, cgroup: &Cgroup) -> Result<Vec<MemoryLimit>> {
    let limits = memory_limits::open(cgroup).doing(|| "cannot open the memory limits".into())?;
    if limits.is_empty() {
        log::warn!("container `{}` has no memory cgroup: only the engine limits its memory", id);
    }
    Ok(limits)
}
