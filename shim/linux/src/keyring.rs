//! Session keyrings.

use std::ffi::CString;
use std::io;

use nix::errno::Errno;

/// `KEYCTL_JOIN_SESSION_KEYRING` and `KEYCTL_SETPERM` from `linux/keyctl.h`.
const JOIN_SESSION_KEYRING: libc::c_int = 1;
const SETPERM: libc::c_int = 5;
/// Everything for whoever has it, and viewing, reading, searching and linking for its owner.
const PERMISSIONS: libc::c_int = 0x3f1b_0000;

/// Makes the session keyring `name` this process's own, made if there is none. A kernel without keyrings has nothing to join.
///
/// # Errors
/// Those of `keyctl(2)`.
pub fn join_session(name: &str) -> io::Result<()> {
    let name = CString::new(name)?;
    // SAFETY: the string outlives the call, which only reads it.
    let joined = unsafe { libc::syscall(libc::SYS_keyctl, JOIN_SESSION_KEYRING, name.as_ptr()) };
    let keyring = match Errno::result(joined) {
        Err(Errno::ENOSYS) => return Ok(()),
        joined => joined?,
    };
    // SAFETY: integers only.
    Errno::result(unsafe { libc::syscall(libc::SYS_keyctl, SETPERM, keyring, PERMISSIONS) })?;
    Ok(())
}
