//! How the cache keeps its size: what is removed, and in which order.

use std::ffi::OsStr;
use std::fs::{self, OpenOptions, TryLockError};
use std::io;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use skiff_plan::CODE_ID;

use super::{Cache, ENTRY, PENDING, at, is_full, is_named, remove_file};

/// An entry as eviction sees it.
struct Entry {
    ours: bool,
    used: SystemTime,
    bytes: u64,
    path: PathBuf,
}

impl Cache {
    /// Does `work`; when the disk is full, once more after the removal of at least `bytes` of old entries.
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

    /// Removes what dead writers left, then the least recently used entries, `bytes` of them or all.
    fn remove_oldest(&self, bytes: u64) -> io::Result<()> {
        self.remove_unlocked()?;
        let mut removed_bytes = 0;
        for entry in self.entries()? {
            if removed_bytes >= bytes {
                break;
            }
            remove_file(&entry.path)?;
            removed_bytes += entry.bytes;
        }
        Ok(())
    }

    /// Removes the least recently used entries beyond the cache's size, though never `newest`; locks that nobody holds;
    /// and the empty directories of other engines.
    pub(super) fn evict(&self, newest: &Path) -> io::Result<()> {
        let entries = self.entries()?;
        let mut total_bytes: u64 = entries.iter().map(|entry| entry.bytes).sum();
        for entry in entries.iter().filter(|entry| entry.path != newest) {
            if total_bytes <= self.max_bytes {
                break;
            }
            remove_file(&entry.path)?;
            total_bytes -= entry.bytes;
        }
        self.remove_unlocked()?;
        for dir in self.code_dirs()?.filter(|dir| !dir.ends_with(CODE_ID)) {
            // It stays as long as it holds anything.
            drop(fs::remove_dir(dir));
        }
        Ok(())
    }

    /// Removes the locks, with what is written in them, that nobody holds: their writers died.
    pub(crate) fn remove_unlocked(&self) -> io::Result<()> {
        self.files(PENDING)?.iter().try_for_each(|(path, _)| remove_unlocked(path))
    }

    /// All entries, the first to go first: other engines' before this one's, then by their last use.
    fn entries(&self) -> io::Result<Vec<Entry>> {
        let mut entries: Vec<Entry> = self
            .files(ENTRY)?
            .into_iter()
            .map(|(path, meta)| Entry {
                ours: path.parent().is_some_and(|dir| dir.ends_with(CODE_ID)),
                used: meta.modified().unwrap_or(SystemTime::UNIX_EPOCH),
                bytes: meta.len(),
                path,
            })
            .collect();
        entries.sort_by(|a, b| (a.ours, a.used, &a.path).cmp(&(b.ours, b.used, &b.path)));
        Ok(entries)
    }

    /// The files with `extension` of all engines. What vanishes meanwhile is left out.
    fn files(&self, extension: &str) -> io::Result<Vec<(PathBuf, fs::Metadata)>> {
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
        Ok(dirs.flatten().filter(|dir| dir.file_type().is_ok_and(|kind| kind.is_dir())).map(|dir| dir.path()))
    }
}

/// Removes a lock file unless somebody holds its lock.
fn remove_unlocked(path: &Path) -> io::Result<()> {
    let Ok(file) = OpenOptions::new().read(true).custom_flags(libc::O_NOFOLLOW | libc::O_NONBLOCK).open(path) else {
        return Ok(());
    };
    match file.try_lock() {
        Ok(()) if is_named(&file, path) => remove_file(path),
        Ok(()) | Err(TryLockError::WouldBlock) => Ok(()),
        Err(TryLockError::Error(error)) => Err(at("lock", path, &error)),
    }
}
