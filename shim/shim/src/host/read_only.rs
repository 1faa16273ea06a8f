//! Files that are handed to containers to be read only: opened through a read-only mount of their own.
//!
//! The mode that a descriptor was opened with binds nobody: through `/proc/PID/fd` and `/proc/PID/exe` whoever may write to
//! the file opens it once more for writing. What was opened through a read-only mount cannot be opened for writing there,
//! whatever the file's mode and the process's user and capabilities (open(2): `EROFS`).

use std::fs::File;
use std::io;
use std::os::fd::{AsFd, AsRawFd, FromRawFd, OwnedFd};
use std::path::Path;
use std::sync::Once;

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

/// Opens a regular file so that nobody can write to it through the descriptor.
///
/// # Errors
/// Those of opening it and of making the mount, with the path.
pub(crate) fn open(path: &Path) -> io::Result<File> {
    File::open(path)
        .and_then(|file| reopen(&file))
        .map_err(|error| io::Error::new(error.kind(), format!("could not open `{}`: {error}", path.display())))
}

/// Opens an open file once more so that nobody can write to it through the new descriptor.
///
/// # Errors
/// Those of making the mount and of opening.
pub(crate) fn reopen(file: &File) -> io::Result<File> {
    match mount_of(file) {
        Ok(mount) => File::open(format!("/proc/self/fd/{}", mount.as_raw_fd())),
        Err(error) if is_unsupported(&error) => file.try_clone(),
        Err(error) => Err(error),
    }
}

/// A directory whose files are opened so that nobody can write to them through the descriptors.
#[derive(Debug)]
pub(crate) struct ReadOnlyTree(OwnedFd);

impl ReadOnlyTree {
    /// The directory `root` with what lies in it, without what is mounted there.
    ///
    /// # Errors
    /// Those of opening it and of making the mount.
    pub(crate) fn of(root: &Path) -> io::Result<Self> {
        let root = File::open(root)?;
        match mount_of(&root) {
            Ok(mount) => Ok(Self(mount)),
            Err(error) if is_unsupported(&error) => Ok(Self(root.into())),
            Err(error) => Err(error),
        }
    }

    /// Opens the file `path` in the directory.
    ///
    /// # Errors
    /// Those of `openat2(2)`.
    pub(crate) fn open(&self, path: &Path) -> io::Result<File> {
        let how = OpenHow::new()
            .flags(OFlag::O_RDONLY | OFlag::O_CLOEXEC)
            .resolve(ResolveFlag::RESOLVE_BENEATH | ResolveFlag::RESOLVE_NO_SYMLINKS);
        Ok(File::from(openat2(self.0.as_fd(), path, how)?))
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
        let copy = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(copy.path(), "x").unwrap();
        let file = open(copy.path()).unwrap();
        assert_eq!(refusal(&file), Some(libc::EROFS));
        assert_eq!(io::read_to_string(file).unwrap(), "x");
        assert!(File::options().write(true).open(copy.path()).is_ok(), "the test's own mount is writable");
    }

    #[test]
    fn a_file_of_a_read_only_tree_cannot_be_written_and_nothing_leads_out_of_it() {
        let directory = tempfile::tempdir().unwrap();
        std::fs::create_dir(directory.path().join("a")).unwrap();
        std::fs::write(directory.path().join("a/b"), "y").unwrap();
        std::os::unix::fs::symlink("/etc/passwd", directory.path().join("link")).unwrap();
        let tree = ReadOnlyTree::of(directory.path()).unwrap();
        let file = tree.open(Path::new("a/b")).unwrap();
        assert_eq!(refusal(&file), Some(libc::EROFS));
        assert_eq!(io::read_to_string(file).unwrap(), "y");
        assert!(tree.open(Path::new("link")).is_err());
        assert!(tree.open(Path::new("../x")).is_err());
    }
}
