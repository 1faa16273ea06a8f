//! Making a wasm container: its specification is rewritten for the engine, and the guest is handed over to it.

use std::fs::File;
use std::os::unix::net::UnixStream;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use skiff_linux::cgroup::Cgroup;
use skiff_protocol::{Account, EnginePlan};

use crate::code::Compiled;
use crate::error::{Context, Error, Kind, Result};
use crate::host::engine::open_engine;
use crate::host::kernel_files::KernelFiles;
use crate::host::lookup::resolve;
use crate::host::reader::read_apart;
use crate::host::stdio::say;
use crate::host::{account, memory_limits};
use crate::launch::{Attachment, Launched};
use crate::pod::launched::{Created, LaunchedContainer, Parts};
use crate::pod::process::Process;
use crate::pod::streams::attachment_for;
use crate::pod::wasm::Wasm;
use crate::pod::wasm::handover::{Handover, control_socket};
use crate::request::CreateRequest;
use crate::spec::config::Config;
use crate::spec::wasm::{self, Entrypoint};

/// How long compiling takes at least if the container's owner is told: as long as people wait without wondering.
const WORTH_SAYING: Duration = Duration::from_secs(10);

impl Wasm {
    /// Refuses what the module `name` cannot be run with, before it is compiled.
    ///
    /// # Errors
    /// `Unsupported` for a restore and for a terminal.
    pub(crate) fn check(request: &CreateRequest, name: &str) -> Result<()> {
        let unsupported =
            |what| Error::new(Kind::Unsupported, format!("{what} is not implemented for a wasm container (`{name}`)"));
        if !request.checkpoint.is_empty() {
            return Err(unsupported("restore"));
        }
        if request.stdio.terminal {
            return Err(unsupported("terminal"));
        }
        Ok(())
    }

    /// Makes a container whose engine waits to be started, and hands the guest over: the export `function` of `code`, or its
    /// default entry point.
    pub(crate) async fn create(parts: Parts<'_>, code: Compiled, function: Option<String>) -> Result<Created<Self>> {
        let stdio = &parts.request.stdio;
        let (attachment, pending) = attachment_for(stdio, &parts.owner).await?;
        let (config, mut plan) = rewrite(parts.config.clone(), code.name().into(), function).await?;
        let (control, theirs) = control_socket()?;
        let stderr = stderr_of(&attachment)?;
        if let (Some(took), Some(stderr)) = (code.took(), &stderr) {
            say_how_long_it_took(code.name(), took, stderr);
        }
        let engine = open_engine().doing(|| "cannot open the engine".into())?;
        let launched = parts.launcher.create(&config, attachment, vec![engine.into(), theirs]).await?;
        let Launched { child, cgroup } = launched;
        let account = Account::create().and_then(|account| account::show_in(&parts.request.bundle, account));
        let account = account.doing(|| "cannot make the account of the guest's memory".into())?;
        plan.processors = cgroup.processors();
        let handover = hand_over(parts.request, code, plan, account.clone(), &cgroup, control)?;
        let attached = pending.complete(stdio).await?;
        let first = Process::created("", stdio.clone(), child, attached);
        let kind = Self {
            launched: LaunchedContainer::new(parts, cgroup),
            handover: tokio::sync::Mutex::new(Some(Box::new(handover))),
            stderr: Mutex::new(stderr),
            account,
        };
        Ok(Created { first, kind })
    }
}

/// The specification for the engine, and its plan. Waits for as long as the volumes do.
async fn rewrite(config: Arc<Config>, module: String, function: Option<String>) -> Result<(Config, EnginePlan)> {
    let rewrite = move || {
        let kernel = KernelFiles::of_the_node().doing(|| "cannot look at the node's mounts".into())?;
        let rootfs = &config.root.path;
        let node = wasm::Node { resolve: &|path| resolve(rootfs, path), shown_by: &|source| kernel.shown_by(source) };
        let entrypoint = Entrypoint { module: &module, function: function.as_deref() };
        wasm::for_engine(Config::clone(&config), &entrypoint, &node)
    };
    read_apart(rewrite).await
}

fn stderr_of(attachment: &Attachment) -> Result<Option<File>> {
    match attachment {
        Attachment::Files(stdio) => stdio.stderr.try_clone().map(Some).doing(|| "cannot keep stderr open".into()),
        Attachment::Console(_) => Ok(None),
    }
}

/// Explains a slow first start where the owner looks.
fn say_how_long_it_took(name: &str, took: Duration, stderr: &File) {
    if took >= WORTH_SAYING {
        let seconds = took.as_secs();
        let line = format!("skiff: compiling {name} took {seconds} s; this node keeps the code for the next start\n");
        if let Err(error) = say(stderr, &line) {
            log::warn!("cannot write to the container's stderr: {error}: {line}");
        }
    }
}

fn hand_over(
    request: &CreateRequest,
    code: Compiled,
    plan: EnginePlan,
    account: Arc<File>,
    cgroup: &Cgroup,
    control: UnixStream,
) -> Result<Handover> {
    let limits = memory_limits::open(cgroup).doing(|| "cannot open the memory limits".into())?;
    if limits.is_empty() {
        log::warn!("container `{}` has no memory cgroup: only the engine limits its memory", request.id);
    }
    Handover::send(code, plan, account, limits, control)
}
