//! Finds, signals and waits for the processes of a cgroup, and never hits another process that was given the same pid.

use std::collections::HashSet;
use std::io;
use std::os::fd::AsFd;
use std::path::Path;
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

use super::files::read;
use crate::pidfd;

/// The longest wait before the cgroup is read again, because not every process can be waited for.
const WAIT: Duration = Duration::from_millis(5);

/// The most processes that are held at a time; each takes a descriptor.
const HELD_MAX: usize = 128;

/// The processes in the cgroup directory `dir` itself, without those outside this pid namespace.
pub(super) fn of_dir(dir: &Path) -> io::Result<Vec<i32>> {
    let text = read(&dir.join("cgroup.procs"))?;
    Ok(text.lines().filter_map(|line| line.parse().ok()).filter(|pid| *pid > 0).collect())
}

/// Sends `signal` to those of `pids` that `members` still returns once the processes are held. A process that is gone is
/// not an error.
pub(super) fn signal(pids: &[i32], signal: i32, members: impl Fn() -> HashSet<i32>) -> io::Result<()> {
    for pids in pids.chunks(HELD_MAX) {
        let mut held = Vec::new();
        for pid in pids {
            held.extend(pidfd::open_if_there(*pid)?.map(|process| (*pid, process)));
        }
        let members = members();
        for (pid, process) in held.iter().filter(|(pid, _)| members.contains(pid)) {
            pidfd::send_signal(process, signal).map_err(|error| {
                io::Error::new(error.kind(), format!("cannot send signal {signal} to process {pid}: {error}"))
            })?;
        }
    }
    Ok(())
}

/// Waits until one of `pids` ends, `deadline` is reached or it is worth looking again.
pub(super) fn wait_for_any_exit(pids: &HashSet<i32>, deadline: Instant) -> io::Result<()> {
    let mut processes = Vec::new();
    for pid in pids.iter().take(HELD_MAX) {
        processes.extend(pidfd::open_if_there(*pid)?);
    }
    let mut fds: Vec<PollFd<'_>> =
        processes.iter().map(|process| PollFd::new(process.as_fd(), PollFlags::POLLIN)).collect();
    let left = deadline.saturating_duration_since(Instant::now()).min(WAIT);
    match poll(&mut fds, PollTimeout::try_from(left).unwrap_or(PollTimeout::ZERO)) {
        Ok(_) | Err(Errno::EINTR) => Ok(()),
        Err(error) => Err(error.into()),
    }
}
