//! Mounts by descriptor (`open_tree(2)`, `mount_setattr(2)`, `move_mount(2)`) and paths in the kernel's list of mounts.

use std::ffi::{CStr, OsString};
use std::fs::File;
use std::io::{self, BufRead, BufReader};
use std::ops::ControlFlow;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStringExt;
use std::path::{Path, PathBuf};

use nix::errno::Errno;
use rustix::fs::CWD;
use rustix::mount::{MoveMountFlags, OpenTreeFlags, move_mount, open_tree};

/// What [`set_attributes`] changes.
#[derive(Clone, Copy, Debug, Default)]
pub struct Attributes<'fd> {
    /// The `MOUNT_ATTR_*` flags to set.
    pub set: u64,
    /// The `MS_*` propagation, or 0 to leave it.
    pub propagation: u64,
    /// The user namespace by which owners are mapped; it implies `MOUNT_ATTR_IDMAP`.
    pub user_namespace: Option<BorrowedFd<'fd>>,
}

/// The mounts that a change applies to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Depth {
    /// The one mount.
    Alone,
    /// The mount, and every one below it.
    WithSubmounts,
}

/// Makes a detached copy of the mount at `path`, with every mount below it.
///
/// # Errors
/// Those of `open_tree(2)`.
pub fn clone_tree(path: &Path) -> io::Result<OwnedFd> {
    let flags = OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC | OpenTreeFlags::AT_RECURSIVE;
    Ok(open_tree(CWD, path, flags)?)
}

/// Makes a detached copy of the mount of `file`, with `file` as its root and without the mounts below it.
///
/// # Errors
/// Those of `open_tree(2)`.
pub fn clone_at(file: impl AsFd) -> io::Result<OwnedFd> {
    let flags = OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC | OpenTreeFlags::AT_EMPTY_PATH;
    Ok(open_tree(file, c"", flags)?)
}

/// Mounts the detached mount `tree` at `target`.
///
/// # Errors
/// Those of `move_mount(2)`.
pub fn attach(tree: impl AsFd, target: &Path) -> io::Result<()> {
    Ok(move_mount(tree, c"", CWD, target, MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH)?)
}

/// Changes the attributes of the mount whose root is `mount`.
///
/// # Errors
/// Those of `mount_setattr(2)`, which Linux has since 5.12.
pub fn set_attributes(mount: impl AsFd, depth: Depth, attributes: Attributes<'_>) -> io::Result<()> {
    set(mount.as_fd().as_raw_fd(), c"", libc::AT_EMPTY_PATH.cast_unsigned() | recursion(depth), attributes)
}

/// Changes the attributes of the mount at `path`.
///
/// # Errors
/// Those of [`set_attributes`].
pub fn set_attributes_at(path: &CStr, depth: Depth, attributes: Attributes<'_>) -> io::Result<()> {
    set(libc::AT_FDCWD, path, recursion(depth), attributes)
}

fn recursion(depth: Depth) -> u32 {
    /// From `linux/fcntl.h`; libc does not define it for every target.
    const AT_RECURSIVE: u32 = 0x8000;
    match depth {
        Depth::Alone => 0,
        Depth::WithSubmounts => AT_RECURSIVE,
    }
}

fn set(directory: i32, path: &CStr, flags: u32, attributes: Attributes<'_>) -> io::Result<()> {
    let namespace = attributes.user_namespace.map(|namespace| u64::try_from(namespace.as_raw_fd())).transpose();
    let namespace = namespace.map_err(io::Error::other)?;
    let attributes = libc::mount_attr {
        attr_set: attributes.set | namespace.map_or(0, |_| libc::MOUNT_ATTR_IDMAP),
        attr_clr: 0,
        propagation: attributes.propagation,
        userns_fd: namespace.unwrap_or(0),
    };
    let size = size_of_val(&attributes);
    // SAFETY: the path and the structure outlive the call, which only reads them; the size is the structure's.
    let done =
        unsafe { libc::syscall(libc::SYS_mount_setattr, directory, path.as_ptr(), flags, &raw const attributes, size) };
    Errno::result(done)?;
    Ok(())
}

/// Calls `look` with each line of `/proc/self/mountinfo` (proc_pid_mountinfo(5)) until it breaks. Only one line is in memory at a
/// time: with hundreds of pods on the node the list has hundreds of kilobytes.
///
/// # Errors
/// Those of reading it.
pub fn each_mount(mut look: impl FnMut(&str) -> ControlFlow<()>) -> io::Result<()> {
    let mut list = BufReader::new(File::open("/proc/self/mountinfo")?);
    let mut line = Vec::new();
    while list.read_until(b'\n', &mut line)? > 0 {
        if look(String::from_utf8_lossy(&line).trim_end_matches('\n')).is_break() {
            break;
        }
        line.clear();
    }
    Ok(())
}

/// Decodes a path of `/proc/PID/mountinfo`, which writes space, tab, newline and backslash as `\` and three octal digits
/// (proc_pid_mountinfo(5)).
pub fn unescape(text: &str) -> PathBuf {
    let mut bytes = Vec::new();
    let mut rest = text.as_bytes();
    while let Some((&byte, after)) = rest.split_first() {
        let octal = after.get(..3).filter(|_| byte == b'\\').and_then(|digits| str::from_utf8(digits).ok());
        match octal.and_then(|digits| u8::from_str_radix(digits, 8).ok()) {
            Some(escaped) => {
                bytes.push(escaped);
                rest = &after[3..];
            }
            None => {
                bytes.push(byte);
                rest = after;
            }
        }
    }
    PathBuf::from(OsString::from_vec(bytes))
}

#[cfg(test)]
mod tests {
    use std::fs::File;

    use super::*;

    #[test]
    fn a_read_only_copy_of_a_mount_refuses_to_be_written() {
        let directory = tempfile::tempdir().unwrap();
        let mount = clone_at(File::open(directory.path()).unwrap()).unwrap();
        let attributes = Attributes { set: libc::MOUNT_ATTR_RDONLY, ..Attributes::default() };
        set_attributes(&mount, Depth::Alone, attributes).unwrap();
        let file = format!("/proc/self/fd/{}/new", mount.as_raw_fd());
        assert_eq!(File::create(file).unwrap_err().raw_os_error(), Some(libc::EROFS));
        assert!(File::create(directory.path().join("new")).is_ok());
    }

    #[test]
    fn a_mount_point_is_read_as_the_kernel_writes_it() {
        for (text, expected) in [
            ("/a", "/a"),
            ("/a\\040b\\011c", "/a b\tc"),
            ("/back\\134slash", "/back\\slash"),
            ("/cut\\04", "/cut\\04"),
            ("/no\\999", "/no\\999"),
        ] {
            assert_eq!(unescape(text), PathBuf::from(expected), "{text}");
        }
    }
}
