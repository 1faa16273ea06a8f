//! A directory of a plan, opened. Whoever shares a volume with the guest can replace a directory by a symbolic link at any
//! time. So the path is followed once, without links, and from then on only the open directory counts.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use nix::errno::Errno;
use nix::fcntl::{AT_FDCWD, OFlag, OpenHow, ResolveFlag, openat2};
use skiff_protocol::{Preopen, Refusal};

/// One open directory of a plan.
pub(super) struct Opened<'a> {
    /// Where the guest sees it.
    pub(super) guest: &'a str,
    /// The directory itself.
    pub(super) descriptor: OwnedFd,
}

impl<'a> Opened<'a> {
    /// Opens a directory of a plan.
    ///
    /// # Errors
    /// [`Refusal::Guest`] if its path leads through a symbolic link, [`Refusal::Host`] if it cannot be opened.
    pub(super) fn open(preopen: &'a Preopen) -> Result<Self, Refusal> {
        let Preopen { host, guest, .. } = preopen;
        let how = OpenHow::new()
            .flags(OFlag::O_PATH | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC)
            .resolve(ResolveFlag::RESOLVE_NO_SYMLINKS | ResolveFlag::RESOLVE_NO_MAGICLINKS);
        match openat2(AT_FDCWD, host.as_str(), how) {
            Ok(descriptor) => Ok(Self { guest, descriptor }),
            Err(Errno::ELOOP) => Err(Refusal::Guest(format!(
                "the path of the directory `{guest}` (`{host}`) contains a symbolic link, and anyone who can write to the \
                 volume that contains the link could redirect the guest: use a mount path without links, outside other volumes"
            ))),
            Err(error) => Err(cannot_open(guest, &io::Error::from(error).to_string())),
        }
    }
}

impl AsFd for Opened<'_> {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.descriptor.as_fd()
    }
}

/// The refusal of a directory that the container does not have as it should.
pub(super) fn cannot_open(guest: &str, why: &str) -> Refusal {
    Refusal::Host(format!("cannot open the directory `{guest}`: {why}"))
}
