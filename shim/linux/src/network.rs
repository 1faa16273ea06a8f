//! The loopback device of a network namespace.

use std::io;
use std::os::fd::AsRawFd;

use nix::errno::Errno;
use nix::sys::socket::{AddressFamily, SockFlag, SockType, socket};

/// Brings up the loopback device of this process's network namespace.
///
/// # Errors
/// Those of the system calls.
pub fn bring_up_loopback() -> io::Result<()> {
    let socket = socket(AddressFamily::Inet, SockType::Datagram, SockFlag::SOCK_CLOEXEC, None)?;
    let mut name = [0; libc::IFNAMSIZ];
    (name[0], name[1]) = (b'l'.cast_signed(), b'o'.cast_signed());
    let flags = libc::c_short::try_from(libc::IFF_UP).map_err(io::Error::other)?;
    let mut request = libc::ifreq { ifr_name: name, ifr_ifru: libc::__c_anonymous_ifr_ifru { ifru_flags: flags } };
    // SAFETY: the request is a valid one of this kind, which the kernel reads during the call.
    Errno::result(unsafe { libc::ioctl(socket.as_raw_fd(), libc::SIOCSIFFLAGS, &raw mut request) })?;
    Ok(())
}
