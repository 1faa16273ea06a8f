//! Processes of containers: waited for and signalled through a pidfd.
//!
//! The shim is their parent: the OCI runtime that made them is gone, and the shim is the subreaper. Nobody else waits
//! for them, so that a pid stays theirs until [`Process::wait`] has reaped it.

use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};
use std::os::unix::process::CommandExt;
use std::process::Command;

use nix::errno::Errno;
use nix::sys::wait::{Id, WaitPidFlag, WaitStatus, waitid};
use skiff_plan::{exit_code_of_proc_exit, exit_code_of_signal};
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

/// The descriptor that the first passed file gets.
pub(crate) const FIRST_PASSED: RawFd = 3;

/// A process of a container.
#[derive(Debug)]
pub(crate) struct Process {
    pid: i32,
    pidfd: AsyncFd<OwnedFd>,
}

/// A descriptor of the process `pid`.
fn open_pidfd(pid: i32) -> io::Result<OwnedFd> {
    // SAFETY: pidfd_open takes two integers and returns a new descriptor or an error.
    let fd = unsafe { libc::syscall(libc::SYS_pidfd_open, pid, 0) };
    let fd = i32::try_from(Errno::result(fd)?).map_err(io::Error::other)?;
    // SAFETY: the kernel has just made this descriptor for us, and nobody else knows of it.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// Sends `signal` through `pidfd`; `Ok(false)` when the process has ended already.
fn send_signal(pidfd: &OwnedFd, signal: i32) -> io::Result<bool> {
    let no_info = std::ptr::null::<libc::siginfo_t>();
    // SAFETY: the descriptor is open as long as the reference lives; no siginfo is passed.
    let sent = unsafe { libc::syscall(libc::SYS_pidfd_send_signal, pidfd.as_raw_fd(), signal, no_info, 0) };
    match Errno::result(sent) {
        Ok(_) => Ok(true),
        Err(Errno::ESRCH) => Ok(false),
        Err(error) => Err(error.into()),
    }
}

/// Sends `signal` to the command's process when the calling thread, and with it the shim, is gone: what is half made must
/// not be finished for nobody.
pub(crate) fn end_with_the_shim(command: &mut Command, signal: i32) {
    let ask = move || {
        // SAFETY: prctl with integers; safe between fork and exec.
        unsafe { libc::prctl(libc::PR_SET_PDEATHSIG, signal) };
        Ok(())
    };
    // SAFETY: the closure makes one system call and allocates nothing.
    unsafe { command.pre_exec(ask) };
}

/// Gives `files` to the command's process as descriptors 3, 4, ….
pub(crate) fn pass_descriptors(command: &mut Command, files: Vec<OwnedFd>) {
    let place = move || {
        // First out of the way of the wanted numbers, then to them: `dup2` clears close-on-exec.
        let beyond = FIRST_PASSED + RawFd::try_from(files.len()).map_err(io::Error::other)?;
        let mut moved = [-1; 8];
        for (slot, file) in moved.iter_mut().zip(&files) {
            // SAFETY: fcntl on an open descriptor, with an integer argument; safe between fork and exec.
            *slot = unsafe { libc::fcntl(file.as_raw_fd(), libc::F_DUPFD_CLOEXEC, beyond) };
            if *slot < 0 {
                return Err(io::Error::last_os_error());
            }
        }
        for (wanted, source) in (FIRST_PASSED..beyond).zip(moved) {
            // SAFETY: both are descriptors of this process; safe between fork and exec.
            if unsafe { libc::dup2(source, wanted) } < 0 {
                return Err(io::Error::last_os_error());
            }
        }
        Ok(())
    };
    // SAFETY: the closure makes two kinds of system calls and allocates nothing.
    unsafe { command.pre_exec(place) };
}

impl Process {
    /// Takes hold of the child `pid`, which nobody has waited for yet.
    pub(crate) fn of_child(pid: i32) -> io::Result<Self> {
        let pidfd = open_pidfd(pid)?;
        // SAFETY: the AsyncFd owns the descriptor, which stays open and the same for as long as it is registered.
        let pidfd = unsafe { AsyncFd::register_with_interest(pidfd, Interest::READABLE) };
        Ok(Self { pid, pidfd: pidfd.map_err(io::Error::from)? })
    }

    pub(crate) fn pid(&self) -> i32 {
        self.pid
    }

    /// Waits for the end of the process, reaps it and gives its exit code. To be called by one owner only.
    pub(crate) async fn wait(&self) -> io::Result<i32> {
        loop {
            let mut ready = self.pidfd.readable().await?;
            let id = Id::PIDFd(std::os::fd::AsFd::as_fd(self.pidfd.get_ref()));
            match waitid(id, WaitPidFlag::WEXITED | WaitPidFlag::WNOHANG) {
                Ok(WaitStatus::Exited(_, code)) => return Ok(exit_code_of_proc_exit(code)),
                Ok(WaitStatus::Signaled(_, signal, _)) => return Ok(exit_code_of_signal(signal as i32)),
                Ok(_) => ready.clear_ready(),
                Err(Errno::EINTR) => {}
                Err(error) => return Err(error.into()),
            }
        }
    }

    /// Sends `signal`; `Ok(false)` when the process has ended already.
    pub(crate) fn signal(&self, signal: i32) -> io::Result<bool> {
        send_signal(self.pidfd.get_ref(), signal)
    }
}
