//! Processes of containers: waited for and signalled through a pidfd.
//!
//! The shim is their parent: the OCI runtime that made them is gone, and the shim is the subreaper. Nobody else waits
//! for them, so that a pid stays theirs until [`Process::wait`] has reaped it.

use std::collections::BTreeSet;
use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};
use std::os::unix::process::CommandExt;
use std::process::{Command, ExitStatus};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use nix::errno::Errno;
use nix::sys::wait::{Id, WaitPidFlag, WaitStatus, waitid};
use skiff_protocol::{exit_code_of_proc_exit, exit_code_of_signal};
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;
use tokio::process::Child;

/// The descriptor that the first passed file gets.
pub(crate) const FIRST_PASSED: RawFd = 3;

/// A process of a container.
#[derive(Debug)]
pub(crate) struct Process {
    pid: i32,
    pidfd: AsyncFd<OwnedFd>,
}

/// The processes that somebody owns, and will wait for.
static OWNED: Mutex<BTreeSet<i32>> = Mutex::new(BTreeSet::new());

fn owned() -> MutexGuard<'static, BTreeSet<i32>> {
    OWNED.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Whether somebody will wait for the process `pid`.
pub(super) fn is_owned(pid: i32) -> bool {
    owned().contains(&pid)
}

impl Drop for Process {
    fn drop(&mut self) {
        owned().remove(&self.pid);
    }
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

/// What a child of the shim is worth to the node when memory runs out (proc_pid_oom_score_adj(5)). The shim's own score
/// protects it; what it starts for a pod must not inherit that.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum OomScore {
    /// As any process of the node's.
    Ordinary,
    /// The first to be killed: whatever it does can be done again.
    First,
}

/// Makes the command's process one that works for a pod: it gets an OOM score of its own, and `signal` when the calling
/// thread, and with it the shim, is gone: what is half made must not be finished for nobody.
pub(crate) fn work_for_a_pod(command: &mut Command, signal: i32, score: OomScore) {
    let score: &[u8] = match score {
        OomScore::Ordinary => b"0",
        OomScore::First => b"1000",
    };
    let prepare = move || {
        // SAFETY: prctl with integers; safe between fork and exec.
        unsafe { libc::prctl(libc::PR_SET_PDEATHSIG, signal) };
        // SAFETY: a C string, and flags; safe between fork and exec.
        let file = unsafe { libc::open(c"/proc/self/oom_score_adj".as_ptr(), libc::O_WRONLY | libc::O_CLOEXEC) };
        // Where a score may not be lowered, the inherited one is the higher.
        // SAFETY: the bytes live as long as the program; the descriptor, which may be -1, is closed by the execution.
        unsafe { libc::write(file, score.as_ptr().cast(), score.len()) };
        Ok(())
    };
    // SAFETY: the closure makes three system calls and allocates nothing.
    unsafe { command.pre_exec(prepare) };
}

/// Waits for `child` to end, at most `limit`; then it is killed.
///
/// # Errors
/// `TimedOut`; those of waiting.
pub(crate) async fn wait_within(child: &mut Child, limit: Duration) -> io::Result<ExitStatus> {
    match tokio::time::timeout(limit, child.wait()).await {
        Ok(ended) => ended,
        Err(_) => {
            child.kill().await?;
            Err(io::Error::new(io::ErrorKind::TimedOut, format!("it had not ended after {} s", limit.as_secs())))
        }
    }
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
        let pidfd = pidfd.map_err(io::Error::from)?;
        owned().insert(pid);
        Ok(Self { pid, pidfd })
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

    /// Waits for the end of the process and leaves the reaping to its owner.
    pub(crate) async fn ended(&self) {
        // A descriptor that cannot be waited for says nothing; whoever needs an answer has its own limit.
        match self.pidfd.readable().await {
            Ok(_ready) => {}
            Err(_) => std::future::pending().await,
        }
    }

    /// Kills the process and reaps it; for one that was made and is not wanted.
    pub(crate) async fn end(&self) {
        let ended = async {
            self.signal(libc::SIGKILL)?;
            self.wait().await
        };
        if let Err(error) = ended.await {
            log::warn!("cannot end process {}: {error}", self.pid);
        }
    }

    /// Sends `signal`; `Ok(false)` when the process has ended already.
    pub(crate) fn signal(&self, signal: i32) -> io::Result<bool> {
        send_signal(self.pidfd.get_ref(), signal)
    }
}
