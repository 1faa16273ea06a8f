//! Digests of files, so that they need not be hashed again. Whoever asks answers for it that a changed file is not the same.

use std::fs;
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use super::{Cache, make_private_dir};

/// The directory of what is remembered.
pub(super) const DIRECTORY: &str = "digests";
/// How many files are remembered at most; a new one takes the place of another.
const SLOTS: u64 = 1024;

/// What tells a file from every other one, and from itself before it was changed.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct FileIdentity {
    pub(crate) device: u64,
    pub(crate) inode: u64,
    pub(crate) bytes: u64,
    /// When it was last changed in any way, in seconds and nanoseconds (`ctime`).
    pub(crate) changed: (i64, i64),
    /// When its content was last changed.
    pub(crate) modified: (i64, i64),
}

#[derive(Serialize, Deserialize)]
struct Remembered {
    file: FileIdentity,
    digest: String,
}

impl Cache {
    /// The digest of `file` if it is remembered.
    pub(crate) fn digest_of(&self, file: &FileIdentity) -> Option<String> {
        let text = fs::read(self.slot_of(file)).ok()?;
        let remembered: Remembered = serde_json::from_slice(&text).ok()?;
        (remembered.file == *file).then_some(remembered.digest)
    }

    /// Remembers the digest of `file`.
    ///
    /// # Errors
    /// Those of writing it.
    pub(crate) fn remember_digest(&self, file: FileIdentity, digest: &str) -> io::Result<()> {
        let slot = self.slot_of(&file);
        make_private_dir(&self.dir.join(DIRECTORY))?;
        let temporary = slot.with_extension(format!("{}.new", std::process::id()));
        let remembered = Remembered { file, digest: digest.into() };
        let written = fs::OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(&temporary);
        let written = written.and_then(|mut file| file.write_all(&serde_json::to_vec(&remembered)?));
        written.and_then(|()| fs::rename(&temporary, slot)).inspect_err(|_| drop(fs::remove_file(&temporary)))
    }

    fn slot_of(&self, file: &FileIdentity) -> PathBuf {
        let slot = file.inode.wrapping_add(file.device) % SLOTS;
        self.dir.join(DIRECTORY).join(slot.to_string())
    }
}
