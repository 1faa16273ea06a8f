//! Names of the host.

use std::io;

use nix::errno::Errno;

/// Sets the name of the host's domain in this process's UTS namespace.
///
/// # Errors
/// Those of `setdomainname(2)`.
pub fn set_domain_name(name: &str) -> io::Result<()> {
    // SAFETY: the bytes outlive the call, which only reads them.
    Errno::result(unsafe { libc::setdomainname(name.as_ptr().cast(), name.len()) })?;
    Ok(())
}
