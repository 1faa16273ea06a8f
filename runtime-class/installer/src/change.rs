//! Carries out what a record says, and takes it back: the one place that changes a node.
//!
//! Invariant: the record is on the disk before the first change, and says how to take back every one of them.

use std::path::{Path, PathBuf};

use crate::containerd::remove_tried;
use crate::cri::Reported;
use crate::error::{Error, Kind, Result};
use crate::host::Host;
use crate::node::Node;
use crate::programs;
use crate::record::{self, Record, State};
use crate::restart::Restart;

/// Where compiled code is kept by default: it is of no use without skiff.
const CACHE: &str = "/var/lib/skiff/cache";
/// Where runc keeps the states of containers by default, below a directory for each of containerd's namespaces.
const STATES: &str = "/run/skiff/runc";

/// Finds the record, and ends what an interrupted run began: `true` when there was one.
pub(crate) fn recover(node: &Node) -> Result<(Option<Record>, bool)> {
    remove_tried(&node.host, &node.layout)?;
    let Some(mut record) = Record::load(&node.host)? else { return Ok((None, false)) };
    match record.state {
        State::Installed => Ok((Some(record), false)),
        State::Removed => {
            clean_up(node, &record)?;
            Ok((None, true))
        }
        State::Changing => {
            put_back(node, &mut record)?;
            Ok((Some(record), true))
        }
    }
}

/// Makes the files what `record` says they are after the change.
pub(crate) fn apply(node: &Node, record: &Record) -> Result<()> {
    for file in &record.files {
        if let (Some(_), Some(parent)) = (&file.after, file.path.parent()) {
            node.host.make_directories(parent, 0o755)?;
        }
        if node.host.read(&file.path)? != file.after {
            node.host.put(&file.path, file.after.as_deref())?;
        }
    }
    Ok(())
}

/// Takes back what was done of `record`, and makes it say so. What somebody else wrote since stays.
fn put_back(node: &Node, record: &mut Record) -> Result<()> {
    for file in record.files.iter_mut().rev() {
        node.host.remove_temporary(&file.path)?;
        if file.previous != file.after && node.host.read(&file.path)? == file.after {
            node.host.put(&file.path, file.previous.as_deref())?;
        }
        file.after.clone_from(&file.previous);
    }
    let programs = &mut record.programs;
    programs::switch(&node.host, &programs.root, programs.previous.as_deref())?;
    programs.version.clone_from(&programs.previous);
    Ok(())
}

/// Takes back what was done of `record` because of `error`, with a restart when containerd may have read it.
pub(crate) async fn roll_back(
    node: &Node,
    mut record: Record,
    error: Error,
    before: &Reported,
    restart: Option<&Restart>,
) -> Error {
    let job = async {
        put_back(node, &mut record)?;
        if let Some(restart) = restart {
            let lost = |now: &Reported| before.lost_in(now).map(|name| format!("the CRI does not report `{name}`"));
            node.restart_until(restart, lost).await?;
        }
        if record.programs.version.is_some() {
            record.state = State::Installed;
            return record.save(&node.host);
        }
        finish(node, record)
    };
    match job.await {
        Ok(()) => Error::new(Kind::RolledBack, format!("{error}; everything is as it was")),
        Err(second) => Error::new(Kind::Stuck, format!("{error}; and it cannot be put back: {second}")),
    }
}

/// Removes everything of an installation whose files are restored.
pub(crate) fn finish(node: &Node, mut record: Record) -> Result<()> {
    record.state = State::Removed;
    record.save(&node.host)?;
    clean_up(node, &record)
}

fn clean_up(node: &Node, record: &Record) -> Result<()> {
    programs::remove_all(&node.host, &record.programs.root)?;
    node.host.remove_tree(CACHE.as_ref())?;
    remove_states(&node.host)?;
    for directory in record.directories.iter().rev() {
        node.host.remove_empty(directory)?;
    }
    record::forget(&node.host)
}

/// Removes the directories of states; one that has some belongs to another skiff, which was not installed by this tool.
fn remove_states(host: &Host) -> Result<()> {
    let states = Path::new(STATES);
    for namespace in host.names(states)? {
        host.remove_empty(&states.join(namespace))?;
    }
    states.ancestors().take(2).try_for_each(|directory| host.remove_empty(directory))
}

/// The directories that are missing for `record`, added to those that were made before.
pub(crate) fn add_directories(node: &Node, record: &mut Record) {
    let files = record.files.iter().filter(|file| file.after.is_some()).filter_map(|file| file.path.parent());
    let wanted: Vec<PathBuf> = files.chain([record.programs.root.as_path()]).map(PathBuf::from).collect();
    for directory in wanted {
        for missing in node.host.missing_directories(&directory) {
            let is_state = missing.starts_with(record::STATE) || Path::new(record::STATE).starts_with(&missing);
            if !record.directories.contains(&missing) && !is_state {
                record.directories.push(missing);
            }
        }
    }
    record.directories.sort();
}
