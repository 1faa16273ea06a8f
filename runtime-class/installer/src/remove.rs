//! `remove`: the node as it was before skiff, byte for byte where nobody else has changed it since.

use std::time::Duration;

use tokio::time::{Instant, sleep};

use crate::config::entry::HANDLER;
use crate::error::{Error, Result};
use crate::journal::change::{apply, finish, recover, roll_back};
use crate::journal::programs;
use crate::journal::record::{Programs, Record, forget};
use crate::node::Node;
use crate::node::cri::Reported;

/// The time between two looks for the end of the last wasm pod.
const PAUSE: Duration = Duration::from_secs(1);

/// Takes skiff away, and returns whether there was anything to take away. Waits for wasm pods as long as `patience` says.
pub(crate) async fn remove(node: &Node, patience: Duration) -> Result<bool> {
    let (old, is_interrupted) = recover(node)?;
    let Some(old) = old else {
        refuse_unknown(node).await?;
        forget(&node.host)?;
        return Ok(is_interrupted);
    };
    wait_for_pods(node, &old, patience).await?;
    let reported = node.report().await.map_err(|error| Error::refused(format!("nothing was changed: {error}")));
    let reported = if is_interrupted { reported.unwrap_or_default() } else { reported? };
    let record = record(node, &old)?;
    let is_restart = is_interrupted || record.changes_files() || reported.has_handler();
    let restart = if is_restart { Some(node.restart().await?) } else { None };
    record.save(&node.host)?;
    if let Err(error) = put_in_place(node, &record).await {
        return Err(roll_back(node, record, error, &reported, None).await);
    }
    if let Some(restart) = &restart {
        let gone = node.restart_until(restart, |now| missing(&reported, now)).await;
        // A pod may have started until then; from now on none can.
        if let Err(error) = gone.and_then(|()| users(node, &old)?.map_or(Ok(()), Err)) {
            return Err(roll_back(node, record, error, &reported, Some(restart)).await);
        }
    }
    finish(node, record)?;
    Ok(true)
}

/// Without a record, nothing is known that could be put back.
async fn refuse_unknown(node: &Node) -> Result<()> {
    let dump = node.dump().await?;
    if dump.runtimes().is_some_and(|runtimes| runtimes.contains_key(HANDLER)) {
        return Err(Error::refused(format!(
            "containerd has the runtime `{HANDLER}`, but the node has no record of its installation"
        )));
    }
    Ok(())
}

async fn wait_for_pods(node: &Node, old: &Record, patience: Duration) -> Result<()> {
    let deadline = Instant::now() + patience;
    loop {
        let Some(refusal) = users(node, old)? else { return Ok(()) };
        if Instant::now() >= deadline {
            return Err(refusal);
        }
        sleep(PAUSE).await;
    }
}

/// The refusal because of running wasm pods, if there are any.
fn users(node: &Node, old: &Record) -> Result<Option<Error>> {
    let mut users = programs::users(&node.host, &old.programs.root)?;
    for root in &old.programs.left {
        users.extend(programs::users(&node.host, root)?);
    }
    Ok(users.first().map(|(_, pid)| {
        let count = users.len();
        Error::refused(format!(
            "wasm pods are still running ({count} processes, for example {pid}): drain the node first"
        ))
    }))
}

/// The record of the change to make.
fn record(node: &Node, old: &Record) -> Result<Record> {
    // An import is removed before the file that it names.
    let files = old.files.iter().rev().map(|file| file.taken_back(node.host.read(&file.path)?));
    let files = files.collect::<Result<_>>()?;
    let root = old.programs.root.clone();
    let previous = programs::current(&node.host, &root);
    let left = old.programs.left.clone();
    let programs = Programs { root, version: None, previous, previous_root: None, left };
    Ok(Record::new(files, programs, old.directories.clone()))
}

async fn put_in_place(node: &Node, record: &Record) -> Result<()> {
    apply(node, record)?;
    // A file that is generated from a template is only right after the restart.
    if node.layout.template.is_none() {
        node.dump().await?.check_cri()?;
    }
    Ok(())
}

/// What the CRI should report, or should no longer report.
fn missing(before: &Reported, now: &Reported) -> Option<String> {
    match before.lost_in(now) {
        Some(name) => Some(format!("the CRI no longer reports `{name}`")),
        None => now.has_handler().then(|| format!("the CRI still reports `{HANDLER}`")),
    }
}
