//! `skiff doctor`: looks over a node and says, line by line, what is there, what is missing and what to do about it. It
//! changes nothing.

mod cache;
mod compiler;
mod containerd;
mod node;
mod programs;
mod runtime;

use std::io::{self, Write};
use std::path::PathBuf;

use clap::Args;
use serde::Serialize;

use crate::error::{Context, Error, Result};

/// What to look over.
#[derive(Debug, Args)]
pub(crate) struct Arguments {
    /// Print JSON.
    #[arg(long)]
    json: bool,
    /// The directory of the compiled-code cache, as the runtime's option `CacheDir` says.
    #[arg(long, default_value = "/var/lib/skiff/cache")]
    cache_dir: PathBuf,
    /// The OCI runtime, as the runtime's option `BinaryName` says.
    #[arg(long, default_value = "runc")]
    oci_runtime: PathBuf,
    /// containerd's program.
    #[arg(long, default_value = "containerd")]
    containerd: PathBuf,
    /// containerd's configuration file [default: containerd's own].
    #[arg(long)]
    containerd_config: Option<PathBuf>,
}

/// How a check went.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
enum Status {
    Ok,
    /// Something does not work that not everybody needs.
    Warn,
    /// No wasm container starts.
    Fail,
}

/// One line of the report.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
struct Check {
    name: &'static str,
    status: Status,
    found: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    advice: Option<String>,
}

impl Check {
    fn ok(name: &'static str, found: impl Into<String>) -> Self {
        Self { name, status: Status::Ok, found: found.into(), advice: None }
    }

    fn warn(name: &'static str, found: impl Into<String>, advice: impl Into<String>) -> Self {
        Self { name, status: Status::Warn, found: found.into(), advice: Some(advice.into()) }
    }

    fn fail(name: &'static str, found: impl Into<String>, advice: impl Into<String>) -> Self {
        Self { name, status: Status::Fail, found: found.into(), advice: Some(advice.into()) }
    }
}

/// Looks over the node and prints what it finds.
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
