//! Makes containerd read its configuration again.

use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::Duration;

use nix::sys::signal::{Signal, kill};
use nix::sys::socket::{getsockopt, sockopt::PeerCredentials};
use nix::unistd::Pid;
use tokio::time::{Instant, sleep};

use crate::config::layout::Layout;
use crate::error::{Context, Error, Result};
use crate::node::files::Host;
use crate::node::run::run;

const SYSTEMCTL: [&str; 2] = ["/usr/bin/systemctl", "/bin/systemctl"];
const SHELL: &str = "/bin/sh";
/// The time between two looks at a process that has received SIGTERM.
const PAUSE: Duration = Duration::from_millis(50);

/// How containerd is restarted.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Restart {
    /// `systemctl restart UNIT`.
    Unit { systemctl: PathBuf, unit: String },
    /// A line for the node's shell.
    Command(String),
    /// SIGTERM to the listening process, which something else starts again.
    Signal,
}

impl Restart {
    /// The active unit of the layout.
    pub(crate) async fn find_unit(host: &Host, layout: &Layout, limit: Duration) -> Result<Self> {
        let systemctl = SYSTEMCTL.iter().map(Path::new).find(|program| host.is_program(program));
        let Some(systemctl) = systemctl else {
            return Err(Error::refused("the node has no systemctl: use `--restart-command` or `--restart-by-signal`"));
        };
        let mut reason = String::new();
        for unit in &layout.units {
            let said = run(host, systemctl, &["is-active", "--quiet", unit], limit).await?;
            if said.is_success {
                return Ok(Self::Unit { systemctl: systemctl.into(), unit: unit.clone() });
            }
            // It prints something only when it cannot ask systemd.
            if !said.stderr.is_empty() {
                reason = format!(" ({})", said.stderr);
            }
        }
        let units = layout.units.join("`, `");
        Err(Error::refused(format!(
            "none of the units `{units}` is active{reason}: use `--restart-command` or `--unit`"
        )))
    }

    /// Restarts containerd; `socket` is where this process finds its socket.
    pub(crate) async fn restart(&self, host: &Host, socket: &Path, limit: Duration) -> Result<()> {
        let (program, words) = match self {
            Self::Unit { systemctl, unit } => (systemctl.as_path(), ["restart", unit]),
            Self::Command(line) => (Path::new(SHELL), ["-c", line]),
            Self::Signal => return end_listener(socket, limit).await,
        };
        let said = run(host, program, &words, limit).await?;
        if said.is_success {
            return Ok(());
        }
        Err(Error::host(format!("cannot restart containerd: `{}` failed: {}", words.join(" "), said.stderr)))
    }
}

/// Ends the process that listens on `socket`, and waits for its end.
async fn end_listener(socket: &Path, limit: Duration) -> Result<()> {
    let shown = socket.display();
    let stream = UnixStream::connect(socket).or_host(format!("cannot connect to `{shown}`"))?;
    let peer =
        getsockopt(&stream, PeerCredentials).or_host(format!("cannot find out which process listens on `{shown}`"))?;
    // 0 is a process of another pid namespace; the first process of a namespace is never restarted.
    if peer.pid() <= 1 {
        return Err(Error::host("a restart by signal needs the node's pid namespace"));
    }
    // containerd serves its open connections to their end before it exits.
    drop(stream);
    let pid = Pid::from_raw(peer.pid());
    kill(pid, Signal::SIGTERM).or_host(format!("cannot end containerd, process {pid}"))?;
    let deadline = Instant::now() + limit;
    while kill(pid, None).is_ok() {
        if Instant::now() > deadline {
            return Err(Error::host(format!("containerd (process {pid}) does not end")));
        }
        sleep(PAUSE).await;
    }
    Ok(())
}
