//! How the cache stays within its size: what it removes, and in which order.

use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::fs::{self, TryLockError};
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use skiff_protocol::names::CODE_EXTENSION;
use skiff_protocol::{CODE_ID, Counters};

use super::digests::DIRECTORY as DIGESTS;
use super::slots::SLOT;
use super::trailer::owner_of;
use super::{Cache, PENDING, at, is_full, is_named, open_entry, remove_file};

/// An entry as eviction sees it.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Entry {
    ours: bool,
    used: SystemTime,
    bytes: u64,
    owner: Vec<u8>,
    path: PathBuf,
}

impl Cache {
    /// Does `work`. If the disk is full, removes at least `bytes` of old entries and tries again once.
    pub(super) fn with_room<T>(&self, bytes: u64, mut work: impl FnMut() -> io::Result<T>) -> io::Result<T> {
        match work() {
            Err(error) if is_full(&error) => {
                log::warn!("{error}; removing the least recently used entries");
                self.remove_oldest(bytes)?;
                work()
            }
            done => done,
        }
    }

    /// Removes what dead writers left, then old entries until `bytes` are free or none is left.
    fn remove_oldest(&self, bytes: u64) -> io::Result<()> {
        self.remove_unlocked()?;
        let mut entries = self.entries()?;
        let mut removed_bytes = 0;
        while removed_bytes < bytes
            && let Some(index) = first_to_go(&entries, None)
        {
            let entry = entries.remove(index);
            self.remove_entry(&entry)?;
            removed_bytes += entry.bytes;
        }
        Ok(())
    }

    /// Removes old entries until the cache is within its size, but never `newest`. Also removes locks that nobody holds and
    /// empty directories of other engines.
    pub(super) fn evict(&self, newest: &Path) -> io::Result<()> {
        let mut entries = self.entries()?;
        let mut total_bytes: u64 = entries.iter().map(|entry| entry.bytes).sum();
        while total_bytes > self.max_bytes
            && let Some(index) = first_to_go(&entries, Some(newest))
        {
            let entry = entries.remove(index);
            self.remove_entry(&entry)?;
            total_bytes -= entry.bytes;
        }
        self.remove_unlocked()?;
        for dir in self.code_dirs()?.filter(|dir| !dir.ends_with(CODE_ID)) {
            // Fails while the directory is not empty, as it should.
            drop(fs::remove_dir(dir));
        }
        Ok(())
    }

    fn remove_entry(&self, entry: &Entry) -> io::Result<()> {
        remove_file(&entry.path)?;
        self.count(&Counters { evictions: 1, ..Counters::default() });
        Ok(())
    }

    /// Removes the lock files that nobody holds, with their content: their writers died.
    pub(crate) fn remove_unlocked(&self) -> io::Result<()> {
        self.files(PENDING)?.iter().try_for_each(|(path, _)| remove_unlocked(path))
    }

    fn entries(&self) -> io::Result<Vec<Entry>> {
        let entries = self.files(CODE_EXTENSION)?.into_iter().map(|(path, meta)| Entry {
            ours: path.parent().is_some_and(|dir| dir.ends_with(CODE_ID)),
            used: meta.modified().unwrap_or(SystemTime::UNIX_EPOCH),
            bytes: meta.len(),
            owner: open_entry(&path).map(|entry| owner_of(&entry).to_vec()).unwrap_or_default(),
            path,
        });
        Ok(entries.collect())
    }

    /// The files with `extension` of all engines, without those that vanish meanwhile.
    pub(super) fn files(&self, extension: &str) -> io::Result<Vec<(PathBuf, fs::Metadata)>> {
        let mut files = Vec::new();
        for dir in self.code_dirs()? {
            for file in fs::read_dir(dir).into_iter().flatten() {
                let path = file?.path();
                if path.extension() == Some(OsStr::new(extension))
                    && let Ok(meta) = fs::symlink_metadata(&path)
                {
                    files.push((path, meta));
                }
            }
        }
        Ok(files)
    }

    /// The directories of this engine and of others.
    fn code_dirs(&self) -> io::Result<impl Iterator<Item = PathBuf>> {
        let dirs = fs::read_dir(&self.dir).map_err(|error| at("read", &self.dir, &error))?;
        let is_engines = |dir: &fs::DirEntry| {
            let name = dir.file_name();
            let is_another = name.as_bytes().starts_with(SLOT.as_bytes()) || name == DIGESTS;
            !is_another && dir.file_type().is_ok_and(|kind| kind.is_dir())
        };
        Ok(dirs.flatten().filter(is_engines).map(|dir| dir.path()))
    }
}

/// The entry to remove first: one of another engine, if there is any, otherwise the least recently used one of the owner
/// with the most bytes. So a tenant who fills the cache pushes out their own code, not their neighbours'. `newest` stays:
/// if its owner has the most bytes but no other entry, nothing is removed.
fn first_to_go(entries: &[Entry], newest: Option<&Path>) -> Option<usize> {
    let candidates = || entries.iter().enumerate().filter(|(_, entry)| newest != Some(entry.path.as_path()));
    let first = |of: &dyn Fn(&Entry) -> bool| {
        let mine = candidates().filter(|(_, entry)| of(entry));
        mine.min_by_key(|(_, entry)| (entry.used, &entry.path)).map(|(index, _)| index)
    };
    first(&|entry| !entry.ours).or_else(|| {
        let mut sums: BTreeMap<&[u8], u64> = BTreeMap::new();
        for entry in entries {
            *sums.entry(&entry.owner).or_default() += entry.bytes;
        }
        let (owner, _) = sums.into_iter().max_by_key(|(_, bytes)| *bytes)?;
        first(&|entry| entry.owner == owner)
    })
}

/// Removes a lock file unless its lock is held.
fn remove_unlocked(path: &Path) -> io::Result<()> {
    let Ok(file) = open_entry(path) else { return Ok(()) };
    match file.try_lock() {
        Ok(()) if is_named(&file, path) => remove_file(path),
        Ok(()) | Err(TryLockError::WouldBlock) => Ok(()),
        Err(TryLockError::Error(error)) => Err(at("lock", path, &error)),
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    fn entry(name: &str, owner: &str, age: u64, bytes: u64) -> Entry {
        Entry {
            ours: owner != "other engine",
            used: SystemTime::UNIX_EPOCH + Duration::from_secs(1000 - age),
            bytes,
            owner: owner.into(),
            path: name.into(),
        }
    }

    #[test]
    fn who_fills_the_cache_pushes_out_his_own_code() {
        let check = |entries: &[Entry], newest: &str, expected: Option<&str>| {
            let found = first_to_go(entries, Some(Path::new(newest))).map(|index| entries[index].path.clone());
            assert_eq!(found.as_deref(), expected.map(Path::new), "{entries:?}");
        };
        let (old, small) = (entry("old", "a", 500, 1), entry("small", "b", 900, 10));
        let (big, bigger) = (entry("big", "b", 100, 50), entry("bigger", "b", 10, 70));
        check(&[old.clone(), big.clone(), bigger.clone()], "bigger", Some("big"));
        check(&[old.clone(), small.clone(), bigger.clone()], "old", Some("small"));
        check(&[old.clone(), bigger.clone()], "bigger", None);
        check(&[old.clone(), bigger, entry("z", "other engine", 1, 1)], "bigger", Some("z"));
        check(&[old, small, big], "nothing", Some("small"));
        check(&[], "nothing", None);
    }
}
