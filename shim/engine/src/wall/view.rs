//! What stays in reach of a process behind the wall.

use std::os::fd::OwnedFd;

/// The files of the container that stay in reach.
pub(crate) struct View<'a> {
    /// Open directories, each with everything below it, and whether they may be changed.
    pub(crate) directories: &'a [(OwnedFd, Access)],
    /// Single files, to be read.
    pub(crate) files: &'a [&'a str],
}

/// What may be done with the files of a directory.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Access {
    /// Only read them.
    Read,
    /// Change them, too.
    Write,
}
