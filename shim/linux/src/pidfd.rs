//! Processes by descriptor: the kernel may reuse a pid, but a pidfd always means the same process.

use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};

use nix::errno::Errno;
use rustix::process::{Pid, PidfdFlags, pidfd_open};

/// Opens a descriptor for the process `pid`; it becomes readable when the process has ended.
///
/// # Errors
/// Those of `pidfd_open(2)`; `ESRCH` for a number that is not a process id.
pub fn open(pid: i32) -> io::Result<OwnedFd> {
    let pid = Pid::from_raw(pid).ok_or(Errno::ESRCH)?;
    Ok(pidfd_open(pid, PidfdFlags::empty())?)
}

/// The same, but returns `None` when the process is gone.
///
/// # Errors
/// Those of [`open`], except for a process that is gone.
pub fn open_if_there(pid: i32) -> io::Result<Option<OwnedFd>> {
    match open(pid) {
        Ok(process) => Ok(Some(process)),
        // EINVAL: the pid now belongs to a thread that is not a leader.
        Err(error) if matches!(error.raw_os_error(), Some(libc::ESRCH | libc::EINVAL)) => Ok(None),
        Err(error) => Err(error),
    }
}

/// Sends `signal`, which may be 0 or a real-time signal; `Ok(false)` when the process has ended.
///
/// # Errors
/// Those of `pidfd_send_signal(2)`.
pub fn send_signal(process: impl AsFd, signal: i32) -> io::Result<bool> {
    let (fd, no_info) = (process.as_fd().as_raw_fd(), std::ptr::null::<libc::siginfo_t>());
    // SAFETY: the descriptor is open while it is borrowed; no siginfo is passed. rustix takes named signals only.
    let sent = unsafe { libc::syscall(libc::SYS_pidfd_send_signal, fd, signal, no_info, 0) };
    match Errno::result(sent) {
        Ok(_) => Ok(true),
        Err(Errno::ESRCH) => Ok(false),
        Err(error) => Err(error.into()),
    }
}

#[cfg(test)]
mod tests {
    use std::process::Command;

    use super::*;

    #[test]
    fn a_process_is_signalled_until_it_is_reaped() {
        let mut child = Command::new("sleep").arg("60").spawn().unwrap();
        let pid = i32::try_from(child.id()).unwrap();
        let process = open(pid).unwrap();
        assert!(send_signal(&process, 0).unwrap());
        assert!(send_signal(&process, libc::SIGKILL).unwrap());
        child.wait().unwrap();
        assert!(!send_signal(&process, libc::SIGKILL).unwrap());
        assert!(open_if_there(pid).unwrap().is_none());
        assert_eq!(open(0).unwrap_err().raw_os_error(), Some(libc::ESRCH));
    }
}
