//! The node as a whole: where its containerd is, how it is restarted, what its CRI reports.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::time::Duration;

use nix::fcntl::{Flock, FlockArg};
use tokio::time::{Instant, sleep};

use crate::containerd::Containerd;
use crate::cri::{self, Reported};
use crate::dump::Dump;
use crate::error::{Context, Error, Result};
use crate::host::Host;
use crate::layout::{self, Layout};
use crate::restart::Restart;

/// How often the CRI is asked while it is waited for.
const PAUSE: Duration = Duration::from_millis(200);
/// The directory that is locked while a node is changed.
const LOCKED: &str = "/var/lib";

/// What the command line says about the node.
#[derive(Clone, Debug)]
pub(crate) struct Options {
    pub(crate) host: PathBuf,
    pub(crate) containerd: Option<PathBuf>,
    pub(crate) config: Option<PathBuf>,
    pub(crate) socket: Option<PathBuf>,
    pub(crate) unit: Option<String>,
    pub(crate) restart_command: Option<String>,
    pub(crate) restart_by_signal: bool,
    pub(crate) limit: Duration,
}

/// A node.
#[derive(Clone, Debug)]
pub(crate) struct Node {
    pub(crate) host: Host,
    pub(crate) layout: Layout,
    pub(crate) containerd: Containerd,
    restart: Option<Restart>,
    limit: Duration,
}

impl Node {
    /// Finds the node's containerd.
    pub(crate) fn find(options: Options) -> Result<Self> {
        let host = Host::new(options.host);
        let mut layout = layout::find(&host);
        if let Some(config) = options.config {
            layout = Layout { config, template: None, ..layout };
        }
        if let Some(socket) = options.socket {
            layout.socket = socket;
        }
        if let Some(unit) = options.unit {
            layout.units = vec![unit];
        }
        let restart = options.restart_by_signal.then_some(Restart::Signal);
        let restart = options.restart_command.map(Restart::Command).or(restart);
        let containerd = Containerd::find(&host, &layout, options.containerd, options.limit)?;
        Ok(Self { host, layout, containerd, restart, limit: options.limit })
    }

    /// Keeps other runs of this tool from the node until the answer is dropped. The lock is on a directory that every node
    /// has, so that nothing is made for it.
    pub(crate) fn lock(&self) -> Result<Flock<File>> {
        let directory = File::open(self.host.place(Path::new(LOCKED))?).or_host(format!("cannot open `{LOCKED}`"))?;
        Flock::lock(directory, FlockArg::LockExclusiveNonblock)
            .map_err(|_| Error::refused("another skiff-node is at work on this node"))
    }

    /// What containerd makes of its configuration as it is.
    pub(crate) async fn dump(&self) -> Result<Dump> {
        self.containerd.dump(&self.host, &self.layout.config).await
    }

    /// How containerd can be restarted; a node where it cannot is refused before anything is changed.
    pub(crate) async fn restart(&self) -> Result<Restart> {
        match &self.restart {
            Some(restart) => Ok(restart.clone()),
            None => Restart::find_unit(&self.host, &self.layout, self.limit).await,
        }
    }

    fn socket(&self) -> Result<PathBuf> {
        self.host.place(&self.layout.socket)
    }

    /// What the CRI reports now.
    pub(crate) async fn report(&self) -> Result<Reported> {
        cri::report(&self.socket()?).await
    }

    /// Restarts containerd and waits until its CRI reports what `missing` misses nothing in.
    pub(crate) async fn restart_until(
        &self,
        restart: &Restart,
        missing: impl Fn(&Reported) -> Option<String>,
    ) -> Result<()> {
        restart.restart(&self.host, &self.socket()?, self.limit).await?;
        let deadline = Instant::now() + self.limit;
        loop {
            let reason = match self.report().await {
                Ok(reported) => missing(&reported),
                Err(error) => Some(error.to_string()),
            };
            let Some(reason) = reason else { return Ok(()) };
            if Instant::now() > deadline {
                return Err(Error::host(format!("{reason}, {} s after the restart", self.limit.as_secs())));
            }
            sleep(PAUSE).await;
        }
    }
}
