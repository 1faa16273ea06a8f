//! The record: what the node had before, written and synced before anything else is changed.

use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use crate::config::file::ConfigFile;
use crate::error::{Context, Error, Result};
use crate::node::files::Host;

/// The directory of everything that skiff keeps on a node, including the cache of compiled code.
pub(crate) const STATE: &str = "/var/lib/skiff";
const DIRECTORY: &str = "/var/lib/skiff/node";
const FILE: &str = "/var/lib/skiff/node/record.json";
/// The format that is written; any other is refused.
const FORMAT: u32 = 1;

/// What is known about the installation on this node.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Record {
    format: u32,
    /// How far it has come.
    pub(crate) state: State,
    /// The files of containerd's configuration that were changed.
    pub(crate) files: Vec<ConfigFile>,
    /// The programs.
    pub(crate) programs: Programs,
    /// Directories that were made, outermost first.
    pub(crate) directories: Vec<PathBuf>,
}

/// How far an installation has come.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum State {
    /// Files are being changed; a run that finds this puts `previous` back.
    Changing,
    /// containerd reports the handler.
    Installed,
    /// The files are as they were before skiff; programs, directories and the record are being removed.
    Removed,
}

/// The programs: `ROOT/versions/ID/NAME`, with the link `ROOT/current` to one of the versions.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Programs {
    pub(crate) root: PathBuf,
    /// The version that `current` should name; `None` for no version.
    pub(crate) version: Option<String>,
    /// The version that new pods got before.
    pub(crate) previous: Option<String>,
    /// The root of that version, if it is another one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) previous_root: Option<PathBuf>,
    /// The roots that programs were moved away from, until no process runs from them.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub(crate) left: Vec<PathBuf>,
}

impl Record {
    pub(crate) fn new(files: Vec<ConfigFile>, programs: Programs, directories: Vec<PathBuf>) -> Self {
        Self { format: FORMAT, state: State::Changing, files, programs, directories }
    }

    /// Reads the node's record.
    pub(crate) fn load(host: &Host) -> Result<Option<Self>> {
        let Some(text) = host.read(Path::new(FILE))? else { return Ok(None) };
        let record: Self = serde_json::from_str(&text)
            .or_refused(format!("`{FILE}` is not a valid record: look at it and move it away"))?;
        if record.format != FORMAT {
            return Err(Error::refused(format!("`{FILE}` has the unknown format `{}`", record.format)));
        }
        Ok(Some(record))
    }

    /// Writes the node's record, which is on the disk when this returns.
    pub(crate) fn save(&self, host: &Host) -> Result<()> {
        host.make_directories(Path::new(DIRECTORY), 0o700)?;
        let text = serde_json::to_string_pretty(self).or_host("cannot write JSON")?;
        host.write(Path::new(FILE), &mut text.as_bytes(), 0o600)
    }

    /// Whether the change makes a file another one.
    pub(crate) fn changes_files(&self) -> bool {
        self.files.iter().any(|file| file.previous != file.after)
    }

    /// Turns the record of a change into that of the installation.
    pub(crate) fn mark_installed(&mut self) {
        self.state = State::Installed;
        self.programs.previous = None;
        self.programs.left.extend(self.programs.previous_root.take());
        for file in &mut self.files {
            file.previous.clone_from(&file.after);
        }
        self.files.retain(|file| file.after != file.original);
    }
}

/// Removes the record and the directories that exist only for it.
pub(crate) fn forget(host: &Host) -> Result<()> {
    host.remove(Path::new(FILE))?;
    host.remove_empty(Path::new(DIRECTORY))?;
    host.remove_empty(Path::new(STATE))
}
