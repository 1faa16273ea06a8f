//! Opens files that containers may only read, through separate read-only mounts.
//!
//! The mode of a descriptor is not enough: a process that may write to the file can open it again for writing through
//! `/proc/PID/fd` or `/proc/PID/exe`. A file that was opened through a read-only mount cannot be opened for writing there,
//! whatever the file's mode and the process's user and capabilities (open(2): `EROFS`).

use std::collections::BTreeMap;
use std::fs::File;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, Once, PoisonError};

use nix::fcntl::{OFlag, OpenHow, ResolveFlag, openat2};
use skiff_linux::mounts::{self, Attributes, Depth};

/// The directories in which files were opened. They stay open, because closing such a mount waits for the kernel's readers
/// of mounts: some milliseconds on a busy node, which would delay a start.
static TREES: Mutex<BTreeMap<PathBuf, Arc<Tree>>> = Mutex::new(BTreeMap::new());

/// Opens the file `inside` the directory `dir` so that nobody can write to it through the descriptor. The path must not
/// lead out of `dir` by `..` or contain symbolic links.
///
/// # Errors
/// Those of making the mount and of opening, with the path.
pub(crate) fn open(dir: &Path, inside: &Path) -> io::Result<File> {
    let opened = tree_of(dir).and_then(|tree| tree.open(inside));
    opened
        .map_err(|error| io::Error::new(error.kind(), format!("cannot open `{}`: {error}", dir.join(inside).display())))
}

fn tree_of(dir: &Path) -> io::Result<Arc<Tree>> {
    let root = File::open(dir)?;
    let identity = identity_of(&root)?;
    let mut trees = TREES.lock().unwrap_or_else(PoisonError::into_inner);
    // Something else may be there or be mounted there by now.
    if let Some(tree) = trees.get(dir).filter(|tree| tree.identity == identity) {
        return Ok(tree.clone());
    }
    let root = match mount_of(&root) {
        Err(error) if is_unsupported(&error) => root.into(),
        made => made?,
    };
    let tree = Arc::new(Tree { root, identity });
    trees.insert(dir.into(), tree.clone());
    Ok(tree)
}

/// Identifies a directory by its file system and inode.
fn identity_of(file: &File) -> io::Result<(u64, u64)> {
    file.metadata().map(|meta| (meta.dev(), meta.ino()))
}

/// A directory on a separate read-only mount, with its files but without the mounts below it.
#[derive(Debug)]
struct Tree {
    root: OwnedFd,
    identity: (u64, u64),
}

impl Tree {
    fn open(&self, inside: &Path) -> io::Result<File> {
        let how = OpenHow::new()
            .flags(OFlag::O_RDONLY | OFlag::O_CLOEXEC)
            .resolve(ResolveFlag::RESOLVE_BENEATH | ResolveFlag::RESOLVE_NO_SYMLINKS);
        Ok(File::from(openat2(self.root.as_fd(), inside, how)?))
    }
}

/// A detached read-only mount (Linux 5.12) whose root is `file`.
fn mount_of(file: &File) -> io::Result<OwnedFd> {
    let mount = mounts::clone_at(file)?;
    let attributes = Attributes { set: libc::MOUNT_ATTR_RDONLY, ..Attributes::default() };
    mounts::set_attributes(&mount, Depth::Alone, attributes)?;
    Ok(mount)
}

/// Whether the kernel is too old, which is logged once.
fn is_unsupported(error: &io::Error) -> bool {
    static SAID: Once = Once::new();
    let is_unsupported = error.raw_os_error() == Some(libc::ENOSYS);
    if is_unsupported {
        SAID.call_once(|| {
            log::warn!(
                "this kernel cannot use read-only mounts to protect the files that containers get: use Linux 5.12 or later"
            );
        });
    }
    is_unsupported
}

#[cfg(test)]
mod tests {
    use std::os::fd::AsRawFd;

    use super::*;

    fn refusal(file: &File) -> Option<i32> {
        let again = File::options().write(true).open(format!("/proc/self/fd/{}", file.as_raw_fd()));
        again.unwrap_err().raw_os_error()
    }

    #[test]
    fn what_is_opened_through_the_mount_cannot_be_written() {
        let directory = tempfile::tempdir().unwrap();
        std::fs::create_dir(directory.path().join("a")).unwrap();
        std::fs::write(directory.path().join("a/b"), "x").unwrap();
        let file = open(directory.path(), Path::new("a/b")).unwrap();
        assert_eq!(refusal(&file), Some(libc::EROFS));
        assert_eq!(io::read_to_string(file).unwrap(), "x");
        let own = File::options().write(true).open(directory.path().join("a/b"));
        assert!(own.is_ok(), "the test's own mount is writable");
    }

    #[test]
    fn nothing_leads_out_of_a_read_only_directory() {
        let directory = tempfile::tempdir().unwrap();
        std::os::unix::fs::symlink("/etc/passwd", directory.path().join("link")).unwrap();
        assert!(open(directory.path(), Path::new("link")).is_err());
        assert!(open(directory.path(), Path::new("../x")).is_err());
        assert!(open(directory.path(), Path::new("/etc/passwd")).is_err());
    }

    #[test]
    fn a_directory_that_takes_the_place_of_another_is_noticed() {
        let parent = tempfile::tempdir().unwrap();
        let place = parent.path().join("place");
        for content in ["first", "second"] {
            std::fs::create_dir(&place).unwrap();
            std::fs::write(place.join("file"), content).unwrap();
            assert_eq!(io::read_to_string(open(&place, Path::new("file")).unwrap()).unwrap(), content);
            // The first directory stays, so that its inode number is not reused.
            std::fs::rename(&place, parent.path().join(content)).unwrap();
        }
    }
}
