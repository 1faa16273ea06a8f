//! What this kernel can do.

use nix::errno::Errno;

/// The version of the kernel's Landlock; 0 when it is missing or switched off.
pub fn landlock_version() -> i64 {
    /// `LANDLOCK_CREATE_RULESET_VERSION` from `linux/landlock.h`: only returns the version.
    const VERSION: libc::c_int = 1;
    // SAFETY: the call gets no attributes and makes nothing.
    let version = unsafe { libc::syscall(libc::SYS_landlock_create_ruleset, 0, 0, VERSION) };
    version.max(0)
}

/// The error of the system call `number` with arguments that are always invalid: `ENOSYS` when the kernel does not have it.
/// Only for calls that take a descriptor, an address or flags first.
pub fn error_of_call(number: libc::c_long) -> Errno {
    // SAFETY: -1 is not a descriptor, address or flag that such a call accepts, so it fails before it does anything.
    match Errno::result(unsafe { libc::syscall(number, -1, 0, 0, 0, 0) }) {
        Ok(_) => Errno::UnknownErrno,
        Err(error) => error,
    }
}
