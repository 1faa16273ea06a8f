//! `verify` and `status`: what is installed, and what is not as it should be.

use std::path::{Path, PathBuf};

use serde::Serialize;

use crate::node::Node;
use crate::plan::Version;
use crate::programs;
use crate::record::{Record, State};
use crate::seen::Seen;
use crate::text::{Entry, HANDLER};

/// What is wrong with a node that has no record.
const NOT_INSTALLED: &str = "skiff is not installed";

/// What is known of this node.
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
    /// What is wrong, a sentence each.
    pub(crate) reasons: Vec<String>,
}

impl Status {
    /// Looks at the node; another version of the programs than `id`, or another place than `to`, is wrong.
    pub(crate) async fn of(node: &Node, id: Option<&str>, to: Option<&Path>) -> Self {
        let mut reasons = Vec::new();
        let record = Record::load(&node.host).unwrap_or_else(|error| {
            reasons.push(error.to_string());
            None
        });
        let containerd = node.containerd.version(&node.host).await;
        let reported = node.report().await.unwrap_or_else(|error| {
            reasons.push(error.to_string());
            Default::default()
        });
        match &record {
            None => reasons.push(NOT_INSTALLED.into()),
            Some(record) => {
                check_record(node, record, &mut reasons);
                if let Some(id) = id.filter(|id| record.programs.version.as_deref() != Some(id)) {
                    reasons.push(format!("the installed version is not `{id}`"));
                }
                if let Some(to) = to.filter(|to| record.programs.root != *to) {
                    reasons.push(format!("the programs are not in `{}`", to.display()));
                }
                check_configuration(node, record, containerd.as_ref().ok(), &mut reasons).await;
                let shim = programs::shim(&record.programs.root);
                if !reported.handlers.is_empty() && !reported.has(&shim) {
                    reasons.push(format!("the CRI does not report the handler `{HANDLER}` with our shim"));
                }
            }
        }
        let root = record.as_ref().map(|record| record.programs.root.clone());
        Self {
            ready: reasons.is_empty(),
            layout: node.layout.name,
            config: node.layout.config.clone(),
            containerd: containerd.ok().map(|Version { major, minor }| format!("{major}.{minor}")),
            version: root.as_deref().and_then(|root| programs::current(&node.host, root)),
            programs: root,
            files: record.into_iter().flat_map(|record| record.files).map(|file| file.path).collect(),
            handlers: reported.handlers.into_iter().collect(),
            mends: 0,
            mends_in_words: None,
            reasons,
        }
    }

    /// The same with what `keep` wrote of its mends.
    pub(crate) fn with_mends_of(self, seen: &Seen) -> Self {
        Self { mends: seen.mends, mends_in_words: seen.mends_in_words(), ..self }
    }

    /// Whether nothing of skiff is left, for all that can be seen.
    pub(crate) fn is_removed(&self) -> bool {
        self.reasons == [NOT_INSTALLED] && self.handlers.iter().all(|name| name != HANDLER)
    }

    /// The same for people.
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
            line("mended", mends);
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
        reasons.push("an installation was interrupted; run it again".into());
        return;
    }
    for file in &record.files {
        match node.host.read(&file.path) {
            Ok(text) if text == file.after => {}
            Ok(_) => reasons.push(format!("`{}` is not as it was installed", file.path.display())),
            Err(error) => reasons.push(error.to_string()),
        }
    }
    if programs::current(&node.host, &record.programs.root) != record.programs.version {
        reasons.push(format!("`{}` does not name the installed version", record.programs.root.display()));
    }
    reasons.extend(programs::wrong(&node.host, &record.programs.root));
}

/// containerd's own view, without which the CRI would lose the handler at its next restart.
async fn check_configuration(node: &Node, record: &Record, version: Option<&Version>, reasons: &mut Vec<String>) {
    let dump = match node.dump().await {
        Ok(dump) => dump,
        Err(error) => return reasons.push(error.to_string()),
    };
    let entry = Entry {
        shim: programs::shim(&record.programs.root),
        local_pull: version.is_some_and(|version| version.unpacks_own_platform_only()),
        carried: Vec::new(),
    };
    reasons.extend(dump.check_entry(&entry).err());
}
