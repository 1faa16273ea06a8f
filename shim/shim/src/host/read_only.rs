//! Files that are handed to containers to be read only: opened through a read-only mount of their own.
//!
//! The mode that a descriptor was opened with binds nobody: through `/proc/PID/fd` and `/proc/PID/exe` whoever may write to
//! the file opens it once more for writing. What was opened through a read-only mount cannot be opened for writing there,
//! whatever the file's mode and the process's user and capabilities (open(2): `EROFS`).

use std::collections::BTreeMap;
use std::fs::File;
use std::io;
use std::os::fd::{AsFd, AsRawFd, FromRawFd, OwnedFd};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, Once, PoisonError};

use nix::errno::Errno;
use nix::fcntl::{OFlag, OpenHow, ResolveFlag, openat2};

const OPEN_TREE_CLONE: libc::c_uint = 1;
const OPEN_TREE_CLOEXEC: libc::c_uint = libc::O_CLOEXEC as libc::c_uint;
const AT_EMPTY_PATH: libc::c_uint = libc::AT_EMPTY_PATH as libc::c_uint;
const MOUNT_ATTR_RDONLY: u64 = 1;

/// `struct mount_attr` of `mount_setattr(2)`.
#[repr(C)]
struct MountAttributes {
    set: u64,
    clear: u64,
    propagation: u64,
    user_namespace: u64,
}

/// The directories that files were opened in. Closing such a mount waits for the kernel's readers of mounts (some
/// milliseconds on a busy node), which no start has to do.
static TREES: Mutex<BTreeMap<PathBuf, Arc<Tree>>> = Mutex::new(BTreeMap::new());

/// Opens the file `inside` the directory `dir` so that nobody can write to it through the descriptor. Neither `..` nor a
/// symbolic link leads to it.
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
    // Something else may lie or be mounted there by now.
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

/// Tells one directory from another: the file system and the inode.
fn identity_of(file: &File) -> io::Result<(u64, u64)> {
    file.metadata().map(|meta| (meta.dev(), meta.ino()))
}

/// A directory on a read-only mount of its own, with what lies in it, without what is mounted there.
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
    let flags = OPEN_TREE_CLONE | OPEN_TREE_CLOEXEC | AT_EMPTY_PATH;
    // SAFETY: the empty path is a C string; the descriptor is open; the result is a new descriptor or an error.
    let fd = unsafe { libc::syscall(libc::SYS_open_tree, file.as_raw_fd(), c"".as_ptr(), flags) };
    let fd = i32::try_from(Errno::result(fd)?).map_err(io::Error::other)?;
    // SAFETY: the kernel has just made this descriptor for us, and nobody else knows of it.
    let mount = unsafe { OwnedFd::from_raw_fd(fd) };
    let attributes = MountAttributes { set: MOUNT_ATTR_RDONLY, clear: 0, propagation: 0, user_namespace: 0 };
    // SAFETY: the empty path and the structure live through the call, and the size is the structure's.
    let set = unsafe {
        libc::syscall(
            libc::SYS_mount_setattr,
            mount.as_raw_fd(),
            c"".as_ptr(),
            libc::AT_EMPTY_PATH,
            &raw const attributes,
            size_of::<MountAttributes>(),
        )
    };
    Errno::result(set)?;
    Ok(mount)
}

/// Whether the kernel is too old, which is said once.
fn is_unsupported(error: &io::Error) -> bool {
    static SAID: Once = Once::new();
    let is_unsupported = error.raw_os_error() == Some(libc::ENOSYS);
    if is_unsupported {
        SAID.call_once(|| {
            log::warn!("this kernel cannot protect by read-only mounts what containers are handed: Linux 5.12 can");
        });
    }
    is_unsupported
}

#[cfg(test)]
mod tests {
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
            // It stays, so that its inode's number is not given again.
            std::fs::rename(&place, parent.path().join(content)).unwrap();
        }
    }
}
