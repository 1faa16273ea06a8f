//! `keep`: makes the node what the cluster wants it to be, and again whenever something changes it.
//!
//! A node where a change failed is tried less and less often, because each try may restart its containerd. So is a node that
//! somebody else changes back each time. A refusal has not touched the node, so that the next try may come soon.

use std::path::Path;
use std::time::{Duration, Instant};

use tokio::time::timeout;

use crate::error::{Error, Result};
use crate::install::Done;
use crate::job::{Job, unlabel_and_remove};
use crate::journal::change::leave_roots;
use crate::journal::programs;
use crate::journal::record::Record;
use crate::kube::label::Label;
use crate::node::Node;
use crate::node::restraint::{Leave, MENDS_MAX, Restraint};
use crate::node::seen::{self, Seen};
use crate::say::say;
use crate::signals::Ends;
use crate::status::Status;
use crate::wanted::Wanted;

/// The longest time between two tries.
const PAUSE_MAX: Duration = Duration::from_secs(3600);
/// The time between two looks for the end of the last wasm pod.
const PODS_PAUSE: Duration = Duration::from_secs(2);

/// Keeps the node as wanted until this process is asked to end.
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

/// Looks at the node again and again.
pub(crate) struct Keeper<'a> {
    job: &'a Job,
    wanted: Wanted,
    interval: Duration,
    /// The file for `ready` and `status`.
    seen: &'a Path,
    start: Instant,
    restraint: Restraint,
    /// How long the last wait after a failed change was.
    failure_pause: Duration,
    /// Whether this process has seen the node as wanted.
    was_right: bool,
    is_removed: bool,
    /// The last line of the log, which is not repeated.
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

    /// Looks at the node, and changes it if necessary. Returns how long to wait before the next turn.
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

    /// Writes what the probe reads: the node is ready when `reasons` is empty. The next look is after `pause`.
    fn write(&mut self, reasons: Vec<String>, pause: Duration) {
        let interval_seconds = pause.as_secs().max(1);
        let seen = Seen { ready: reasons.is_empty(), reasons, mends: self.restraint.mends(), interval_seconds };
        if let Err(error) = seen.write(self.seen) {
            self.say_once(error.to_string());
        }
    }

    async fn label(&self, label: Label) -> Result<()> {
        match &self.job.labels {
            Some(labels) => labels.set(label).await,
            None => Ok(()),
        }
    }

    /// Installs skiff if it is missing or damaged. Returns what is still wrong with the node.
    async fn install(&mut self, node: &Node) -> Result<Vec<String>> {
        let status = Status::of(node, Some(&self.job.source.id), self.job.to.as_deref()).await;
        if status.ready && self.was_right {
            self.stay_right(node).await;
            return Ok(Vec::new());
        }
        // A node that has never been right is installed rather than mended.
        let leave = if self.was_right { self.restraint.found_wrong(self.start.elapsed()) } else { Leave::Now };
        match leave {
            Leave::Now => self.change(node, &status.reasons).await,
            Leave::Later | Leave::Never => self.leave_alone(node, leave, status.reasons).await,
        }
    }

    /// Sets the label again, which somebody may have removed, or lost by registering the node again. The node is right even if
    /// the API cannot be asked: the next look tries again.
    async fn stay_right(&mut self, node: &Node) {
        self.restraint.found_right(self.start.elapsed());
        match self.label(Label::Present).await.and_then(|()| prune(node)) {
            Ok(()) => self.said.clear(),
            Err(error) => self.say_once(error.to_string()),
        }
    }

    async fn leave_alone(&mut self, node: &Node, leave: Leave, mut reasons: Vec<String>) -> Result<Vec<String>> {
        self.unlabel_without_handler(node).await?;
        let line = self.in_words(leave);
        self.say_once(line.clone());
        reasons.insert(0, line);
        Ok(reasons)
    }

    async fn change(&mut self, node: &Node, reasons: &[String]) -> Result<Vec<String>> {
        if self.said.is_empty() {
            reasons.iter().for_each(|reason| say(reason));
        }
        self.write_changing();
        match self.job.install_and_label(node).await {
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

    /// Replaces what was seen before a change, which takes time.
    fn write_changing(&mut self) {
        self.write(vec!["the node is being changed".into()], self.interval);
    }

    /// Keeps pods away from a node where they cannot start.
    async fn unlabel_without_handler(&self, node: &Node) -> Result<()> {
        if node.report().await.is_ok_and(|now| !now.has_handler()) {
            self.label(Label::Absent).await?;
        }
        Ok(())
    }

    fn count_mend(&mut self) {
        self.restraint.mended(self.start.elapsed());
        let (mends, pause) = (self.restraint.mends(), self.restraint.pause().as_secs());
        say(&format!(
            "repaired what somebody else changed: {mends} of {MENDS_MAX} times without an hour of peace; not again for {pause} s"
        ));
    }

    /// Why a node is left as it is although something is wrong with it.
    fn in_words(&self, leave: Leave) -> String {
        let mended = format!("another tool undid the repair {} times without an hour of peace", self.restraint.mends());
        match leave {
            Leave::Now => mended,
            Leave::Later => format!("{mended}; the node is left alone for {} s", self.restraint.pause().as_secs()),
            Leave::Never => {
                format!(
                    "GIVEN UP: {mended}; the node is left alone until it has been right for an hour or this pod is restarted"
                )
            }
        }
    }

    /// Removes skiff once. Returns what is still wrong with the node.
    async fn remove(&mut self, node: &Node) -> Result<Vec<String>> {
        if self.is_removed {
            // Somebody who brings it back wants it: this process does not remove it again.
            let status = Status::of(node, None, None).await;
            return Ok(if status.is_removed() { Vec::new() } else { vec!["skiff is installed".into()] });
        }
        self.write_changing();
        unlabel_and_remove(node, self.job.labels.as_ref(), Duration::ZERO).await?;
        self.is_removed = true;
        Ok(Vec::new())
    }
}

/// Removes programs whose last pod has ended.
fn prune(node: &Node) -> Result<()> {
    let _lock = node.lock()?;
    let Some(mut record) = Record::load(&node.host)? else { return Ok(()) };
    programs::prune(&node.host, &record.programs.root, record.programs.version.as_deref())?;
    leave_roots(&node.host, &mut record)
}
