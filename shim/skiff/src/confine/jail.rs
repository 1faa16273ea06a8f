//! Takes from the calling process, step by step, everything that a compiler does not need. The process is the first
//! of its own process namespace already, has one thread, and its standard streams are all it keeps.

use std::io;
use std::os::fd::{AsFd, OwnedFd};

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sched::{CloneFlags, unshare};
use nix::sys::prctl;
use nix::sys::resource::{Resource, setrlimit};
use nix::sys::signal::Signal;
use nix::unistd::setsid;
use rustix::process::setpriority_process;
use skiff_linux::descriptors::close_from;
use skiff_linux::{jail, signals};

use super::ending::OUT_OF_TIME;
use super::filter;
use super::limits::Limits;
use crate::error::{Context, Error, Result};

/// How long after its processor time runs out a process that blocks the signal is killed.
const CPU_GRACE_SECONDS: u64 = 5;
/// Open files; the standard streams and copies of them.
const OPEN_FILES: u64 = 16;
/// The compiler's niceness: the node's other processes come first.
const NICENESS: i32 = 10;

/// Confines the calling process for good. `supervisor` is a pipe whose other end only the supervisor holds.
///
/// # Errors
/// The host's, named by the step that failed; the process must end then.
pub(super) fn enter(limits: &Limits, is_memory_bounded: bool, supervisor: OwnedFd) -> Result<()> {
    setsid().or_host("cannot start a session")?;
    die_with(&supervisor)?;
    let namespaces =
        CloneFlags::CLONE_NEWNS | CloneFlags::CLONE_NEWNET | CloneFlags::CLONE_NEWIPC | CloneFlags::CLONE_NEWUTS;
    unshare(namespaces).or_host("cannot make namespaces")?;
    jail::enter_empty_root("skiff-compile").or_host("cannot enter an empty root directory")?;
    set_limits(limits, is_memory_bounded).or_host("cannot set the resource limits")?;
    jail::become_nobody().or_host("cannot drop the privileges")?;
    prctl::set_dumpable(false).or_host("cannot drop the privileges")?;
    // A change of the user clears the parent's death signal.
    die_with(&supervisor)?;
    drop(supervisor);
    close_from(3).or_host("cannot close the other files")?;
    filter::install()
}

/// Has the kernel kill this process when its supervisor ends, even if that has already happened.
fn die_with(supervisor: &OwnedFd) -> Result<()> {
    prctl::set_pdeathsig(Signal::SIGKILL).or_host("cannot set the parent death signal")?;
    let mut ends = [PollFd::new(supervisor.as_fd(), PollFlags::empty())];
    match poll(&mut ends, PollTimeout::ZERO).or_host("cannot look for the supervisor")? {
        0 => Ok(()),
        _ => Err(Error::host("the supervisor is gone")),
    }
}

fn set_limits(limits: &Limits, is_memory_bounded: bool) -> io::Result<()> {
    // The first process of a namespace would ignore the signal.
    signals::end_on(&[Signal::SIGXCPU], OUT_OF_TIME, "")?;
    setrlimit(Resource::RLIMIT_CPU, limits.cpu_seconds, limits.cpu_seconds.saturating_add(CPU_GRACE_SECONDS))?;
    for (resource, limit) in [
        (Resource::RLIMIT_NOFILE, OPEN_FILES),
        (Resource::RLIMIT_FSIZE, limits.output_bytes),
        (Resource::RLIMIT_CORE, 0),
        (Resource::RLIMIT_MEMLOCK, 0),
        (Resource::RLIMIT_MSGQUEUE, 0),
    ] {
        setrlimit(resource, limit, limit)?;
    }
    if !is_memory_bounded {
        setrlimit(Resource::RLIMIT_DATA, limits.memory_bytes, limits.memory_bytes)?;
    }
    // This process and its later threads get the priority.
    Ok(setpriority_process(None, NICENESS)?)
}
