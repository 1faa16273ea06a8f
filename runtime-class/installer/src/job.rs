//! One change of the node as the command line and `keep` make it: under the node's lock, with the node's label.
//!
//! The label follows the runtime: it is set last and removed first, so that no pod is sent to a node where it cannot start.

use std::path::PathBuf;
use std::time::Duration;

use crate::config::entry::Sandboxer;
use crate::error::Result;
use crate::install::{self, Done};
use crate::journal::programs::Source;
use crate::kube::label::{LABEL, Label, Labels};
use crate::node::Node;
use crate::remove;
use crate::say::say;

/// What to install, and where.
pub(crate) struct Job {
    pub(crate) source: Source,
    pub(crate) to: Option<PathBuf>,
    pub(crate) sandboxer: Sandboxer,
    pub(crate) labels: Option<Labels>,
}

impl Job {
    /// Installs skiff and labels the node.
    pub(crate) async fn install_and_label(&self, node: &Node) -> Result<Done> {
        let _lock = node.lock()?;
        let done = install::install(node, &self.source, self.to.as_deref(), self.sandboxer).await?;
        let id = &self.source.id;
        say(&match done {
            Done::Unchanged => format!("{id} is installed already"),
            Done::Programs => format!("installed {id} for new pods; containerd was not restarted"),
            Done::Restarted => format!("installed {id}; containerd reports the handler"),
        });
        if let Some(labels) = &self.labels {
            labels.set(Label::Present).await?;
            say(&format!("the node has the label `{LABEL}`"));
        }
        Ok(done)
    }
}

/// Removes the label and skiff; waits for wasm pods as long as `patience` says.
pub(crate) async fn unlabel_and_remove(node: &Node, labels: Option<&Labels>, patience: Duration) -> Result<()> {
    let _lock = node.lock()?;
    if let Some(labels) = labels {
        labels.set(Label::Absent).await?;
    }
    let was_there = remove::remove(node, patience).await?;
    say(if was_there { "removed" } else { "there is nothing to remove" });
    Ok(())
}
