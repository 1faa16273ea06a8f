//! `keep`: makes the node what the cluster wants it to be, and again whenever something makes it another.
//!
//! A node where a change failed is tried less and less often: each try may restart its containerd. So is one that somebody else
//! changes back each time. One that refused was not touched, and may be asked as often as one likes.

use std::path::Path;
use std::time::{Duration, Instant};

use clap::ValueEnum;
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::time::timeout;

use crate::error::{Context, Error, Result};
use crate::install::Done;
use crate::label::Label;
use crate::node::Node;
use crate::programs;
use crate::record::Record;
use crate::restraint::{Leave, MENDS_MAX, Restraint};
use crate::seen::{self, Seen};
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
pub(crate) async fn keep(mut keeper: Keeper<'_>, find: impl Fn() -> Result<Node>) -> Result<()> {
    let mut ends = Ends::new()?;
    seen::forget(keeper.seen)?;
    loop {
        let pause = keeper.turn(find()).await;
        if timeout(pause, ends.one()).await.is_ok() {
            return Ok(());
        }
    }
}

/// What looks at the node again and again.
pub(crate) struct Keeper<'a> {
    job: &'a Job,
    wanted: Wanted,
    interval: Duration,
    /// The file for `ready` and `status`.
    seen: &'a Path,
    start: Instant,
    restraint: Restraint,
    /// How long to wait after another change that fails.
    failure_pause: Duration,
    /// Whether this process has seen the node as it is wanted.
    was_right: bool,
    is_removed: bool,
    /// What was said last, which is not said again.
    said: String,
}

impl<'a> Keeper<'a> {
    pub(crate) fn new(job: &'a Job, wanted: Wanted, interval: Duration, seen: &'a Path) -> Self {
        Self {
            job,
            wanted,
            interval,
            seen,
            start: Instant::now(),
            restraint: Restraint::new(interval),
            failure_pause: interval,
            was_right: false,
            is_removed: false,
            said: String::new(),
        }
    }

    /// Looks at the node, and changes it if need be. Returns how long to wait until the next turn.
    async fn turn(&mut self, node: Result<Node>) -> Duration {
        let done = match (self.wanted, node) {
            (_, Err(error)) => Err(error),
            (Wanted::Installed, Ok(node)) => self.install(&node).await,
            (Wanted::Removed, Ok(node)) => self.remove(&node).await,
        };
        match done {
            Ok(reasons) => {
                self.failure_pause = self.interval;
                self.write(reasons, self.interval);
                self.interval
            }
            Err(error) => {
                self.say_once(error.to_string());
                let pause = self.pause_after(&error);
                self.write(vec![error.to_string()], pause);
                pause
            }
        }
    }

    fn pause_after(&mut self, error: &Error) -> Duration {
        match self.wanted {
            _ if !error.is_refusal() => {
                self.failure_pause = (self.failure_pause * 2).min(PAUSE_MAX);
                self.failure_pause
            }
            Wanted::Installed => self.interval,
            Wanted::Removed => PODS_PAUSE,
        }
    }

    fn say_once(&mut self, line: String) {
        if self.said != line {
            say(&line);
            self.said = line;
        }
    }

    /// Writes what the probe reads: the node is ready when there is no reason against it. The next look is after `pause`.
    fn write(&mut self, reasons: Vec<String>, pause: Duration) {
        let interval_seconds = pause.as_secs().max(1);
        let seen = Seen { ready: reasons.is_empty(), reasons, mends: self.restraint.mends(), interval_seconds };
        if let Err(error) = seen.write(self.seen) {
            self.say_once(error.to_string());
        }
    }

    fn label(&self, label: Label) -> Result<()> {
        self.job.labels.iter().try_for_each(|labels| labels.set(label))
    }

    /// Makes the node one with skiff. Returns what is still wrong with it.
    async fn install(&mut self, node: &Node) -> Result<Vec<String>> {
        let status = Status::of(node, Some(&self.job.source.id), self.job.to.as_deref()).await;
        if status.ready && self.was_right {
            self.restraint.found_right(self.start.elapsed());
            // Somebody may have taken the label away, or registered the node anew. The node is right, even if the API does not
            // answer: it is asked again at the next look.
            match self.label(Label::Present).and_then(|()| prune(node)) {
                Ok(()) => self.said.clear(),
                Err(error) => self.say_once(error.to_string()),
            }
            return Ok(Vec::new());
        }
        let mut reasons = status.reasons;
        // A node that has never been right is not mended, but installed.
        let leave = if self.was_right { self.restraint.found_wrong(self.start.elapsed()) } else { Leave::Now };
        match leave {
            Leave::Now => {}
            Leave::Later | Leave::Never => {
                self.unlabel_without_handler(node).await?;
                let line = self.in_words(leave);
                self.say_once(line.clone());
                reasons.insert(0, line);
                return Ok(reasons);
            }
        }
        if self.said.is_empty() {
            reasons.iter().for_each(|reason| say(reason));
        }
        // It takes its time, and what was seen before is not so any more.
        self.write(vec!["the node is being changed".into()], self.interval);
        match self.job.install(node).await {
            Ok(done) => {
                if self.was_right && done == Done::Restarted {
                    self.count_mend();
                }
                self.was_right = true;
                Ok(Vec::new())
            }
            Err(error) => {
                self.unlabel_without_handler(node).await?;
                Err(error)
            }
        }
    }

    /// No pod is to be sent to a node where it cannot start.
    async fn unlabel_without_handler(&self, node: &Node) -> Result<()> {
        if node.report().await.is_ok_and(|now| !now.has_handler()) {
            self.label(Label::Absent)?;
        }
        Ok(())
    }

    fn count_mend(&mut self) {
        self.restraint.mended(self.start.elapsed());
        let (mends, pause) = (self.restraint.mends(), self.restraint.pause().as_secs());
        say(&format!(
            "mended what somebody else changed: {mends} of {MENDS_MAX} times without an hour of peace, not again for {pause} s"
        ));
    }

    /// Why a node is left as it is, although it is wrong.
    fn in_words(&self, leave: Leave) -> String {
        let mended =
            format!("another tool undoes what was mended {} times without an hour of peace", self.restraint.mends());
        match leave {
            Leave::Now => mended,
            Leave::Later => format!("{mended}; the node is left alone for {} s", self.restraint.pause().as_secs()),
            Leave::Never => {
                format!(
                    "GIVEN UP: {mended}; the node is left alone until it is right for an hour, or this pod is restarted"
                )
            }
        }
    }

    /// Makes the node one without skiff. Returns what is still wrong with it.
    async fn remove(&mut self, node: &Node) -> Result<Vec<String>> {
        if self.is_removed {
            // Nobody brings it back; if somebody does, it is not for this process to take it away again.
            let status = Status::of(node, None, None).await;
            return Ok(if status.is_removed() { Vec::new() } else { vec!["skiff is installed".into()] });
        }
        self.write(vec!["the node is being changed".into()], self.interval);
        take_away(node, self.job.labels.as_ref(), Duration::ZERO).await?;
        self.is_removed = true;
        Ok(Vec::new())
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
