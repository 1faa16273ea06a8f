//! Guests that failed to compile: for some time they are refused with the same sentence, without another attempt.

use std::fs;
use std::io::{self, ErrorKind, Read};
use std::time::{Duration, SystemTime};

use skiff_protocol::names::FAILURE_EXTENSION;

use super::{Cache, at, make_private_dir, open_entry, remove_file};

/// How long a failure is remembered.
const MEMORY: Duration = Duration::from_secs(600);
/// A remembered sentence is cut to this many bytes.
const SENTENCE_BYTES_MAX: usize = 4096;
/// The most failures that are remembered.
const FAILURES_MAX: usize = 1000;

impl Cache {
    /// Why the guest recently failed to compile, if it did.
    ///
    /// # Errors
    /// `InvalidInput` for a malformed digest; those of reading the sentence.
    pub(super) fn recent_failure(&self, digest: &str) -> io::Result<Option<String>> {
        let path = self.path(digest, FAILURE_EXTENSION)?;
        let file = match open_entry(&path) {
            Err(error) if error.kind() == ErrorKind::NotFound => return Ok(None),
            opened => opened.map_err(|error| at("open", &path, &error))?,
        };
        if is_over(&file.metadata()?) {
            return remove_file(&path).map(|()| None);
        }
        let mut text = String::new();
        file.take(SENTENCE_BYTES_MAX as u64).read_to_string(&mut text)?;
        Ok(Some(text))
    }

    /// Remembers that the guest cannot be compiled, and why.
    ///
    /// # Errors
    /// Those of writing the sentence.
    pub(super) fn remember_failure(&self, digest: &str, sentence: &str) -> io::Result<()> {
        let known = self.files(FAILURE_EXTENSION)?;
        for (path, _) in known.iter().filter(|(_, meta)| is_over(meta)) {
            remove_file(path)?;
        }
        if known.len() >= FAILURES_MAX {
            return Ok(());
        }
        let path = self.path(digest, FAILURE_EXTENSION)?;
        if let Some(dir) = path.parent() {
            make_private_dir(dir)?;
        }
        let text = &sentence[..sentence.floor_char_boundary(SENTENCE_BYTES_MAX)];
        fs::write(&path, text).map_err(|error| at("write", &path, &error))
    }
}

fn is_over(meta: &fs::Metadata) -> bool {
    let age = meta.modified().map_or(Duration::MAX, |at| SystemTime::now().duration_since(at).unwrap_or_default());
    age > MEMORY
}
