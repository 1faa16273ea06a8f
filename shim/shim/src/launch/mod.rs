//! What makes and ends the processes of containers: chosen from the specification, and found again by the record after a crash.

mod criu;
mod exec_files;
mod filters;
mod launcher;
mod own;
mod runc;
mod scope;
mod stage;

use std::path::Path;
use std::sync::Arc;

use crate::error::Result;
use crate::host::record::{LauncherName, Record};
use crate::settings::Settings;
use crate::spec::config::Config;
use crate::spec::sandbox::{SandboxNamespaces, held_by_the_shim};

pub(crate) use launcher::{Attachment, Launched, Launcher};

/// Who makes a container.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Choice {
    /// The shim itself, which holds these namespaces of a sandbox without a process.
    Shim(SandboxNamespaces),
    Launcher(LauncherName),
}

/// Chooses who makes the container of `config`.
pub(crate) fn choose(config: &Config, settings: &Settings) -> Choice {
    match held_by_the_shim(config) {
        Some(namespaces) => Choice::Shim(namespaces),
        None if settings.own_launcher => Choice::Launcher(LauncherName::Own),
        None => Choice::Launcher(LauncherName::OciRuntime),
    }
}

/// The launcher `name` of the container `id`, which `record` describes.
pub(crate) fn launcher(name: LauncherName, record: &Record, id: &str, bundle: &Path) -> Result<Arc<dyn Launcher>> {
    match name {
        LauncherName::OciRuntime => Ok(Arc::new(runc::OciRuntime::new(record, id, bundle)?)),
        LauncherName::Own => Ok(Arc::new(own::Own::new(record, id, bundle)?)),
    }
}

/// The launcher of a container whose shim is gone, if `record` names one.
pub(crate) fn recover(record: &Record, id: &str, bundle: &Path) -> Result<Option<Arc<dyn Launcher>>> {
    record.launcher.map(|name| launcher(name, record, id, bundle)).transpose()
}
