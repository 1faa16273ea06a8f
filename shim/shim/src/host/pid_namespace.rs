//! The pid namespace that the containers of a pod share (`shareProcessNamespace`): it needs a first process to live in.
//!
//! That process is the shim's own program, which does nothing but reap what is orphaned in the namespace. The containers see
//! it, and one with `SYS_PTRACE` may look into it: so there is nothing to see. It has namespaces of its own, an empty
//! read-only root, no open file, no environment, no user and no capability, and a filter that leaves it the few system calls
//! that it makes. It ends with the shim, and everything in the namespace with it.

use std::collections::BTreeMap;
use std::io::{self, PipeReader, pipe};
use std::os::fd::AsRawFd;

use nix::errno::Errno;
use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::sched::{CloneFlags, clone};
use nix::sys::prctl;
use nix::sys::signal::{SigHandler, SigSet, Signal, signal};
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
use nix::unistd::{Gid, Pid, Uid, chdir, chroot, pivot_root, setgroups, setresgid, setresuid};
use seccompiler::{BpfProgram, SeccompAction, SeccompFilter, TargetArch};

use super::engine::open_shim;

/// The action under which the shim's program is the first process of a pid namespace.
pub(crate) const ACTION: &str = "pid-namespace-init";
/// What the containers see of its command line, before the action.
const NAME: &std::ffi::CStr = c"skiff-init";
/// The descriptor through which it says that it is confined: on its last one.
const CONFINED_FD: i32 = 3;
/// The stack of the child until it executes, in bytes.
const STACK_BYTES: usize = 64 << 10;
/// The user and group that own nothing.
const NOBODY: u32 = 65534;

/// What it does once it is confined: it waits for children and for the signal of their ends, and it ends.
const ALLOWED: [libc::c_long; 8] = [
    libc::SYS_exit,
    libc::SYS_exit_group,
    libc::SYS_restart_syscall,
    libc::SYS_rt_sigprocmask,
    libc::SYS_rt_sigreturn,
    libc::SYS_rt_sigtimedwait,
    libc::SYS_wait4,
    libc::SYS_waitid,
];

/// Starts the first process of a new pid namespace; gives its pid, and where it says, by one byte, that it is confined. It dies
/// with the calling thread.
///
/// # Errors
/// Those of opening the shim's own file and of `clone(2)`. A process that cannot be confined ends at once.
pub(crate) fn start_init() -> io::Result<(i32, PipeReader)> {
    let (confined, says) = pipe()?;
    // The containers can reach the file by `/proc/1/exe`.
    let program = open_shim()?;
    let action = std::ffi::CString::new(ACTION)?;
    let arguments = [NAME.as_ptr(), action.as_ptr(), std::ptr::null()];
    let environment = [std::ptr::null::<libc::c_char>()];
    let mut stack = vec![0_u8; STACK_BYTES];
    let child = || {
        // SAFETY: prctl with integers; async-signal-safe.
        unsafe { libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL) };
        // SAFETY: the child has a file table of its own, in which this number is nobody's from here on; async-signal-safe.
        unsafe { libc::dup2(says.as_raw_fd(), CONFINED_FD) };
        // SAFETY: the strings and the arrays, which end in null, live until the parent goes on, which is after this.
        unsafe {
            libc::syscall(
                libc::SYS_execveat,
                program.as_raw_fd(),
                c"".as_ptr(),
                arguments.as_ptr(),
                environment.as_ptr(),
                libc::AT_EMPTY_PATH,
            )
        };
        isize::from(u8::MAX)
    };
    let namespaces = CloneFlags::CLONE_NEWPID
        | CloneFlags::CLONE_NEWNS
        | CloneFlags::CLONE_NEWNET
        | CloneFlags::CLONE_NEWIPC
        | CloneFlags::CLONE_NEWUTS
        | CloneFlags::CLONE_NEWCGROUP;
    // With CLONE_VFORK the parent waits until the child has executed, so that sharing the memory is safe and cheap.
    let flags = namespaces | CloneFlags::CLONE_VM | CloneFlags::CLONE_VFORK;
    // SAFETY: the child makes three system calls on a stack of its own and allocates nothing.
    let pid = unsafe { clone(Box::new(child), &mut stack, flags, Some(Signal::SIGCHLD as i32)) }?;
    Ok((pid.as_raw(), confined))
}

/// What the first process does: it confines itself, then reaps for ever. Signals from inside the namespace it never gets,
/// since it handles none.
///
/// # Errors
/// Those of the step that failed; the process must end then.
pub(crate) fn run_init() -> io::Result<()> {
    // What Rust's runtime handles, the kernel would deliver from inside the namespace.
    for handled in [Signal::SIGSEGV, Signal::SIGBUS] {
        // SAFETY: the default action runs no code of this program.
        unsafe { signal(handled, SigHandler::SigDfl) }?;
    }
    let mut awaited = SigSet::empty();
    awaited.add(Signal::SIGCHLD);
    awaited.thread_block()?;
    confine()?;
    loop {
        loop {
            match waitpid(None::<Pid>, Some(WaitPidFlag::WNOHANG)) {
                Ok(WaitStatus::StillAlive) | Err(Errno::ECHILD) => break,
                Ok(_) | Err(Errno::EINTR) => {}
                Err(error) => return Err(error.into()),
            }
        }
        match awaited.wait() {
            Ok(_) | Err(Errno::EINTR) => {}
            Err(error) => return Err(error.into()),
        }
    }
}

fn confine() -> io::Result<()> {
    // Made while there is memory to be had, and used last.
    let filter = filter()?;
    nix::unistd::sethostname("")?;
    enter_empty_root()?;
    drop_capability_bounds()?;
    prctl::set_no_new_privs()?;
    setgroups(&[])?;
    let (user, group) = (Uid::from_raw(NOBODY), Gid::from_raw(NOBODY));
    setresgid(group, group, group)?;
    // Leaving user 0 for good also clears the capabilities; and the parent's death signal.
    setresuid(user, user, user)?;
    prctl::set_pdeathsig(Signal::SIGKILL)?;
    prctl::set_dumpable(false)?;
    // SAFETY: the byte is the program's own; a descriptor that is not open is an error.
    Errno::result(unsafe { libc::write(CONFINED_FD, c"".as_ptr().cast(), 1) })?;
    close_all_files()?;
    seccompiler::apply_filter(&filter).map_err(io::Error::other)
}

/// Makes an empty read-only file system the root, in a mount namespace in which nothing else is left.
fn enter_empty_root() -> nix::Result<()> {
    const NONE: Option<&str> = None;
    mount(NONE, "/", NONE, MsFlags::MS_REC | MsFlags::MS_PRIVATE, NONE)?;
    // `/proc` is a directory that every node has; what was there stays out of sight from here on.
    let flags = MsFlags::MS_RDONLY | MsFlags::MS_NOSUID | MsFlags::MS_NODEV | MsFlags::MS_NOEXEC;
    mount(Some("skiff-init"), "/proc", Some("tmpfs"), flags, Some("size=4k,nr_inodes=1,mode=0555"))?;
    chdir("/proc")?;
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

fn close_all_files() -> nix::Result<()> {
    // SAFETY: nothing in this process uses a descriptor from here on.
    Errno::result(unsafe { libc::syscall(libc::SYS_close_range, 0, libc::c_uint::MAX, 0) }).map(drop)
}

/// Drops every capability that this kernel knows from the bounding set.
fn drop_capability_bounds() -> nix::Result<()> {
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

/// All but what is allowed kills the process: it does nothing else.
fn filter() -> io::Result<BpfProgram> {
    let architecture = TargetArch::try_from(std::env::consts::ARCH).map_err(io::Error::other)?;
    let rules: BTreeMap<_, _> = ALLOWED.iter().map(|call| (*call, Vec::new())).collect();
    let filter = SeccompFilter::new(rules, SeccompAction::KillProcess, SeccompAction::Allow, architecture);
    filter.and_then(BpfProgram::try_from).map_err(io::Error::other)
}
