//! Runs the node's own programs, in the node's root directory.

use std::ffi::{CString, OsStr};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::process::Stdio;
use std::time::Duration;

use tokio::process::Command;
use tokio::time::timeout;

use crate::error::{Context, Error, Result};
use crate::host::Host;

/// Where the node's programs look for others.
const PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin:/opt/bin:/snap/bin";

/// What a program said.
#[derive(Debug)]
pub(crate) struct Said {
    /// Whether it ended with 0.
    pub(crate) is_success: bool,
    pub(crate) stdout: String,
    pub(crate) stderr: String,
}

/// Runs `program` with the node's root as its own, and ends it when it takes longer than `limit`.
pub(crate) async fn run<S: AsRef<OsStr>>(host: &Host, program: &Path, words: &[S], limit: Duration) -> Result<Said> {
    let mut command = Command::new(program);
    command.args(words).env_clear().env("PATH", PATH).stdin(Stdio::null()).kill_on_drop(true);
    // systemctl does nothing in a changed root directory unless it is told that this is meant.
    command.env("SYSTEMD_IGNORE_CHROOT", "1");
    if host.root() != Path::new("/") {
        enter(&mut command, host)?;
    }
    let shown = program.display();
    let output = timeout(limit, command.output()).await;
    let output = output.map_err(|_| Error::host(format!("`{shown}` did not end within {} s", limit.as_secs())))?;
    let output = output.or_host(format!("cannot run `{shown}`"))?;
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).trim().to_owned();
    Ok(Said { is_success: output.status.success(), stdout: text(&output.stdout), stderr: text(&output.stderr) })
}

fn enter(command: &mut Command, host: &Host) -> Result<()> {
    let root = CString::new(host.root().as_os_str().as_bytes()).or_host("cannot enter the node's root")?;
    let enter = move || {
        nix::unistd::chroot(root.as_c_str())?;
        nix::unistd::chdir(c"/")?;
        Ok(())
    };
    // SAFETY: between fork and exec the closure makes two system calls with texts made before, and allocates nothing.
    unsafe { command.pre_exec(enter) };
    Ok(())
}
