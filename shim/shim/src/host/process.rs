//! Processes of containers: waited for and signalled through a pidfd.
//!
//! The shim is their parent: the OCI runtime that made them is gone, and the shim is the subreaper. Nobody else waits for
//! them, so a pid stays theirs until [`Child::wait`] has reaped it.

use std::collections::BTreeSet;
use std::io;
use std::os::fd::{OwnedFd, RawFd};
use std::process::{Command, ExitStatus};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use nix::errno::Errno;
use nix::sys::wait::{Id, WaitPidFlag, WaitStatus, waitid};
use skiff_linux::descriptors::watch;
use skiff_linux::pidfd;
use skiff_linux::process::depend_on_parent;
use skiff_protocol::{exit_code_of_proc_exit, exit_code_of_signal};
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

/// The descriptor number of the first passed file.
pub(crate) const FIRST_PASSED: RawFd = 3;

/// A process of a container, which is a child of the shim.
#[derive(Debug)]
pub(crate) struct Child {
    pid: i32,
    pidfd: AsyncFd<OwnedFd>,
}

/// The processes that have an owner, which will wait for them.
static OWNED: Mutex<BTreeSet<i32>> = Mutex::new(BTreeSet::new());

fn owned() -> MutexGuard<'static, BTreeSet<i32>> {
    OWNED.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Whether an owner will wait for the process `pid`.
pub(super) fn is_owned(pid: i32) -> bool {
    owned().contains(&pid)
}

impl Drop for Child {
    fn drop(&mut self) {
        owned().remove(&self.pid);
    }
}

/// Which child of the shim the kernel kills first when the node's memory runs out (proc_pid_oom_score_adj(5)). The shim's
/// own score protects it, and a process that it starts for a pod must not inherit that.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum OomScore {
    /// Like any process of the node.
    Ordinary,
    /// Killed first: its work can be done again.
    First,
}

/// Sets the OOM score of the command's process, which works for a pod, and sends it `signal` when the calling thread ends,
/// and with it the shim: nobody would use what it finishes.
pub(crate) fn work_for_a_pod(command: &mut Command, signal: i32, score: OomScore) {
    let score = match score {
        OomScore::Ordinary => 0,
        OomScore::First => 1000,
    };
    depend_on_parent(command, signal, score);
}

/// Gives `files` to the command's process as descriptors 3, 4, ….
pub(crate) fn pass_descriptors(command: &mut Command, files: Vec<OwnedFd>) {
    skiff_linux::process::pass_descriptors(command, FIRST_PASSED, files);
}

/// Waits for `child` to end, and kills it after `limit`.
///
/// # Errors
/// `TimedOut`; those of waiting.
pub(crate) async fn wait_within(child: &mut tokio::process::Child, limit: Duration) -> io::Result<ExitStatus> {
    match tokio::time::timeout(limit, child.wait()).await {
        Ok(ended) => ended,
        Err(_) => {
            child.kill().await?;
            Err(io::Error::new(io::ErrorKind::TimedOut, format!("it did not end within {} s", limit.as_secs())))
        }
    }
}

impl Child {
    /// Becomes the owner of the child `pid`, which must not have been reaped.
    pub(crate) fn of_child(pid: i32) -> io::Result<Self> {
        let pidfd = watch(pidfd::open(pid)?, Interest::READABLE)?;
        owned().insert(pid);
        Ok(Self { pid, pidfd })
    }

    pub(crate) fn pid(&self) -> i32 {
        self.pid
    }

    /// Waits for the process to end, reaps it and returns its exit code. Only its owner may call this.
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

    /// Waits for the process to end and leaves the reaping to its owner.
    pub(crate) async fn ended(&self) {
        // A descriptor that cannot be waited for never reports an end; callers have a time limit of their own.
        match self.pidfd.readable().await {
            Ok(_ready) => {}
            Err(_) => std::future::pending().await,
        }
    }

    /// Kills and reaps a process that was made but is not wanted.
    pub(crate) async fn end(&self) {
        let ended = async {
            self.signal(libc::SIGKILL)?;
            self.wait().await
        };
        if let Err(error) = ended.await {
            log::warn!("cannot end process {}: {error}", self.pid);
        }
    }

    /// Sends `signal`; returns `Ok(false)` when the process has already ended.
    pub(crate) fn signal(&self, signal: i32) -> io::Result<bool> {
        pidfd::send_signal(self.pidfd.get_ref(), signal)
    }
}
