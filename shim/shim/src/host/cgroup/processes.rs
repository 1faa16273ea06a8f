//! The processes of a cgroup: found, signalled and waited for without hitting another process that got the same pid.

use std::collections::HashSet;
use std::io::{self, ErrorKind};
use std::os::fd::{AsFd, AsRawFd, FromRawFd, OwnedFd};
use std::path::Path;
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

/// How long a wait lasts at most before the cgroup is looked at again: not every end of a process can be waited for.
const WAIT: Duration = Duration::from_millis(5);

/// How many processes are held at a time; each takes a descriptor.
const HELD_MAX: usize = 128;

/// The processes in the cgroup directory `dir` itself, without those of other pid namespaces.
pub(super) fn of_dir(dir: &Path) -> io::Result<Vec<i32>> {
    let text = super::read(&dir.join("cgroup.procs"))?;
    Ok(text.lines().filter_map(|line| line.parse().ok()).filter(|pid| *pid > 0).collect())
}

/// Sends `signal` to those of `pids` which `members` still names once the processes are held. A process that is gone is
/// no error.
pub(super) fn signal(pids: &[i32], signal: i32, members: impl Fn() -> HashSet<i32>) -> io::Result<()> {
    for pids in pids.chunks(HELD_MAX) {
        let mut held = Vec::new();
        for pid in pids {
            held.extend(open(*pid)?.map(|process| (*pid, process)));
        }
        let members = members();
        for (pid, process) in held.iter().filter(|(pid, _)| members.contains(pid)) {
            send(process, signal).map_err(|error| {
                io::Error::new(error.kind(), format!("cannot send signal {signal} to process {pid}: {error}"))
            })?;
        }
    }
    Ok(())
}

fn send(process: &OwnedFd, signal: i32) -> io::Result<()> {
    let (fd, no_info) = (process.as_raw_fd(), std::ptr::null::<libc::siginfo_t>());
    // SAFETY: pidfd_send_signal(2) takes a descriptor, which `process` keeps open, a signal, no siginfo and no flags.
    let result = unsafe { libc::syscall(libc::SYS_pidfd_send_signal, fd, signal, no_info, 0) };
    match Errno::result(result) {
        Ok(_) | Err(Errno::ESRCH) => Ok(()),
        Err(error) => Err(error.into()),
    }
}

/// Waits until one of `pids` ends, `deadline` comes or it is worth to look again.
pub(super) fn wait_for_any_exit(pids: &HashSet<i32>, deadline: Instant) -> io::Result<()> {
    let mut processes = Vec::new();
    for pid in pids.iter().take(HELD_MAX) {
        processes.extend(open(*pid)?);
    }
    let mut fds: Vec<PollFd<'_>> =
        processes.iter().map(|process| PollFd::new(process.as_fd(), PollFlags::POLLIN)).collect();
    let left = deadline.saturating_duration_since(Instant::now()).min(WAIT);
    match poll(&mut fds, PollTimeout::try_from(left).unwrap_or(PollTimeout::ZERO)) {
        Ok(_) | Err(Errno::EINTR) => Ok(()),
        Err(error) => Err(error.into()),
    }
}

/// A descriptor of the process, which no other process can take over.
fn open(pid: i32) -> io::Result<Option<OwnedFd>> {
    // SAFETY: pidfd_open(2) takes a pid and no flags.
    let result = unsafe { libc::syscall(libc::SYS_pidfd_open, pid, 0) };
    match Errno::result(result) {
        Ok(fd) => {
            let fd = i32::try_from(fd).map_err(|_| io::Error::from(ErrorKind::InvalidData))?;
            // SAFETY: the kernel has just made this descriptor for us, and nobody else knows of it.
            Ok(Some(unsafe { OwnedFd::from_raw_fd(fd) }))
        }
        // EINVAL: it is a thread by now, its leader is gone.
        Err(Errno::ESRCH | Errno::EINVAL) => Ok(None),
        Err(error) => Err(error.into()),
    }
}
