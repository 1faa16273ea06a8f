//! `install`: from any node to one whose CRI reports the handler; or everything is put back.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use crate::config::dump::Dump;
use crate::config::entry::Sandboxer;
use crate::config::plan::{Facts, Plan, Unplanned};
use crate::error::{Error, Result};
use crate::journal::change::{add_directories, apply, leave_roots, recover, roll_back};
use crate::journal::programs::{self, Source};
use crate::journal::record::{Programs, Record, State};
use crate::node::Node;
use crate::node::containerd::check;
use crate::node::cri::Reported;
use crate::say::say;

/// What an installation did.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Done {
    /// There was nothing to do.
    Unchanged,
    /// Only the programs changed; containerd was not restarted.
    Programs,
    /// containerd was restarted and reports the handler.
    Restarted,
}

/// Installs the programs of `source` in `root`, or in the first suitable place.
pub(crate) async fn install(node: &Node, source: &Source, root: Option<&Path>, sandboxer: Sandboxer) -> Result<Done> {
    let (old, is_interrupted) = recover(node)?;
    let change = Change::decide(node, source, root, sandboxer, old.as_ref(), is_interrupted).await?;
    let (done, root) = (change.done, change.record.programs.root.clone());
    if done != Done::Unchanged {
        change.carry_out().await?;
    }
    programs::prune(&node.host, &root, Some(&source.id))?;
    Ok(done)
}

/// A change that has been decided on.
struct Change<'a> {
    node: &'a Node,
    source: &'a Source,
    before: Dump,
    reported: Reported,
    plan: Plan,
    record: Record,
    /// What will have been done.
    done: Done,
}

impl<'a> Change<'a> {
    async fn decide(
        node: &'a Node,
        source: &'a Source,
        root: Option<&Path>,
        sandboxer: Sandboxer,
        old: Option<&Record>,
        is_interrupted: bool,
    ) -> Result<Self> {
        let before = node.dump().await?;
        let installed = old.map(|old| old.programs.root.as_path());
        let root = programs::choose_root(&node.host, installed, root)?;
        let plan = plan(node, &before, old, programs::shim(&root), sandboxer).await?;
        let reported = match node.report().await {
            // A containerd that an earlier run left broken is repaired by going on.
            Err(_) if is_interrupted => Reported::default(),
            reported => reported.map_err(|error| Error::refused(format!("nothing was changed: {error}")))?,
        };
        let record = record(node, &plan, old, root, source)?;
        let done = if is_interrupted || record.changes_files() || !reported.has(&plan.entry.shim) {
            Done::Restarted
        } else if old.is_some_and(|old| is_complete(node, old, &record, source)) {
            Done::Unchanged
        } else {
            Done::Programs
        };
        Ok(Self { node, source, before, reported, plan, record, done })
    }

    async fn carry_out(mut self) -> Result<()> {
        let node = self.node;
        let restart = if self.done == Done::Restarted { Some(node.restart().await?) } else { None };
        if self.record.changes_files() {
            node.containerd.try_plan(&node.host, &node.layout, &self.plan, &self.before).await?;
        }
        self.record.save(&node.host)?;
        if let Err(error) = self.put_in_place().await {
            return Err(roll_back(node, self.record, error, &self.reported, None).await);
        }
        if let Some(restart) = &restart
            && let Err(error) = node.restart_until(restart, |now| self.missing(now)).await
        {
            return Err(roll_back(node, self.record, error, &self.reported, Some(restart)).await);
        }
        self.record.mark_installed();
        self.record.save(&node.host)?;
        if let Err(error) = leave_roots(&node.host, &mut self.record) {
            say(&format!("the old place of the programs is removed later: {error}"));
        }
        Ok(())
    }

    async fn put_in_place(&self) -> Result<()> {
        let (host, root) = (&self.node.host, &self.record.programs.root);
        self.source.copy(host, root)?;
        programs::switch(host, root, Some(&self.source.id))?;
        apply(self.node, &self.record)?;
        // A file that is generated from a template is only right after the restart.
        if self.node.layout.template.is_none() {
            check(&self.before, &self.node.dump().await?, &self.plan)?;
        }
        Ok(())
    }

    /// What the CRI does not report yet.
    fn missing(&self, now: &Reported) -> Option<String> {
        if let Some(name) = self.reported.lost_in(now) {
            return Some(format!("the CRI no longer reports `{name}`"));
        }
        (!now.has(&self.plan.entry.shim)).then(|| "the CRI does not report the handler `skiff`".to_owned())
    }
}

/// Gathers the facts and plans with them. Of the node's files it reads those that the plan depends on.
async fn plan(node: &Node, dump: &Dump, old: Option<&Record>, shim: PathBuf, sandboxer: Sandboxer) -> Result<Plan> {
    let mut facts = Facts {
        layout: &node.layout,
        containerd: node.containerd.version(&node.host).await?,
        dump,
        changed: old.map(|old| old.files.as_slice()).unwrap_or_default(),
        shim,
        sandboxer,
        texts: BTreeMap::new(),
    };
    loop {
        match facts.plan() {
            Ok(plan) => return Ok(plan),
            Err(Unplanned::Refused(error)) => return Err(error),
            Err(Unplanned::Unread(path)) => {
                let text = node.host.read(&path)?;
                facts.texts.insert(path, text);
            }
        }
    }
}

/// The record of the change to make.
fn record(node: &Node, plan: &Plan, old: Option<&Record>, root: PathBuf, source: &Source) -> Result<Record> {
    let mut files = plan.files.clone();
    // What an earlier installation changed and this one does not is put back.
    for file in old.into_iter().flat_map(|old| &old.files) {
        if files.iter().all(|planned| planned.path != file.path) {
            files.push(file.taken_back(node.host.read(&file.path)?)?);
        }
    }
    let is_elsewhere = |place: &PathBuf| match (node.host.place(place), node.host.place(&root)) {
        (Ok(place), Ok(root)) => place != root,
        _ => *place != root,
    };
    let previous_root = old.map(|old| old.programs.root.clone()).filter(is_elsewhere);
    let left =
        old.into_iter().flat_map(|old| &old.programs.left).filter(|place| is_elsewhere(place)).cloned().collect();
    let previous = programs::current(&node.host, previous_root.as_ref().unwrap_or(&root));
    let programs = Programs { root, version: Some(source.id.clone()), previous, previous_root, left };
    let directories = old.map(|old| old.directories.clone()).unwrap_or_default();
    let mut record = Record::new(files, programs, directories);
    add_directories(node, &mut record);
    Ok(record)
}

fn is_complete(node: &Node, old: &Record, new: &Record, source: &Source) -> bool {
    let is_known = old.state == State::Installed && old.files == new.files && old.programs.root == new.programs.root;
    is_known && source.faults(&node.host, &new.programs.root).is_empty()
}
