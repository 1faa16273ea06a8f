//! `install --watch`: installs, and again whenever something takes it away.
//!
//! A node that refuses is tried less and less often: each try may restart its containerd.

use std::time::Duration;

use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::time::timeout;

use crate::error::{Context, Result};
use crate::node::Node;
use crate::programs;
use crate::record::Record;
use crate::status::Status;
use crate::{Job, say};

/// The longest time between two tries.
const PAUSE_MAX: Duration = Duration::from_secs(3600);

/// Keeps the node as `job` makes it, until this process is told to end.
pub(crate) async fn watch(job: &Job, find: impl Fn() -> Result<Node>, interval: Duration) -> Result<()> {
    let doing = "cannot wait for signals";
    let mut terminate = signal(SignalKind::terminate()).or_host(doing)?;
    let mut interrupt = signal(SignalKind::interrupt()).or_host(doing)?;
    let mut pause = interval;
    let mut is_first = true;
    loop {
        pause = match look(job, &find, is_first).await {
            Ok(()) => interval,
            Err(error) => {
                say(&error.to_string());
                (pause * 2).min(PAUSE_MAX)
            }
        };
        is_first = false;
        if timeout(pause, either(&mut terminate, &mut interrupt)).await.is_ok() {
            return Ok(());
        }
    }
}

async fn look(job: &Job, find: impl Fn() -> Result<Node>, is_first: bool) -> Result<()> {
    let node = find()?;
    let status = Status::of(&node).await;
    if status.ready && !is_first {
        return prune(&node);
    }
    status.reasons.iter().for_each(|reason| say(reason));
    job.install(&node).await
}

/// Removes programs of which the last pod has ended since.
fn prune(node: &Node) -> Result<()> {
    let _lock = node.lock()?;
    let Some(record) = Record::load(&node.host)? else { return Ok(()) };
    programs::prune(&node.host, &record.programs.root, record.programs.version.as_deref())
}

async fn either(one: &mut Signal, other: &mut Signal) {
    tokio::select! {
        _ = one.recv() => {}
        _ = other.recv() => {}
    }
}
