//! The loopback device of a network namespace, and what the kernel keeps for a socket.

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd};

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

/// How many bytes the kernel still keeps for the other end of a TCP connection, because it has not acknowledged them.
///
/// # Errors
/// Those of the system call: `socket` is not connected, or not a socket.
pub fn unsent_bytes(socket: BorrowedFd<'_>) -> io::Result<usize> {
    let mut bytes: libc::c_int = 0;
    // SAFETY: for this request the kernel writes one number of this type.
    Errno::result(unsafe { libc::ioctl(socket.as_raw_fd(), libc::TIOCOUTQ, &raw mut bytes) })?;
    Ok(usize::try_from(bytes).unwrap_or(0))
}

#[cfg(test)]
mod tests {
    use std::io::{Read, Write};
    use std::net::{Ipv4Addr, TcpListener, TcpStream};
    use std::os::fd::AsFd;

    use super::*;

    #[test]
    fn what_the_other_end_has_no_room_for_is_unsent() {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        let mut ours = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        let (mut theirs, _) = listener.accept().unwrap();
        ours.write_all(b"few").unwrap();
        theirs.read_exact(&mut [0; 3]).unwrap();
        assert_eq!(unsent_bytes(ours.as_fd()).unwrap(), 0);
        ours.set_nonblocking(true).unwrap();
        while ours.write(&[0; 1 << 16]).is_ok() {}
        assert!(unsent_bytes(ours.as_fd()).unwrap() > 0);
        assert!(unsent_bytes(std::fs::File::open("/dev/null").unwrap().as_fd()).is_err());
    }
}
