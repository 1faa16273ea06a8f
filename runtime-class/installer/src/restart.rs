//! Makes containerd read its configuration again.

use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::Duration;

use nix::sys::signal::{Signal, kill};
use nix::sys::socket::{getsockopt, sockopt::PeerCredentials};
use nix::unistd::Pid;
use tokio::time::{Instant, sleep};

use crate::command;
use crate::error::{Context, Error, Result};
use crate::host::Host;
use crate::layout::Layout;

const SYSTEMCTL: [&str; 2] = ["/usr/bin/systemctl", "/bin/systemctl"];
const SHELL: &str = "/bin/sh";
/// How often a process that was told to end is looked for.
const PAUSE: Duration = Duration::from_millis(50);

/// How containerd is restarted.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Restart {
    /// `systemctl restart UNIT`.
    Unit { systemctl: PathBuf, unit: String },
    /// A line for the node's shell.
    Command(String),
    /// SIGTERM to the process that listens, which something else starts again.
    Signal,
}

impl Restart {
    /// The active unit of the layout.
    pub(crate) async fn find_unit(host: &Host, layout: &Layout, limit: Duration) -> Result<Self> {
        let systemctl = SYSTEMCTL.iter().map(Path::new).find(|program| host.is_program(program));
        let Some(systemctl) = systemctl else {
            return Err(Error::refused("the node has no systemctl; say `--restart-command` or `--restart-by-signal`"));
        };
        let mut reason = String::new();
        for unit in &layout.units {
            let said = command::run(host, systemctl, &["is-active", "--quiet", unit], limit).await?;
            if said.is_success {
                return Ok(Self::Unit { systemctl: systemctl.into(), unit: unit.clone() });
            }
            // It says something only when it could not ask.
            if !said.stderr.is_empty() {
                reason = format!(" ({})", said.stderr);
            }
        }
        let units = layout.units.join("`, `");
        Err(Error::refused(format!("no unit is active of `{units}`{reason}; say `--restart-command` or `--unit`")))
    }

    /// Restarts containerd, whose socket is at `socket` for this process.
    pub(crate) async fn restart(&self, host: &Host, socket: &Path, limit: Duration) -> Result<()> {
        let (program, words) = match self {
            Self::Unit { systemctl, unit } => (systemctl.as_path(), ["restart", unit]),
            Self::Command(line) => (Path::new(SHELL), ["-c", line]),
            Self::Signal => return end_listener(socket, limit).await,
        };
        let said = command::run(host, program, &words, limit).await?;
        if said.is_success {
            return Ok(());
        }
        Err(Error::host(format!("containerd cannot be restarted: `{}` says {}", words.join(" "), said.stderr)))
    }
}

/// Tells the process that listens on `socket` to end, and waits until it has.
async fn end_listener(socket: &Path, limit: Duration) -> Result<()> {
    let shown = socket.display();
    let stream = UnixStream::connect(socket).or_host(format!("cannot connect to `{shown}`"))?;
    let peer = getsockopt(&stream, PeerCredentials).or_host(format!("cannot see who listens on `{shown}`"))?;
    // 0 stands for a process of another pid namespace; the first of a namespace is nothing that is restarted.
    if peer.pid() <= 1 {
        return Err(Error::host("a restart by signal needs the node's pid namespace"));
    }
    // containerd serves its connections to their end before its own.
    drop(stream);
    let pid = Pid::from_raw(peer.pid());
    kill(pid, Signal::SIGTERM).or_host(format!("cannot end containerd, process {pid}"))?;
    let deadline = Instant::now() + limit;
    while kill(pid, None).is_ok() {
        if Instant::now() > deadline {
            return Err(Error::host(format!("containerd, process {pid}, does not end")));
        }
        sleep(PAUSE).await;
    }
    Ok(())
}
