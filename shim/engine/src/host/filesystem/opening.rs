//! From the flags of WASI to an open descriptor, and its times. What can be asked for is the same in every version.

use std::time::{Duration, UNIX_EPOCH};
use std::{fs, io};

use rustix::fs::{OFlags, Timespec, UTIME_NOW, UTIME_OMIT};
use rustix::io::Errno;
use wasmtime_wasi::filesystem::{Descriptor, Dir, File};
use wasmtime_wasi::{FsPerms, OpenMode};

use crate::files::tree::{Links, Tree};

/// How a guest wants to open something.
#[derive(Clone, Copy)]
pub(super) struct Open {
    pub(super) links: Links,
    pub(super) create: bool,
    pub(super) directory: bool,
    pub(super) exclusive: bool,
    pub(super) truncate: bool,
    pub(super) read: bool,
    pub(super) write: bool,
    /// Whether writes are to reach the disk before they return, which is not supported.
    pub(super) sync: bool,
}

impl Open {
    /// Opens a path, and returns what the guest gets.
    pub(super) fn open(self, tree: &Tree, from: &fs::File, path: &str) -> Result<Descriptor, Errno> {
        let changes = self.create || self.exclusive || self.truncate;
        if self.sync {
            return Err(Errno::NOTSUP);
        }
        if self.directory && changes {
            return Err(Errno::INVAL);
        }
        let write = self.write || self.create || self.truncate;
        let read = self.read || !self.write;
        let mut flags = match (read, write) {
            (true, true) => OFlags::RDWR,
            (false, true) => OFlags::WRONLY,
            (_, false) => OFlags::RDONLY,
        };
        flags.set(OFlags::CREATE, self.create);
        flags.set(OFlags::EXCL, self.create && self.exclusive);
        flags.set(OFlags::TRUNC, self.truncate);
        flags.set(OFlags::DIRECTORY, self.directory);
        let opened = tree.open(from, path, self.links, flags)?;
        let mut mode = OpenMode::empty();
        mode.set(OpenMode::READ, read);
        mode.set(OpenMode::WRITE, write);
        let is_directory = opened.metadata().map_err(|error| errno(&error))?.is_dir();
        Ok(if is_directory {
            Descriptor::Dir(Dir::new(opened, FsPerms::ReadWrite, mode, tree.may_block()))
        } else {
            Descriptor::File(File::new(opened, FsPerms::ReadWrite, mode, tree.may_block()))
        })
    }
}

/// Opens something to be looked at by wasmtime, which knows how to show it to the guest.
pub(super) fn look(tree: &Tree, from: &fs::File, path: &str, links: Links) -> Result<Descriptor, Errno> {
    let opened = tree.look(from, path, links)?;
    // A server that does not respond is waited for here. Afterwards its file system knows the answer for a while, and
    // nothing is left in a table if the guest gives up meanwhile.
    opened.metadata().map_err(|error| errno(&error))?;
    Ok(Descriptor::File(File::new(opened, FsPerms::ReadWrite, OpenMode::empty(), true)))
}

/// The time stays as it is.
pub(super) const NO_CHANGE: Timespec = Timespec { tv_sec: 0, tv_nsec: UTIME_OMIT };
/// The time becomes that of the clock.
pub(super) const NOW: Timespec = Timespec { tv_sec: 0, tv_nsec: UTIME_NOW };

/// A time of a guest. Its nanoseconds may be more than a second.
pub(super) fn time(seconds: i64, nanoseconds: u32) -> Result<Timespec, Errno> {
    let whole = i64::from(nanoseconds / 1_000_000_000);
    let tv_sec = seconds.checked_add(whole).ok_or(Errno::OVERFLOW)?;
    // What the standard library cannot express, no guest could read again.
    let expressible = UNIX_EPOCH.checked_add(Duration::from_secs(tv_sec.unsigned_abs()));
    expressible.map(|_| Timespec { tv_sec, tv_nsec: i64::from(nanoseconds % 1_000_000_000) }).ok_or(Errno::OVERFLOW)
}

fn errno(error: &io::Error) -> Errno {
    Errno::from_io_error(error).unwrap_or(Errno::IO)
}
