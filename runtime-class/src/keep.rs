//! `keep`: makes the node what the cluster wants it to be, and again whenever something makes it another.
//!
//! A node where a change failed is tried less and less often: each try may restart its containerd. One that refused was not
//! touched, and may be asked as often as one likes.

use std::time::Duration;

use clap::ValueEnum;
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::time::timeout;

use crate::error::{Context, Result};
use crate::label::Label;
use crate::node::Node;
use crate::programs;
use crate::record::Record;
use crate::status::Status;
use crate::{Job, say, take_away};

/// The longest time between two tries.
const PAUSE_MAX: Duration = Duration::from_secs(3600);
/// How often the end of the last wasm pod is looked for.
const PODS_PAUSE: Duration = Duration::from_secs(2);

/// What a node is to be.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Wanted {
    /// It has skiff, and its label.
    Installed,
    /// It is as it was before skiff.
    Removed,
}

impl Wanted {
    /// The word for the command line and its variable.
    pub(crate) const fn word(self) -> &'static str {
        match self {
            Self::Installed => "installed",
            Self::Removed => "removed",
        }
    }
}

/// Keeps the node as it is wanted, until this process is told to end.
pub(crate) async fn keep(job: &Job, wanted: Wanted, find: impl Fn() -> Result<Node>, interval: Duration) -> Result<()> {
    let mut ends = Ends::new()?;
    let mut keeper = Keeper { job, is_first: true, said: String::new() };
    let mut pause = interval;
    loop {
        let done = match (wanted, find()) {
            (_, Err(error)) => Err(error),
            (Wanted::Installed, Ok(node)) => keeper.install(&node).await,
            (Wanted::Removed, Ok(node)) => take_away(&node, job.labels.as_ref(), Duration::ZERO).await,
        };
        pause = match (done, wanted) {
            (Ok(()), Wanted::Installed) => interval,
            // Nobody brings it back.
            (Ok(()), Wanted::Removed) => {
                ends.one().await;
                return Ok(());
            }
            (Err(error), _) => {
                keeper.say_once(error.to_string());
                match wanted {
                    _ if !error.is_refusal() => (pause * 2).min(PAUSE_MAX),
                    Wanted::Installed => interval,
                    Wanted::Removed => PODS_PAUSE,
                }
            }
        };
        if timeout(pause, ends.one()).await.is_ok() {
            return Ok(());
        }
    }
}

struct Keeper<'a> {
    job: &'a Job,
    is_first: bool,
    /// What was said last, which is not said again.
    said: String,
}

impl Keeper<'_> {
    fn say_once(&mut self, line: String) {
        if self.said != line {
            say(&line);
            self.said = line;
        }
    }

    fn label(&self, label: Label) -> Result<()> {
        self.job.labels.iter().try_for_each(|labels| labels.set(label))
    }

    async fn install(&mut self, node: &Node) -> Result<()> {
        let status = Status::of(node, Some(&self.job.source.id), self.job.to.as_deref()).await;
        if status.ready && !self.is_first {
            self.said.clear();
            // Somebody may have taken the label away, or registered the node anew.
            self.label(Label::Present)?;
            return prune(node);
        }
        self.is_first = false;
        if self.said.is_empty() {
            status.reasons.iter().for_each(|reason| say(reason));
        }
        let done = self.job.install(node).await;
        // No pod is to be sent to a node where it cannot start.
        if done.is_err() && node.report().await.is_ok_and(|now| !now.has_handler()) {
            self.label(Label::Absent)?;
        }
        done
    }
}

/// Removes programs of which the last pod has ended since.
fn prune(node: &Node) -> Result<()> {
    let _lock = node.lock()?;
    let Some(record) = Record::load(&node.host)? else { return Ok(()) };
    programs::prune(&node.host, &record.programs.root, record.programs.version.as_deref())
}

/// The signals that tell this process to end. The first process of a container would not hear them otherwise.
pub(crate) struct Ends {
    terminate: Signal,
    interrupt: Signal,
}

impl Ends {
    pub(crate) fn new() -> Result<Self> {
        let doing = "cannot wait for signals";
        Ok(Self {
            terminate: signal(SignalKind::terminate()).or_host(doing)?,
            interrupt: signal(SignalKind::interrupt()).or_host(doing)?,
        })
    }

    /// Waits for one of them.
    pub(crate) async fn one(&mut self) {
        tokio::select! {
            _ = self.terminate.recv() => {}
            _ = self.interrupt.recv() => {}
        }
    }
}
