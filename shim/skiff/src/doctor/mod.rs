//! `skiff doctor`: checks a node and reports, line by line, what is there, what is missing and what to do about it.
//! It changes nothing.

mod cache;
mod check;
mod compiler;
mod containerd;
mod node;
mod programs;
mod runtime;

use std::io::{self, Write};
use std::path::PathBuf;

use clap::Args;

use self::check::{Check, Status};
use crate::error::{Context, Error, Result};

/// What to check.
#[derive(Debug, Args)]
pub(crate) struct Arguments {
    /// Print JSON.
    #[arg(long)]
    json: bool,
    /// The directory of the compiled-code cache, as in the runtime's option `CacheDir`.
    #[arg(long, default_value = skiff_protocol::names::CACHE_DIR)]
    cache_dir: PathBuf,
    /// The OCI runtime, as in the runtime's option `BinaryName`.
    #[arg(long, default_value = "runc")]
    oci_runtime: PathBuf,
    /// containerd's program.
    #[arg(long, default_value = "containerd")]
    containerd: PathBuf,
    /// containerd's configuration file [default: containerd's own].
    #[arg(long)]
    containerd_config: Option<PathBuf>,
}

/// Checks the node and prints what it finds.
///
/// # Errors
/// When a check failed, with their count; when standard output cannot be written.
pub(crate) fn doctor(arguments: &Arguments) -> Result<()> {
    let mut checks = programs::check();
    checks.push(runtime::check(&arguments.oci_runtime));
    checks.push(node::check_cgroups());
    checks.push(node::check_system_calls());
    checks.push(node::check_landlock());
    checks.push(compiler::check());
    checks.extend(cache::check(&arguments.cache_dir));
    checks.extend(containerd::check(&arguments.containerd, arguments.containerd_config.as_deref()));
    print(&checks, arguments.json).or_host("cannot write to standard output")?;
    match checks.iter().filter(|check| check.status == Status::Fail).count() {
        0 => Ok(()),
        1 => Err(Error::host("a check failed: no wasm container starts on this node")),
        failed => Err(Error::host(format!("{failed} checks failed: no wasm container starts on this node"))),
    }
}

fn print(checks: &[Check], is_json: bool) -> io::Result<()> {
    let mut out = io::stdout().lock();
    if is_json {
        return writeln!(out, "{}", serde_json::to_string(checks)?);
    }
    for check in checks {
        let status = match check.status {
            Status::Ok => "ok",
            Status::Warn => "warn",
            Status::Fail => "fail",
        };
        write!(out, "{status:<5}{:<16}{}", check.name, check.found)?;
        match &check.advice {
            Some(advice) => writeln!(out, " -> {advice}")?,
            None => writeln!(out)?,
        }
    }
    Ok(())
}
