//! `status`: what is installed, and what is not as it should be. `verify` and `keep` decide by it.

use std::path::{Path, PathBuf};

use serde::Serialize;

use crate::config::entry::{Entry, HANDLER, Sandboxer};
use crate::config::version::Version;
use crate::error::{Context, Result};
use crate::journal::programs;
use crate::journal::record::{Programs, Record, State};
use crate::node::Node;
use crate::node::cri::Reported;
use crate::node::seen::Seen;

/// What is wrong with a node that has no record.
const NOT_INSTALLED: &str = "skiff is not installed";

/// What is known about this node.
#[derive(Debug, Serialize)]
pub(crate) struct Status {
    /// Whether nothing is wrong.
    pub(crate) ready: bool,
    layout: &'static str,
    config: PathBuf,
    containerd: Option<String>,
    /// The version of the programs that new pods get.
    version: Option<String>,
    programs: Option<PathBuf>,
    files: Vec<PathBuf>,
    /// The runtimes that the CRI reports.
    handlers: Vec<String>,
    /// How often `keep` mended the node without an hour of peace since.
    mends: u32,
    #[serde(skip)]
    mends_in_words: Option<String>,
    /// What is wrong, one sentence each.
    pub(crate) reasons: Vec<String>,
}

impl Status {
    /// Looks at the node. Programs of another version than `id`, or in another place than `to`, are wrong.
    pub(crate) async fn of(node: &Node, id: Option<&str>, to: Option<&Path>) -> Self {
        let mut reasons = Vec::new();
        let record = Record::load(&node.host).unwrap_or_else(|error| {
            reasons.push(error.to_string());
            None
        });
        let containerd = node.containerd.version(&node.host).await.ok();
        let reported = node.report().await.unwrap_or_else(|error| {
            reasons.push(error.to_string());
            Reported::default()
        });
        match &record {
            None => reasons.push(NOT_INSTALLED.into()),
            Some(record) => {
                check_record(node, record, &mut reasons);
                check_programs(&record.programs, id, to, &mut reasons);
                check_configuration(node, record, containerd, &mut reasons).await;
                check_report(record, &reported, &mut reasons);
            }
        }
        let root = record.as_ref().map(|record| record.programs.root.clone());
        Self {
            ready: reasons.is_empty(),
            layout: node.layout.name,
            config: node.layout.config.clone(),
            containerd: containerd.map(|Version { major, minor }| format!("{major}.{minor}")),
            version: root.as_deref().and_then(|root| programs::current(&node.host, root)),
            programs: root,
            files: record.into_iter().flat_map(|record| record.files).map(|file| file.path).collect(),
            handlers: reported.handlers.into_iter().collect(),
            mends: 0,
            mends_in_words: None,
            reasons,
        }
    }

    /// The same, with the mends that `keep` wrote down.
    pub(crate) fn with_mends_of(self, seen: &Seen) -> Self {
        Self { mends: seen.mends, mends_in_words: seen.mends_in_words(), ..self }
    }

    /// Whether nothing of skiff is left, as far as can be seen.
    pub(crate) fn is_removed(&self) -> bool {
        self.reasons == [NOT_INSTALLED] && self.handlers.iter().all(|name| name != HANDLER)
    }

    /// As JSON, on one line.
    pub(crate) fn json(&self) -> Result<String> {
        Ok(serde_json::to_string(self).or_host("cannot write JSON")? + "\n")
    }

    /// As lines for people.
    pub(crate) fn text(&self) -> String {
        let mut text = String::new();
        let mut line = |name: &str, value: &str| text += &format!("{name:<12}{value}\n");
        let none = "none".to_owned();
        line("skiff", self.version.as_ref().unwrap_or(&none));
        line("programs", &self.programs.as_ref().map_or(none.clone(), |path| path.display().to_string()));
        line("layout", self.layout);
        line("containerd", self.containerd.as_ref().unwrap_or(&none));
        line("config", &self.config.display().to_string());
        for file in &self.files {
            line("changed", &file.display().to_string());
        }
        line("handlers", &self.handlers.join(", "));
        if let Some(mends) = &self.mends_in_words {
            line("repaired", mends);
        }
        for reason in &self.reasons {
            line("wrong", reason);
        }
        line("ready", if self.ready { "yes" } else { "no" });
        text
    }
}

fn check_record(node: &Node, record: &Record, reasons: &mut Vec<String>) {
    if record.state != State::Installed {
        reasons.push("an installation was interrupted: run it again".into());
        return;
    }
    for file in &record.files {
        match node.host.read(&file.path) {
            Ok(text) if text == file.after => {}
            Ok(_) => reasons.push(format!("`{}` was changed after the installation", file.path.display())),
            Err(error) => reasons.push(error.to_string()),
        }
    }
    if programs::current(&node.host, &record.programs.root) != record.programs.version {
        reasons.push(format!("`{}` does not point to the installed version", record.programs.root.display()));
    }
    reasons.extend(programs::wrong(&node.host, &record.programs.root));
}

fn check_programs(programs: &Programs, id: Option<&str>, to: Option<&Path>, reasons: &mut Vec<String>) {
    if let Some(id) = id.filter(|id| programs.version.as_deref() != Some(id)) {
        reasons.push(format!("the installed version is not `{id}`"));
    }
    if let Some(to) = to.filter(|to| programs.root != *to) {
        reasons.push(format!("the programs are not in `{}`", to.display()));
    }
}

/// Checks containerd's own view, without which the CRI would lose the handler at the next restart.
async fn check_configuration(node: &Node, record: &Record, version: Option<Version>, reasons: &mut Vec<String>) {
    let dump = match node.dump().await {
        Ok(dump) => dump,
        Err(error) => return reasons.push(error.to_string()),
    };
    let entry = Entry {
        shim: programs::shim(&record.programs.root),
        // Which one is wanted is only known to whoever installs.
        sandboxer: Sandboxer::default(),
        may_leave_pause_image: false,
        local_pull: version.is_some_and(Version::unpacks_own_platform_only),
        carried: Vec::new(),
    };
    reasons.extend(dump.check_entry(&entry).err());
}

fn check_report(record: &Record, reported: &Reported, reasons: &mut Vec<String>) {
    let shim = programs::shim(&record.programs.root);
    if !reported.handlers.is_empty() && !reported.has(&shim) {
        reasons.push(format!("the CRI does not report the handler `{HANDLER}` with skiff's shim"));
    }
}
