//! Runs the node's own programs in the node's root directory.

use std::ffi::{CString, OsStr};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::process::Stdio;
use std::time::Duration;

use skiff_linux::process::change_root;
use tokio::process::Command;
use tokio::time::timeout;

use crate::error::{Context, Error, Result};
use crate::node::files::Host;

/// Where the node's programs look for others.
const PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin:/opt/bin:/snap/bin";

/// What a program printed.
#[derive(Debug)]
pub(crate) struct Said {
    /// Whether it ended with 0.
    pub(crate) is_success: bool,
    pub(crate) stdout: String,
    pub(crate) stderr: String,
}

/// Runs `program` with the node's root as its own. A program that takes longer than `limit` is killed.
///
/// # Errors
/// When it cannot be started or takes too long. Its own failure is part of what is returned.
pub(crate) async fn run<S: AsRef<OsStr>>(host: &Host, program: &Path, words: &[S], limit: Duration) -> Result<Said> {
    let mut command = Command::new(program);
    command.args(words).env_clear().env("PATH", PATH).stdin(Stdio::null()).kill_on_drop(true);
    // In a changed root directory, systemctl does nothing without this variable.
    command.env("SYSTEMD_IGNORE_CHROOT", "1");
    if host.root() != Path::new("/") {
        let root = CString::new(host.root().as_os_str().as_bytes()).or_host("cannot enter the node's root")?;
        change_root(command.as_std_mut(), root);
    }
    let shown = program.display();
    let output = timeout(limit, command.output()).await;
    let output = output.map_err(|_| Error::host(format!("`{shown}` did not end within {} s", limit.as_secs())))?;
    let output = output.or_host(format!("cannot run `{shown}`"))?;
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).trim().to_owned();
    Ok(Said { is_success: output.status.success(), stdout: text(&output.stdout), stderr: text(&output.stderr) })
}
