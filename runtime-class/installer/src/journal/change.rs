//! Makes the changes that a record describes, and takes them back. Nothing else changes containerd's configuration.
//!
//! Invariant: the record is on the disk before the first change, and describes how to take back each of them.

use std::path::{Path, PathBuf};

use skiff_protocol::names::{CACHE_DIR, RUNTIME_ROOT};

use crate::error::{Error, Kind, Result};
use crate::journal::programs;
use crate::journal::record::{self, Record, State};
use crate::node::Node;
use crate::node::containerd::remove_tried;
use crate::node::cri::Reported;
use crate::node::files::Host;
use crate::node::restart::Restart;

/// Reads the record, and takes back or completes what an interrupted run began. Returns whether there was one.
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

/// Removes what no process needs any more of the roots that programs were moved away from, and forgets those that are empty.
///
/// # Errors
/// The first one, after all of them were tried. They are tried again whenever this is called.
pub(crate) fn leave_roots(host: &Host, record: &mut Record) -> Result<()> {
    let mut first_error = None;
    let mut gone = Vec::new();
    for root in std::mem::take(&mut record.programs.left) {
        match programs::leave(host, &root) {
            Ok(true) => gone.push(root),
            Ok(false) => record.programs.left.push(root),
            Err(error) => {
                record.programs.left.push(root);
                first_error.get_or_insert(error);
            }
        }
    }
    if !gone.is_empty() {
        for directory in record.directories.iter().rev() {
            if gone.iter().any(|root| root.starts_with(directory)) {
                // It goes with the installation otherwise.
                drop(host.remove_empty(directory));
            }
        }
        record.directories.retain(|directory| host.exists(directory));
        record.save(host)?;
    }
    first_error.map_or(Ok(()), Err)
}

/// Gives the files the content that `record` has for them after the change.
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

/// Takes back the part of `record` that was done, and updates it. What somebody else has written since stays.
fn put_back(node: &Node, record: &mut Record) -> Result<()> {
    for file in record.files.iter_mut().rev() {
        node.host.remove_temporary(&file.path)?;
        if file.previous != file.after && node.host.read(&file.path)? == file.after {
            node.host.put(&file.path, file.previous.as_deref())?;
        }
        file.after.clone_from(&file.previous);
    }
    let programs = &mut record.programs;
    if let Some(root) = programs.previous_root.take() {
        programs.left.push(std::mem::replace(&mut programs.root, root));
    }
    programs::switch(&node.host, &programs.root, programs.previous.as_deref())?;
    programs.version.clone_from(&programs.previous);
    Ok(())
}

/// Takes back the part of `record` that was done, because of `error`. `restart` is given if containerd may have read the change.
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
        // containerd may have skiff although its programs are gone.
        let is_installed = record.files.iter().any(|file| file.after != file.original);
        if record.programs.version.is_none() && !is_installed {
            return finish(node, record);
        }
        record.mark_installed();
        record.save(&node.host)?;
        // What is left of the new place does no harm, and is removed later if it cannot be now.
        drop(leave_roots(&node.host, &mut record));
        Ok(())
    };
    match job.await {
        Ok(()) => Error::new(Kind::RolledBack, format!("{error}; everything is as it was")),
        Err(second) => Error::new(Kind::Stuck, format!("{error}; and the change cannot be undone: {second}")),
    }
}

/// Removes the rest of an installation whose files have been restored.
pub(crate) fn finish(node: &Node, mut record: Record) -> Result<()> {
    record.state = State::Removed;
    record.save(&node.host)?;
    clean_up(node, &record)
}

fn clean_up(node: &Node, record: &Record) -> Result<()> {
    programs::remove_all(&node.host, &record.programs.root)?;
    for root in &record.programs.left {
        // It may be on a file system that is read-only by now, for which programs were moved.
        drop(programs::leave(&node.host, root));
    }
    // Compiled code is useless without skiff.
    node.host.remove_tree(CACHE_DIR.as_ref())?;
    remove_states(&node.host)?;
    for directory in record.directories.iter().rev() {
        node.host.remove_empty(directory)?;
    }
    record::forget(&node.host)
}

/// Removes the directories in which runc keeps states, one for each of containerd's namespaces. One that is not empty belongs to a
/// skiff that this tool did not install.
fn remove_states(host: &Host) -> Result<()> {
    let states = Path::new(RUNTIME_ROOT);
    for namespace in host.names(states)? {
        host.remove_empty(&states.join(namespace))?;
    }
    states.ancestors().take(2).try_for_each(|directory| host.remove_empty(directory))
}

/// Adds the directories that `record` needs and the node lacks to those that were made before.
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
