//! `install`: from whatever the node is to a node whose CRI reports the handler; or everything is put back.

use std::path::{Path, PathBuf};

use crate::change::{add_directories, apply, recover, roll_back};
use crate::containerd::check;
use crate::cri::Reported;
use crate::dump::Dump;
use crate::error::{Error, Result};
use crate::node::Node;
use crate::plan::{self, Facts, Plan};
use crate::programs::{self, Source};
use crate::record::{FileRecord, Programs, Record, State};
use crate::restart::Restart;

/// What an installation did.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Done {
    /// Nothing was to be done.
    Unchanged,
    /// Only the programs are others; containerd was not restarted.
    Programs,
    /// containerd was restarted and reports the handler.
    Restarted,
}

/// Installs the programs of `source`; `root` names where, else the first place that is fit is taken.
pub(crate) async fn install(node: &Node, source: &Source, root: Option<&Path>) -> Result<Done> {
    let (old, is_interrupted) = recover(node)?;
    let before = node.dump().await?;
    let installed = old.as_ref().map(|record| record.programs.root.as_path());
    let root = programs::choose_root(&node.host, installed, root)?;
    let plan = Facts {
        host: &node.host,
        layout: &node.layout,
        containerd: node.containerd.version(&node.host).await?,
        dump: &before,
        record: old.as_ref(),
        shim: programs::shim(&root),
    };
    let plan = plan.plan()?;
    let reported = match node.report().await {
        // A containerd that a run left broken is repaired by going on.
        Err(_) if is_interrupted => Reported::default(),
        reported => reported.map_err(|error| Error::refused(format!("nothing is changed: {error}")))?,
    };
    let record = record(node, &plan, old.as_ref(), root, source)?;
    let is_same = record.files.iter().all(|file| file.previous == file.after);
    let is_reported = reported.has(&plan.entry.shim);
    let is_restart = is_interrupted || !is_same || !is_reported;
    if !is_restart && old.as_ref().is_some_and(|old| is_complete(node, old, &record, source)) {
        programs::prune(&node.host, &record.programs.root, Some(&source.id))?;
        return Ok(Done::Unchanged);
    }
    let restart = if is_restart { Some(node.restart().await?) } else { None };
    if !is_same {
        node.containerd.try_plan(&node.host, &node.layout, &plan, &before).await?;
    }
    record.save(&node.host)?;
    let change = Change { node, source, plan: &plan, before: &before, reported: &reported };
    let record = change.carry_out(record, restart.as_ref()).await?;
    if let Some(old) = old.filter(|old| old.programs.root != record.programs.root) {
        programs::switch(&node.host, &old.programs.root, None)?;
        programs::prune(&node.host, &old.programs.root, None)?;
    }
    programs::prune(&node.host, &record.programs.root, Some(&source.id))?;
    Ok(if is_restart { Done::Restarted } else { Done::Programs })
}

fn is_complete(node: &Node, old: &Record, new: &Record, source: &Source) -> bool {
    let is_known = old.state == State::Installed && old.files == new.files && old.programs.root == new.programs.root;
    is_known && source.faults(&node.host, &new.programs.root).is_empty()
}

/// The record of the change that is to be made.
fn record(node: &Node, plan: &Plan, old: Option<&Record>, root: PathBuf, source: &Source) -> Result<Record> {
    let mut files = plan.files.clone();
    // What an earlier installation changed and this one does not is put back.
    for file in old.into_iter().flat_map(|old| &old.files) {
        if files.iter().all(|planned| planned.path != file.path) {
            let previous = node.host.read(&file.path)?;
            let original = plan::original(Some(file), &file.path, previous.as_deref())?;
            let after = original.clone();
            files.push(FileRecord { path: file.path.clone(), edit: file.edit.clone(), original, previous, after });
        }
    }
    let previous = programs::current(&node.host, &root);
    let programs = Programs { root, version: Some(source.id.clone()), previous };
    let directories = old.map(|old| old.directories.clone()).unwrap_or_default();
    let mut record = Record::new(files, programs, directories);
    add_directories(node, &mut record);
    Ok(record)
}

/// A change that was decided on.
struct Change<'a> {
    node: &'a Node,
    source: &'a Source,
    plan: &'a Plan,
    before: &'a Dump,
    reported: &'a Reported,
}

impl Change<'_> {
    /// Makes the change; the saved record is answered.
    async fn carry_out(&self, mut record: Record, restart: Option<&Restart>) -> Result<Record> {
        if let Err(error) = self.put_in_place(&record).await {
            return Err(roll_back(self.node, record, error, self.reported, None).await);
        }
        if let Some(restart) = restart
            && let Err(error) = self.node.restart_until(restart, |now| self.missing(now)).await
        {
            return Err(roll_back(self.node, record, error, self.reported, Some(restart)).await);
        }
        record.state = State::Installed;
        for file in &mut record.files {
            file.previous.clone_from(&file.after);
        }
        record.files.retain(|file| file.after != file.original);
        record.save(&self.node.host)?;
        Ok(record)
    }

    async fn put_in_place(&self, record: &Record) -> Result<()> {
        let host = &self.node.host;
        self.source.copy(host, &record.programs.root)?;
        programs::switch(host, &record.programs.root, Some(&self.source.id))?;
        apply(self.node, record)?;
        // A file that is made from a template is only right after the restart.
        if self.node.layout.template.is_none() {
            check(self.before, &self.node.dump().await?, self.plan)?;
        }
        Ok(())
    }

    /// What the CRI does not report yet.
    fn missing(&self, now: &Reported) -> Option<String> {
        if let Some(name) = self.reported.lost_in(now) {
            return Some(format!("the CRI does not report `{name}` any more"));
        }
        (!now.has(&self.plan.entry.shim)).then(|| "the CRI does not report the handler `skiff`".to_owned())
    }
}
