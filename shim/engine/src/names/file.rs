//! A small file of the container that is read again when it has changed. It is opened only if it is a regular file, so that
//! no fifo or device of an image is ever waited for or touched, and it is read with a bound.

use std::fs::{File, Metadata};
use std::io::Read;
use std::os::fd::AsRawFd;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use nix::fcntl::{OFlag, open};
use nix::sys::stat::Mode;

/// The most that is read of a file.
const BYTES_MAX: u64 = 1 << 20;

/// The file at a path, and its parsed text.
pub(super) struct Watched<T> {
    path: PathBuf,
    parse: fn(&str) -> T,
    known: Mutex<Option<(Option<Version>, Arc<T>)>>,
}

/// What distinguishes one content of a file from the next.
#[derive(Clone, Copy, PartialEq, Eq)]
struct Version {
    place: (u64, u64),
    changed: (i64, i64),
    modified: (i64, i64),
    bytes: u64,
}

impl<T> Watched<T> {
    /// Watches `path`. `parse` gets its text, which is empty if there is no such regular file.
    pub(super) fn new(path: &Path, parse: fn(&str) -> T) -> Self {
        Self { path: path.to_owned(), parse, known: Mutex::new(None) }
    }

    /// What the file contains now.
    pub(super) fn current(&self) -> Arc<T> {
        let found = find(&self.path);
        let version = found.as_ref().map(|(_, metadata)| Version::of(metadata));
        let mut known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((known_version, value)) = &*known
            && *known_version == version
        {
            return Arc::clone(value);
        }
        let text = found.and_then(|(place, _)| read(&place)).unwrap_or_default();
        let value = Arc::new((self.parse)(&text));
        *known = Some((version, Arc::clone(&value)));
        value
    }
}

impl Version {
    fn of(metadata: &Metadata) -> Self {
        Self {
            place: (metadata.dev(), metadata.ino()),
            changed: (metadata.ctime(), metadata.ctime_nsec()),
            modified: (metadata.mtime(), metadata.mtime_nsec()),
            bytes: metadata.len(),
        }
    }
}

/// The regular file at `path`, not yet opened for reading.
fn find(path: &Path) -> Option<(File, Metadata)> {
    let place = File::from(open(path, OFlag::O_PATH | OFlag::O_CLOEXEC, Mode::empty()).ok()?);
    let metadata = place.metadata().ok()?;
    metadata.is_file().then_some((place, metadata))
}

fn read(place: &File) -> Option<String> {
    let flags = OFlag::O_RDONLY | OFlag::O_NONBLOCK | OFlag::O_CLOEXEC;
    let path = format!("/proc/self/fd/{}", place.as_raw_fd());
    let mut bytes = Vec::new();
    File::from(open(path.as_str(), flags, Mode::empty()).ok()?).take(BYTES_MAX).read_to_end(&mut bytes).ok()?;
    Some(String::from_utf8_lossy(&bytes).into_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn watch(path: &Path) -> Watched<String> {
        Watched::new(path, str::to_owned)
    }

    #[test]
    fn a_changed_file_is_read_again() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("hosts");
        let watched = watch(&path);
        assert_eq!(*watched.current(), "");
        std::fs::write(&path, "one").unwrap();
        let one = watched.current();
        assert_eq!(*one, "one");
        assert!(Arc::ptr_eq(&one, &watched.current()), "an unchanged file is not read");
        std::fs::write(&path, "three").unwrap();
        assert_eq!(*watched.current(), "three");
        std::fs::rename(folder.path().join("hosts"), folder.path().join("gone")).unwrap();
        assert_eq!(*watched.current(), "");
        std::os::unix::fs::symlink("gone", &path).unwrap();
        assert_eq!(*watched.current(), "three");
    }

    #[test]
    fn what_is_no_regular_file_is_never_opened() {
        let folder = tempfile::tempdir().unwrap();
        let fifo = folder.path().join("fifo");
        nix::unistd::mkfifo(&fifo, Mode::S_IRWXU).unwrap();
        for path in [fifo.as_path(), folder.path(), Path::new("/dev/zero")] {
            assert_eq!(*watch(path).current(), "", "{}", path.display());
        }
    }

    #[test]
    fn no_more_than_the_bound_is_read() {
        let file = tempfile::NamedTempFile::new().unwrap();
        file.as_file().set_len(BYTES_MAX * 4).unwrap();
        assert_eq!(watch(file.path()).current().len() as u64, BYTES_MAX);
    }
}
