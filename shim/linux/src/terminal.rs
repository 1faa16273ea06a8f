//! Terminals of the container that this process is in.

use std::fs::File;
use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::os::unix::fs::OpenOptionsExt;

use nix::errno::Errno;
use nix::sys::statfs::{FsType, fstatfs};

/// The file system of terminals, from `linux/magic.h`.
const DEVPTS: FsType = FsType(0x1cd1);

/// Opens a new terminal: the end of whoever types, and the end of the process. Both are closed on exec.
///
/// # Errors
/// Those of the system calls; an error when the container has something else where terminals come from.
pub fn open() -> io::Result<(OwnedFd, OwnedFd)> {
    let flags = libc::O_NOCTTY | libc::O_NOFOLLOW;
    let master = File::options().read(true).write(true).custom_flags(flags).open("/dev/pts/ptmx")?;
    if fstatfs(&master)?.filesystem_type() != DEVPTS {
        return Err(io::Error::other("the container's `/dev/pts` has no terminals"));
    }
    let unlocked: libc::c_int = 0;
    // SAFETY: the kernel reads an integer that outlives the call.
    Errno::result(unsafe { libc::ioctl(master.as_raw_fd(), libc::TIOCSPTLCK, &raw const unlocked) })?;
    let flags = libc::O_RDWR | libc::O_NOCTTY | libc::O_CLOEXEC;
    // SAFETY: an integer is passed.
    let process = Errno::result(unsafe { libc::ioctl(master.as_raw_fd(), libc::TIOCGPTPEER, flags) })?;
    // SAFETY: the kernel has just made this descriptor, and nobody else owns it.
    Ok((master.into(), unsafe { OwnedFd::from_raw_fd(process) }))
}
