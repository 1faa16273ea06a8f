//! Runs a job in a process that can compute, read standard input and write standard output, and nothing else.
//!
//! The calling process becomes its supervisor. It never reads the input: it waits, kills the process if that exceeds a limit,
//! and reports in one sentence how it ended. The confined process dies with its supervisor.

mod cgroup;
mod ending;
mod filter;
mod jail;
mod limits;
pub(crate) mod reader;

use std::fs::{self, File};
use std::io::{self, Read, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::fcntl::OFlag;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sched::{CloneFlags, unshare};
use nix::sys::resource::{UsageWho, getrusage};
use nix::sys::signal::{SigSet, Signal, kill};
use nix::sys::signalfd::SignalFd;
use nix::sys::time::TimeValLike;
use nix::sys::wait::{WaitStatus, waitpid};
use nix::unistd::{ForkResult, Pid, Uid, dup2_stderr, pipe2};
use skiff_linux::pidfd;
use skiff_linux::process::{exit_now, fork_alone};

use self::cgroup::Cgroup;
use self::ending::{Ending, Stop};
pub(crate) use self::limits::Limits;
use crate::error::{Context, Error, Result};

/// The most that is read of a confined process's report, in bytes.
const REPORT_BYTES: u64 = 4096;

/// Runs `job` on the module `name`, confined, and waits for its end.
///
/// The process must have one thread, since it is forked.
///
/// # Errors
/// Those of `job`; a limit's if one was reached; the host's if the process cannot be confined.
pub(crate) fn run(limits: &Limits, name: &str, job: impl FnOnce() -> Result<()>) -> Result<()> {
    if !Uid::effective().is_root() {
        return Err(Error::host("confining the compiler needs root"));
    }
    // The supervisor too: its parent is protected from the OOM killer, but a pod's work must not be.
    fs::write("/proc/self/oom_score_adj", "1000").or_host("cannot offer the compiler to the OOM killer")?;
    // Before anything exists that has to be removed.
    let signals = block_signals().or_host("cannot block signals")?;
    let cgroup = limits.cgroup.as_deref().map(|group| Cgroup::create(group, limits.memory_bytes)).transpose()?;
    let is_memory_bounded = cgroup.as_ref().is_some_and(Cgroup::bounds_memory);
    let (gate, opener) = pipe2(OFlag::O_CLOEXEC).or_host("cannot make a pipe")?;
    let (report, reporter) = pipe2(OFlag::O_CLOEXEC).or_host("cannot make a pipe")?;
    unshare(CloneFlags::CLONE_NEWPID).or_host("cannot make a process namespace")?;
    let child = match fork_alone().or_host("cannot fork")? {
        ForkResult::Child => {
            drop((opener, report));
            exit_with(reporter, || {
                wait_for_go(&gate)?;
                jail::enter(limits, is_memory_bounded, gate)?;
                job()
            })
        }
        ForkResult::Parent { child } => Child::new(child),
    };
    drop((gate, reporter));
    if let Some(cgroup) = &cgroup {
        cgroup.join(child.pid)?;
    }
    let mut opener = File::from(opener);
    opener.write_all(b"g").or_host("cannot start the compiler")?;
    let ending = child.wait(limits, &signals, report)?;
    ending.explain(limits, name, cgroup.as_ref().and_then(Cgroup::out_of_memory))
}

/// Blocks the signals that ask the supervisor to end, so that it reads them instead: it has a child to kill and a group to remove.
fn block_signals() -> nix::Result<SignalFd> {
    let mut signals = SigSet::empty();
    for signal in [Signal::SIGTERM, Signal::SIGINT, Signal::SIGHUP] {
        signals.add(signal);
    }
    signals.thread_block()?;
    SignalFd::new(&signals)
}

/// Waits until the supervisor has put this process where it belongs.
fn wait_for_go(gate: &OwnedFd) -> Result<()> {
    let mut go = [0];
    match nix::unistd::read(gate, &mut go).or_host("cannot wait for the supervisor")? {
        1 => Ok(()),
        _ => Err(Error::host("the supervisor is gone")),
    }
}

/// Runs `job`, writes its error to `reporter`, and ends the process without running anything of the supervisor's.
fn exit_with(reporter: OwnedFd, job: impl FnOnce() -> Result<()>) -> ! {
    let code = catch_unwind(AssertUnwindSafe(|| {
        match dup2_stderr(&reporter).or_host("cannot redirect standard error").and_then(|()| job()) {
            Ok(()) => 0,
            Err(error) => {
                // A supervisor that is gone needs no report.
                drop(write!(io::stderr().lock(), "{error}"));
                error.fault().code()
            }
        }
    }));
    // The supervisor's guards on this copied stack must not run.
    exit_now(code.map_or(ending::PANICKED, i32::from))
}

/// A confined process that has not been waited for. Dropped, it is killed.
struct Child {
    pid: Pid,
    is_reaped: bool,
}

impl Child {
    const fn new(pid: Pid) -> Self {
        Self { pid, is_reaped: false }
    }

    /// Waits for the end, or brings it about on one of `signals` or at the time limit.
    fn wait(mut self, limits: &Limits, signals: &SignalFd, report: OwnedFd) -> Result<Ending> {
        let stop = self.watch(limits.wall, signals)?;
        if stop.is_some() {
            kill(self.pid, Signal::SIGKILL).or_host("cannot kill the compiler")?;
        }
        let status = self.reap().or_host("cannot wait for the compiler")?;
        let mut text = Vec::new();
        File::from(report).take(REPORT_BYTES).read_to_end(&mut text).or_host("cannot read the compiler's report")?;
        let usage = getrusage(UsageWho::RUSAGE_CHILDREN).or_host("cannot read the compiler's processor time")?;
        let cpu = usage.user_time() + usage.system_time();
        Ok(Ending {
            status,
            stop,
            cpu: Duration::from_micros(u64::try_from(cpu.num_microseconds()).unwrap_or_default()),
            report: String::from_utf8_lossy(&text).into_owned(),
        })
    }

    /// Waits until the process has ended, or should be made to.
    fn watch(&self, wall: Duration, signals: &SignalFd) -> Result<Option<Stop>> {
        let process = pidfd::open(self.pid.as_raw()).or_host("cannot watch the compiler")?;
        let deadline = Instant::now() + wall;
        loop {
            let left = deadline.saturating_duration_since(Instant::now());
            let timeout = PollTimeout::try_from(left).unwrap_or(PollTimeout::MAX);
            let mut files =
                [PollFd::new(process.as_fd(), PollFlags::POLLIN), PollFd::new(signals.as_fd(), PollFlags::POLLIN)];
            match poll(&mut files, timeout) {
                Ok(0) if left.is_zero() => return Ok(Some(Stop::Time)),
                Ok(0) | Err(Errno::EINTR) => {}
                Ok(_) if files[0].any() == Some(true) => return Ok(None),
                Ok(_) => return Ok(Some(Stop::Signal)),
                Err(error) => return Err(error).or_host("cannot watch the compiler"),
            }
        }
    }

    fn reap(&mut self) -> nix::Result<WaitStatus> {
        loop {
            match waitpid(self.pid, None) {
                Err(Errno::EINTR) => {}
                done => {
                    self.is_reaped = true;
                    return done;
                }
            }
        }
    }
}

impl Drop for Child {
    fn drop(&mut self) {
        if !self.is_reaped && kill(self.pid, Signal::SIGKILL).is_ok() {
            self.reap().ok();
        }
    }
}
