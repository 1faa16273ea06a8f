//! The node: where its containerd is, how it is restarted, what its CRI reports. Everything that is done to a node goes through
//! the files of this folder; what should be done is decided elsewhere.

pub(crate) mod containerd;
pub(crate) mod cri;
pub(crate) mod files;
pub(crate) mod restart;
pub(crate) mod restraint;
mod run;
pub(crate) mod seen;
pub(crate) mod trust;
mod xattr;

use std::fs::File;
use std::path::{Path, PathBuf};
use std::time::Duration;

use nix::fcntl::{Flock, FlockArg};
use tokio::time::{Instant, sleep};

use crate::config::dump::Dump;
use crate::config::layout::{self, Layout};
use crate::error::{Context, Error, Result};
use crate::node::containerd::Containerd;
use crate::node::cri::Reported;
use crate::node::files::Host;
use crate::node::restart::Restart;

/// The time between two questions to the CRI while waiting for it.
const PAUSE: Duration = Duration::from_millis(200);
/// The directory that is locked while a node is changed.
const LOCKED: &str = "/var/lib";

/// The command line's options for the node.
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
        let found = layout::known().into_iter().find(|(sign, _)| host.exists(sign));
        let mut layout = found.map_or_else(layout::plain, |(_, layout)| layout);
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

    /// Keeps other runs of this tool away from the node until the lock is dropped. It is on a directory that every node has, so
    /// that nothing has to be created for it.
    pub(crate) fn lock(&self) -> Result<Flock<File>> {
        let directory = File::open(self.host.place(Path::new(LOCKED))?).or_host(format!("cannot open `{LOCKED}`"))?;
        Flock::lock(directory, FlockArg::LockExclusiveNonblock)
            .map_err(|_| Error::refused("another skiff-node is changing this node"))
    }

    /// The current configuration, as containerd prints it.
    pub(crate) async fn dump(&self) -> Result<Dump> {
        self.containerd.dump(&self.host, &self.layout.config).await
    }

    /// How containerd can be restarted.
    ///
    /// # Errors
    /// A refusal where it cannot; ask before anything is changed.
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

    /// Restarts containerd and waits until `missing` finds nothing missing from what its CRI reports.
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
