//! Guests that failed to compile: for some time they are refused with the same sentence, without another attempt.

use std::fs;
use std::io::{self, ErrorKind, Read};
use std::time::{Duration, SystemTime};

use skiff_protocol::names::FAILURE_EXTENSION;

use super::{Cache, Lasting, Wanted, at, make_private_dir, open_entry, remove_file};

/// How long a failure is remembered.
const MEMORY: Duration = Duration::from_secs(600);
/// What is remembered of a failure is cut to this many bytes.
const SENTENCE_BYTES_MAX: usize = 4096;
/// The most failures that are remembered.
const FAILURES_MAX: usize = 1000;

impl Cache {
    /// Why the guest recently failed to compile, if it did, and would again with the memory that it may take now.
    ///
    /// # Errors
    /// `InvalidInput` for a malformed digest; those of reading the sentence.
    pub(super) fn recent_failure(&self, wanted: Wanted<'_>) -> io::Result<Option<String>> {
        let path = self.path(wanted.digest, FAILURE_EXTENSION)?;
        let file = match open_entry(&path) {
            Err(error) if error.kind() == ErrorKind::NotFound => return Ok(None),
            opened => opened.map_err(|error| at("open", &path, &error))?,
        };
        if is_over(&file.metadata()?) {
            return remove_file(&path).map(|()| None);
        }
        let mut text = String::new();
        file.take(SENTENCE_BYTES_MAX as u64).read_to_string(&mut text)?;
        // An earlier release wrote only the sentence.
        let (given, sentence) = text.split_once('\n').unwrap_or(("", &text));
        let was_given_less = given.parse().is_ok_and(|given: u64| given < wanted.memory_bytes);
        Ok((!was_given_less).then(|| sentence.to_owned()))
    }

    /// Remembers that the guest cannot be compiled, and why: the memory that was too little, if it was that, on a line before the
    /// sentence.
    ///
    /// # Errors
    /// Those of writing the sentence.
    pub(super) fn remember_failure(&self, lasting: &Lasting) -> io::Result<()> {
        let known = self.files(FAILURE_EXTENSION)?;
        for (path, _) in known.iter().filter(|(_, meta)| is_over(meta)) {
            remove_file(path)?;
        }
        if known.len() >= FAILURES_MAX {
            return Ok(());
        }
        let path = self.path(&lasting.digest, FAILURE_EXTENSION)?;
        if let Some(dir) = path.parent() {
            make_private_dir(dir)?;
        }
        let given = lasting.memory_bytes.map(|bytes| bytes.to_string()).unwrap_or_default();
        let text = format!("{given}\n{}", lasting.sentence);
        fs::write(&path, &text[..text.floor_char_boundary(SENTENCE_BYTES_MAX)])
            .map_err(|error| at("write", &path, &error))
    }
}

fn is_over(meta: &fs::Metadata) -> bool {
    let age = meta.modified().map_or(Duration::MAX, |at| SystemTime::now().duration_since(at).unwrap_or_default());
    age > MEMORY
}
