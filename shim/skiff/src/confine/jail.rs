//! Takes from the calling process, step by step, everything that a compiler does not need. The process is the first
//! of its own process namespace already, has one thread, and its standard streams are all it keeps.

use std::os::fd::{AsFd, OwnedFd};

use nix::errno::Errno;
use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sched::{CloneFlags, unshare};
use nix::sys::prctl;
use nix::sys::resource::{Resource, setrlimit};
use nix::sys::signal::{SaFlags, SigAction, SigHandler, SigSet, Signal, sigaction};
use nix::unistd::{Gid, Uid, chdir, chroot, pivot_root, setgroups, setresgid, setresuid, setsid};

use super::ending::OUT_OF_TIME;
use super::{Limits, filter};
use crate::error::{Context, Error, Result};

/// The user and group that compile: `nobody`, who owns nothing.
const NOBODY: u32 = 65534;
/// How long after its processor time is used up a process is killed that has blocked the signal.
const CPU_GRACE_SECONDS: u64 = 5;
/// Open files; the standard streams and copies of them.
const OPEN_FILES: u64 = 16;
/// How far the compiler stands back behind the node's other processes.
const NICENESS: libc::c_int = 10;

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
    enter_empty_root().or_host("cannot enter an empty root directory")?;
    set_limits(limits, is_memory_bounded).or_host("cannot set the resource limits")?;
    drop_privileges().or_host("cannot drop the privileges")?;
    // A change of the user clears the parent's death signal.
    die_with(&supervisor)?;
    drop(supervisor);
    close_files_from(3).or_host("cannot close the other files")?;
    filter::install()
}

/// Has the kernel kill this process when its supervisor ends, also when that has happened already.
fn die_with(supervisor: &OwnedFd) -> Result<()> {
    prctl::set_pdeathsig(Signal::SIGKILL).or_host("cannot ask for the death signal")?;
    let mut ends = [PollFd::new(supervisor.as_fd(), PollFlags::empty())];
    match poll(&mut ends, PollTimeout::ZERO).or_host("cannot look for the supervisor")? {
        0 => Ok(()),
        _ => Err(Error::host("the supervisor is gone")),
    }
}

/// Makes an empty read-only file system the root, in a mount namespace in which nothing else is left.
fn enter_empty_root() -> nix::Result<()> {
    const NONE: Option<&str> = None;
    mount(NONE, "/", NONE, MsFlags::MS_REC | MsFlags::MS_PRIVATE, NONE)?;
    // `/proc` is a directory that every node has; what was there stays out of sight from here on.
    let flags = MsFlags::MS_RDONLY | MsFlags::MS_NOSUID | MsFlags::MS_NODEV | MsFlags::MS_NOEXEC;
    mount(Some("skiff-compile"), "/proc", Some("tmpfs"), flags, Some("size=4k,nr_inodes=1,mode=0555"))?;
    make_root("/proc")
}

/// Makes the file system mounted at `place` the root, and takes everything else away from this mount namespace.
pub(super) fn make_root(place: &str) -> nix::Result<()> {
    const NONE: Option<&str> = None;
    chdir(place)?;
    match pivot_root(".", ".") {
        Ok(()) => umount2(".", MntFlags::MNT_DETACH)?,
        // A node that runs from its initial RAM file system cannot pivot.
        Err(Errno::EINVAL) => {
            mount(Some("."), "/", NONE, MsFlags::MS_MOVE, NONE)?;
            chroot(".")?;
        }
        Err(error) => return Err(error),
    }
    chdir("/")
}

fn set_limits(limits: &Limits, is_memory_bounded: bool) -> nix::Result<()> {
    let handler = SigAction::new(SigHandler::Handler(end_out_of_time), SaFlags::SA_ONSTACK, SigSet::empty());
    // SAFETY: the handler does nothing but end the process.
    unsafe { sigaction(Signal::SIGXCPU, &handler) }?;
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
    // SAFETY: takes numbers only; this process and its later threads get the priority.
    Errno::result(unsafe { libc::setpriority(libc::PRIO_PROCESS, 0, NICENESS) }).map(drop)
}

/// Ends the process when its processor time is used up: the first process of a namespace would ignore the signal.
extern "C" fn end_out_of_time(_: libc::c_int) {
    // SAFETY: may be called in a handler.
    unsafe { libc::_exit(OUT_OF_TIME) }
}

fn drop_privileges() -> nix::Result<()> {
    drop_capability_bounds()?;
    prctl::set_no_new_privs()?;
    setgroups(&[])?;
    let (user, group) = (Uid::from_raw(NOBODY), Gid::from_raw(NOBODY));
    setresgid(group, group, group)?;
    // Leaving user 0 for good also clears the permitted, effective and ambient capabilities.
    setresuid(user, user, user)?;
    prctl::set_dumpable(false)
}

/// Drops every capability that this kernel knows from the bounding set.
pub(super) fn drop_capability_bounds() -> nix::Result<()> {
    for capability in 0..64_u64 {
        // SAFETY: takes numbers only.
        match Errno::result(unsafe { libc::prctl(libc::PR_CAPBSET_DROP, capability, 0, 0, 0) }) {
            Ok(_) => {}
            Err(Errno::EINVAL) => break,
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

fn close_files_from(first: libc::c_uint) -> nix::Result<()> {
    // SAFETY: nothing in this process uses a descriptor above the standard streams from here on.
    Errno::result(unsafe { libc::syscall(libc::SYS_close_range, first, libc::c_uint::MAX, 0) }).map(drop)
}
