//! The engine's file, as it is handed to containers: opened through a read-only mount of its own.
//!
//! Through `/proc/PID/exe` a process reaches the file that it runs. What was opened through a read-only mount cannot be
//! opened for writing there, whatever the file's mode and the process's user.

use std::fs::File;
use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use nix::errno::Errno;

const OPEN_TREE_CLONE: libc::c_uint = 1;
const OPEN_TREE_CLOEXEC: libc::c_uint = libc::O_CLOEXEC as libc::c_uint;
const MOUNT_ATTR_RDONLY: u64 = 1;

/// `struct mount_attr` of `mount_setattr(2)`.
#[repr(C)]
struct MountAttributes {
    set: u64,
    clear: u64,
    propagation: u64,
    user_namespace: u64,
}

/// Where a program of skiff lies: beside the shim.
pub(crate) fn beside_the_shim(program: &str) -> io::Result<PathBuf> {
    let own = std::env::current_exe()?;
    Ok(own.parent().unwrap_or(Path::new("/")).join(program))
}

/// Opens `skiff-engine` for being executed in containers.
pub(crate) fn open_engine() -> io::Result<File> {
    let path = beside_the_shim("skiff-engine")?;
    let named =
        |error: io::Error| io::Error::new(error.kind(), format!("could not open `{}`: {error}", path.display()));
    match read_only_mount_of(&path) {
        Ok(mount) => File::options()
            .read(true)
            .custom_flags(libc::O_CLOEXEC)
            .open(format!("/proc/self/fd/{}", mount.as_raw_fd()))
            .map_err(named),
        Err(error) if error.raw_os_error() == Some(libc::ENOSYS) => {
            log::warn!("this kernel cannot protect the engine's file by a read-only mount: {error}");
            File::open(&path).map_err(named)
        }
        Err(error) => Err(named(error)),
    }
}

fn read_only_mount_of(path: &Path) -> io::Result<OwnedFd> {
    let path = std::ffi::CString::new(path.as_os_str().as_encoded_bytes())?;
    // SAFETY: the path is a C string that lives through the call; the result is a new descriptor or an error.
    let fd = unsafe {
        libc::syscall(libc::SYS_open_tree, libc::AT_FDCWD, path.as_ptr(), OPEN_TREE_CLONE | OPEN_TREE_CLOEXEC)
    };
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_opened_through_the_mount_cannot_be_written() {
        let path = std::env::current_exe().unwrap().canonicalize().unwrap();
        let copy = tempfile::NamedTempFile::new().unwrap();
        std::fs::copy(path, copy.path()).unwrap();
        let mount = read_only_mount_of(copy.path()).unwrap();
        let file = File::open(format!("/proc/self/fd/{}", mount.as_raw_fd())).unwrap();
        drop(mount);
        let error = File::options().write(true).open(format!("/proc/self/fd/{}", file.as_raw_fd())).unwrap_err();
        assert_eq!(error.raw_os_error(), Some(libc::EROFS));
        assert!(File::options().write(true).open(copy.path()).is_ok(), "the test's own mount is writable");
    }
}
