//! Paths of the guest. They are resolved as in any container: absolute links and `..` stay inside the guest's root, and
//! nothing leads out of it. The kernel resolves each path; only what it opened counts.

use std::fs::File;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::path::PathBuf;
use std::sync::Arc;

use rustix::fs::{
    AtFlags, Mode, OFlags, ResolveFlags, Timestamps, linkat, mkdirat, openat2, readlinkat, renameat, symlinkat,
    unlinkat, utimensat,
};
use rustix::io::Errno;
use wasmtime_wasi::runtime::spawn_blocking;

use crate::role::Role;

/// How often a path is resolved again while somebody renames directories on the way.
const RACES_MAX: usize = 64;
/// What wasmtime gives new files, too.
const NEW_FILE: Mode = Mode::from_raw_mode(0o666);
const NEW_DIRECTORY: Mode = Mode::from_raw_mode(0o777);

/// The guest's files.
#[derive(Clone, Default)]
pub(crate) struct Tree {
    /// The directory that is `/` for the guest. Without one, links lead nowhere but below the directory that they are in.
    root: Option<Arc<File>>,
    may_block: bool,
}

/// Whether a symbolic link at the end of a path is followed.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Links {
    /// It is.
    Follow,
    /// The link itself is meant.
    Keep,
}

impl Tree {
    /// The files below `root`, for instances of this role.
    pub(super) fn new(root: Option<Arc<File>>, role: Role) -> Self {
        Self { root, may_block: role.may_block() }
    }

    /// Runs something that may wait for a disk or a server.
    pub(crate) async fn run<T: Send + 'static>(&self, body: impl FnOnce() -> T + Send + 'static) -> T {
        if self.may_block { body() } else { spawn_blocking(body).await }
    }

    /// Whether files may be waited for on the calling thread.
    pub(crate) fn may_block(&self) -> bool {
        self.may_block
    }

    /// Opens a file or directory.
    pub(crate) fn open(&self, from: &File, path: &str, links: Links, flags: OFlags) -> Result<File, Errno> {
        let mode = if flags.contains(OFlags::CREATE) { NEW_FILE } else { Mode::empty() };
        self.resolve(from, path, flags | links.flag(), mode).map(File::from)
    }

    /// Opens whatever is there to look at it, and not to read or change it.
    pub(crate) fn look(&self, from: &File, path: &str, links: Links) -> Result<File, Errno> {
        self.open(from, path, links, OFlags::PATH)
    }

    /// Makes a directory.
    pub(crate) fn create_directory(&self, from: &File, path: &str) -> Result<(), Errno> {
        let (parent, name) = self.parent(from, path)?;
        mkdirat(parent, name, NEW_DIRECTORY)
    }

    /// Removes an empty directory.
    pub(crate) fn remove_directory(&self, from: &File, path: &str) -> Result<(), Errno> {
        let (parent, name) = self.parent(from, path)?;
        unlinkat(parent, name, AtFlags::REMOVEDIR)
    }

    /// Removes a file or a link.
    pub(crate) fn unlink(&self, from: &File, path: &str) -> Result<(), Errno> {
        let (parent, name) = self.parent(from, path)?;
        unlinkat(parent, name, AtFlags::empty())
    }

    /// Moves a file or directory.
    pub(crate) fn rename(&self, from: &File, path: &str, to: &File, new_path: &str) -> Result<(), Errno> {
        let (parent, name) = self.parent(from, path)?;
        let (new_parent, new_name) = self.parent(to, new_path)?;
        renameat(parent, name, new_parent, new_name)
    }

    /// Makes another name for a file.
    pub(crate) fn link(&self, from: &File, path: &str, to: &File, new_path: &str) -> Result<(), Errno> {
        let (parent, name) = self.parent(from, path)?;
        let (new_parent, new_name) = self.parent(to, new_path)?;
        // The kernel would follow a link whose name ends with a slash, which can only mean a directory.
        let name = if name.ends_with('/') { "." } else { name };
        linkat(parent, name, new_parent, new_name, AtFlags::empty())
    }

    /// Makes a symbolic link to `target`, which may be any text.
    pub(crate) fn symlink(&self, target: &str, from: &File, path: &str) -> Result<(), Errno> {
        let (parent, name) = self.parent(from, path)?;
        symlinkat(target, parent, name)
    }

    /// The text of a symbolic link.
    pub(crate) fn read_link(&self, from: &File, path: &str) -> Result<String, Errno> {
        let link = self.look(from, path, Links::Keep)?;
        // What is not a link has no text: `EINVAL`, which the kernel calls `ENOENT` for an open descriptor.
        let text = readlinkat(&link, "", Vec::new()).map_err(|error| match error {
            Errno::NOENT => Errno::INVAL,
            other => other,
        })?;
        text.into_string().map_err(|_| Errno::ILSEQ)
    }

    /// Sets the times of a file, directory or link.
    pub(crate) fn set_times(&self, from: &File, path: &str, links: Links, times: &Timestamps) -> Result<(), Errno> {
        set_times(&self.look(from, path, links)?, times)
    }

    /// Opens the directory that holds the last part of a path, and returns the two. The part is never `..`, and no call
    /// that is made with it follows it if it is a link.
    fn parent<'a>(&self, from: &File, path: &'a str) -> Result<(OwnedFd, &'a str), Errno> {
        let name_end = path.trim_end_matches('/').len();
        let name_begin = path.get(..name_end).and_then(|path| path.rfind('/')).map_or(0, |slash| slash + 1);
        let (parent, name) = path.split_at_checked(name_begin).ok_or(Errno::INVAL)?;
        let (parent, name) = match name.trim_end_matches('/') {
            "" if path.is_empty() => return Err(Errno::NOENT),
            "" | "." | ".." => (path, "."),
            _ if parent.is_empty() => (".", name),
            _ => (parent, name),
        };
        Ok((self.resolve(from, parent, OFlags::PATH | OFlags::DIRECTORY, Mode::empty())?, name))
    }

    fn resolve(&self, from: &File, path: &str, flags: OFlags, mode: Mode) -> Result<OwnedFd, Errno> {
        if path.starts_with('/') {
            // A path of WASI is relative to a directory.
            return Err(Errno::PERM);
        }
        let root = self.root.as_deref();
        if root.is_some_and(|root| std::ptr::eq(root, from)) {
            return open(from, path, flags, mode, ResolveFlags::IN_ROOT);
        }
        match (open(from, path, flags, mode, ResolveFlags::BENEATH), root) {
            // The way leads out of this directory, by an absolute link or by `..`: it is gone once more from the root. A
            // directory that is moved meanwhile makes this fail, or find what is at its former place.
            (Err(Errno::XDEV), Some(root)) => {
                let inside = path_of(from)?.strip_prefix(path_of(root)?).map_err(|_| Errno::PERM)?.join(path);
                open(root, &inside, flags, mode, ResolveFlags::IN_ROOT)
            }
            (Err(Errno::XDEV), None) => Err(Errno::PERM),
            (opened, _) => opened,
        }
    }
}

impl Links {
    fn flag(self) -> OFlags {
        match self {
            Self::Follow => OFlags::empty(),
            Self::Keep => OFlags::NOFOLLOW,
        }
    }
}

/// Sets the times of an open file or directory.
pub(crate) fn set_times(file: &File, times: &Timestamps) -> Result<(), Errno> {
    utimensat(file, "", times, AtFlags::EMPTY_PATH)
}

/// Where an open directory is now.
fn path_of(directory: &File) -> Result<PathBuf, Errno> {
    let link = format!("/proc/self/fd/{}", directory.as_raw_fd());
    std::fs::read_link(link).map_err(|error| Errno::from_io_error(&error).unwrap_or(Errno::IO))
}

fn open(
    from: impl AsFd,
    path: impl rustix::path::Arg + Copy,
    flags: OFlags,
    mode: Mode,
    way: ResolveFlags,
) -> Result<OwnedFd, Errno> {
    let once = || openat2(&from, path, flags | OFlags::CLOEXEC, mode, way | ResolveFlags::NO_MAGICLINKS);
    let mut opened = once();
    for _ in 0..RACES_MAX {
        if !matches!(opened, Err(Errno::AGAIN | Errno::INTR)) {
            break;
        }
        opened = once();
    }
    opened
}
