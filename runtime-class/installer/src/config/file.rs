//! A file of containerd's configuration and what becomes of it. The journal stores it, so that every change can be taken back.

use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use crate::config::edit;
use crate::config::layout::GO_BASE;
use crate::error::Result;

/// A file with three of its contents; a content is `None` where the file does not exist.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct ConfigFile {
    pub(crate) path: PathBuf,
    pub(crate) edit: Edit,
    /// Before skiff came to the node.
    pub(crate) original: Option<String>,
    /// Before the current or the last change.
    pub(crate) previous: Option<String>,
    /// After it.
    pub(crate) after: Option<String>,
}

/// How a file was changed.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Edit {
    /// The whole file is ours.
    DropIn,
    /// This pattern was added to its `imports`.
    Import(String),
    /// A marked block was added at its end.
    Block,
}

impl ConfigFile {
    /// The change that makes the file, whose text is `now`, what it was before skiff.
    pub(crate) fn taken_back(&self, now: Option<String>) -> Result<Self> {
        let original = original(Some(self), &self.path, now.as_deref())?;
        let after = original.clone();
        Ok(Self { path: self.path.clone(), edit: self.edit.clone(), original, previous: now, after })
    }
}

/// What a file with the text `now` would be without us; `known` is what the journal has on it.
pub(crate) fn original(known: Option<&ConfigFile>, path: &Path, now: Option<&str>) -> Result<Option<String>> {
    if let Some(known) = known.filter(|known| known.after.as_deref() == now) {
        return Ok(known.original.clone());
    }
    let Some(now) = now else { return Ok(None) };
    if edit::is_ours(now) {
        return Ok(None);
    }
    if let Some(without) = edit::without_block(now) {
        return Ok((without != GO_BASE || known.is_none_or(|known| known.original.is_some())).then_some(without));
    }
    match known.map(|known| &known.edit) {
        Some(Edit::Import(pattern)) => edit::without_import(path, now, pattern).map(Some),
        Some(Edit::DropIn | Edit::Block) | None => Ok(Some(now.to_owned())),
    }
}
