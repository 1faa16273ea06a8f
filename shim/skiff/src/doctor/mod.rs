//! `skiff doctor`: checks a node and reports, line by line, what is there, what is missing and what to do about it.
//! It changes nothing.

mod ask;
mod cache;
mod check;
mod compiler;
mod containerd;
mod node;
mod programs;
mod running;
mod runtime;

use std::path::{Path, PathBuf};

use clap::Args;
use skiff_protocol::names::CACHE_DIR;

use self::check::{Check, Status};
use self::containerd::Containerd;
use crate::error::{Error, Result};
use crate::output;

/// The default of the runtime's option `BinaryName`.
const OCI_RUNTIME: &str = "runc";

/// What to check.
#[derive(Debug, Args)]
pub(crate) struct Arguments {
    /// Print JSON.
    #[arg(long)]
    json: bool,
    /// The directory of the compiled-code cache [default: the runtime's option `CacheDir` in containerd's configuration].
    #[arg(long)]
    cache_dir: Option<PathBuf>,
    /// The OCI runtime [default: the runtime's option `BinaryName` in containerd's configuration].
    #[arg(long)]
    oci_runtime: Option<PathBuf>,
    /// containerd's program [default: the one that runs].
    #[arg(long)]
    containerd: Option<PathBuf>,
    /// containerd's configuration file [default: that of the containerd that runs].
    #[arg(long)]
    containerd_config: Option<PathBuf>,
}

/// Checks the node and prints what it finds.
///
/// # Errors
/// When a check failed, with their count; when standard output cannot be written.
pub(crate) fn doctor(arguments: &Arguments) -> Result<()> {
    let (program, config) = (arguments.containerd.as_deref(), arguments.containerd_config.as_deref());
    let containerd = Containerd::look(program, config, Path::new("/proc"));
    let or_option = |argument: &Option<PathBuf>, option, default: &str| {
        argument.clone().or_else(|| containerd.option(option)).unwrap_or_else(|| default.into())
    };
    let runtime = or_option(&arguments.oci_runtime, "BinaryName", OCI_RUNTIME);
    let cache = or_option(&arguments.cache_dir, "CacheDir", CACHE_DIR);
    let mut checks = programs::check();
    checks.push(runtime::check(&runtime, &containerd.path, containerd.is_running));
    checks.push(node::check_cgroups());
    checks.push(node::check_system_calls());
    checks.push(node::check_landlock());
    checks.push(compiler::check());
    checks.extend(cache::check(&cache));
    checks.extend(containerd.checks());
    if arguments.json {
        output::print_json(&checks)?
    } else {
        output::print(text(&checks))?
    }
    match checks.iter().filter(|check| check.status == Status::Fail).count() {
        0 => Ok(()),
        1 => Err(Error::host("a check failed: no wasm container starts on this node")),
        failed => Err(Error::host(format!("{failed} checks failed: no wasm container starts on this node"))),
    }
}

fn text(checks: &[Check]) -> String {
    let line = |check: &Check| {
        let status = match check.status {
            Status::Ok => "ok",
            Status::Warn => "warn",
            Status::Fail => "fail",
        };
        let advice = check.advice.as_ref().map(|advice| format!(" -> {advice}")).unwrap_or_default();
        format!("{status:<5}{:<16}{}{advice}", check.name, check.found)
    };
    checks.iter().map(line).collect::<Vec<_>>().join("\n")
}
