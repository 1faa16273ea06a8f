//! The journal: what the node had before, written and synced before anything else is changed.

use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use crate::error::{Context, Error, Result};
use crate::host::Host;

/// Where everything lies that skiff keeps on a node; the cache of compiled code is there, too.
pub(crate) const STATE: &str = "/var/lib/skiff";
const DIRECTORY: &str = "/var/lib/skiff/node";
const FILE: &str = "/var/lib/skiff/node/record.json";
/// The format that is written; another one is refused.
const FORMAT: u32 = 1;

/// What is known of an installation on this node.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Record {
    format: u32,
    /// How far it is.
    pub(crate) state: State,
    /// The files of containerd's configuration that are not as they were.
    pub(crate) files: Vec<FileRecord>,
    /// The programs.
    pub(crate) programs: Programs,
    /// Directories that were made, outermost first.
    pub(crate) directories: Vec<PathBuf>,
}

/// How far an installation is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum State {
    /// Files are being changed; whoever finds this puts `previous` back.
    Changing,
    /// containerd reports the handler.
    Installed,
    /// The files are as they were before skiff; programs, directories and the record are going.
    Removed,
}

/// A file of containerd's configuration: three contents of it, each none when the file is not there.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct FileRecord {
    pub(crate) path: PathBuf,
    pub(crate) edit: Edit,
    /// Before skiff came to the node.
    pub(crate) original: Option<String>,
    /// Before the change that is going on, or went on last.
    pub(crate) previous: Option<String>,
    /// After it.
    pub(crate) after: Option<String>,
}

/// What was done to a file.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Edit {
    /// All of it is ours.
    DropIn,
    /// This pattern was added to its `imports`.
    Import(String),
    /// A marked block stands at its end.
    Block,
}

/// The programs: `ROOT/versions/ID/NAME`, with the link `ROOT/current` to one of the versions.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Programs {
    pub(crate) root: PathBuf,
    /// The version that `current` is to name; none when there is to be none.
    pub(crate) version: Option<String>,
    /// The version that it named before.
    pub(crate) previous: Option<String>,
}

impl Record {
    pub(crate) fn new(files: Vec<FileRecord>, programs: Programs, directories: Vec<PathBuf>) -> Self {
        Self { format: FORMAT, state: State::Changing, files, programs, directories }
    }

    /// Reads the node's record.
    pub(crate) fn load(host: &Host) -> Result<Option<Self>> {
        let Some(text) = host.read(Path::new(FILE))? else { return Ok(None) };
        let record: Self = serde_json::from_str(&text)
            .or_refused(format!("`{FILE}` is not understood; look at it and move it away"))?;
        if record.format != FORMAT {
            return Err(Error::refused(format!("`{FILE}` has the unknown format `{}`", record.format)));
        }
        Ok(Some(record))
    }

    /// Writes the node's record; it is on the disk when this returns.
    pub(crate) fn save(&self, host: &Host) -> Result<()> {
        host.make_directories(Path::new(DIRECTORY), 0o700)?;
        let text = serde_json::to_string_pretty(self).or_host("cannot write JSON")?;
        host.write(Path::new(FILE), &mut text.as_bytes(), 0o600)
    }

    /// What is known of the file `path`.
    pub(crate) fn file(&self, path: &Path) -> Option<&FileRecord> {
        self.files.iter().find(|file| file.path == path)
    }
}

/// Removes the record and the directories that are only for it.
pub(crate) fn forget(host: &Host) -> Result<()> {
    host.remove(Path::new(FILE))?;
    host.remove_empty(Path::new(DIRECTORY))?;
    host.remove_empty(Path::new(STATE))
}
