//! `remove`: the node as it was before skiff came, byte for byte where nobody else has changed it since.

use std::time::Duration;

use tokio::time::{Instant, sleep};

use crate::change::{apply, finish, recover, roll_back};
use crate::cri::Reported;
use crate::error::{Error, Result};
use crate::node::Node;
use crate::plan;
use crate::programs;
use crate::record::{FileRecord, Programs, Record};
use crate::text::HANDLER;

/// How often the end of the last wasm pod is looked for.
const PAUSE: Duration = Duration::from_secs(1);

/// Takes skiff away; `true` when there was something to take away. Wasm pods are waited for as long as `patience` says.
pub(crate) async fn remove(node: &Node, patience: Duration) -> Result<bool> {
    let (old, is_interrupted) = recover(node)?;
    let Some(old) = old else {
        refuse_unknown(node).await?;
        crate::record::forget(&node.host)?;
        return Ok(is_interrupted);
    };
    wait_for_pods(node, &old, patience).await?;
    let reported = node.report().await.map_err(|error| Error::refused(format!("nothing is changed: {error}")));
    let reported = if is_interrupted { reported.unwrap_or_default() } else { reported? };
    let record = record(node, &old)?;
    let is_same = record.files.iter().all(|file| file.previous == file.after);
    let is_restart = is_interrupted || !is_same || reported.has_handler();
    let restart = if is_restart { Some(node.restart().await?) } else { None };
    record.save(&node.host)?;
    if let Err(error) = put_in_place(node, &record).await {
        return Err(roll_back(node, record, error, &reported, None).await);
    }
    let missing = |now: &Reported| match reported.lost_in(now) {
        Some(name) => Some(format!("the CRI does not report `{name}` any more")),
        None => now.has_handler().then(|| format!("the CRI still reports `{HANDLER}`")),
    };
    if let Some(restart) = &restart {
        let gone = node.restart_until(restart, missing).await;
        // A pod may have started until then; from now on none can.
        if let Err(error) = gone.and_then(|()| users(node, &old)?.map_or(Ok(()), Err)) {
            return Err(roll_back(node, record, error, &reported, Some(restart)).await);
        }
    }
    finish(node, record)?;
    Ok(true)
}

/// Without a record nothing is known that could be put back.
async fn refuse_unknown(node: &Node) -> Result<()> {
    let dump = node.dump().await?;
    if dump.runtimes().is_some_and(|runtimes| runtimes.contains_key(HANDLER)) {
        return Err(Error::refused(format!("containerd has a runtime `{HANDLER}` that this node has no record of")));
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

/// The refusal that wasm pods which run are a reason for.
fn users(node: &Node, old: &Record) -> Result<Option<Error>> {
    let users = programs::users(&node.host, &old.programs.root)?;
    Ok(users.first().map(|(_, pid)| {
        let count = users.len();
        Error::refused(format!(
            "wasm pods still run, {count} processes of them, process {pid} among them; drain the node first"
        ))
    }))
}

fn record(node: &Node, old: &Record) -> Result<Record> {
    let mut files = Vec::new();
    // The import before what it imports.
    for file in old.files.iter().rev() {
        let previous = node.host.read(&file.path)?;
        let original = plan::original(Some(file), &file.path, previous.as_deref())?;
        let (path, edit, after) = (file.path.clone(), file.edit.clone(), original.clone());
        files.push(FileRecord { path, edit, original, previous, after });
    }
    let root = old.programs.root.clone();
    let previous = programs::current(&node.host, &root);
    Ok(Record::new(files, Programs { root, version: None, previous }, old.directories.clone()))
}

async fn put_in_place(node: &Node, record: &Record) -> Result<()> {
    apply(node, record)?;
    if node.layout.template.is_none() {
        node.dump().await?.check_cri()?;
    }
    Ok(())
}
