//! The pid namespace that the containers of a pod share (`shareProcessNamespace`), and the first process that it needs.
//!
//! That process is the shim's own program, which only reaps orphans in the namespace. The containers see it, and one with
//! `SYS_PTRACE` can look into it, so there must be nothing to find. It has its own namespaces, an empty read-only root, the
//! user `nobody`, no open files, no environment and no capabilities, and a filter that allows only the few system calls
//! that it makes. It ends with the shim, and everything in the namespace ends with it.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{self, PipeReader, Write, pipe};
use std::os::fd::AsFd;

use nix::errno::Errno;
use nix::sched::CloneFlags;
use nix::sys::prctl;
use nix::sys::signal::{SigSet, Signal};
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
use nix::unistd::Pid;
use seccompiler::{BpfProgram, SeccompAction, SeccompFilter, TargetArch};
use skiff_linux::descriptors::{close_from, inherit};
use skiff_linux::{jail, namespaces, signals};

use super::engine::open_shim;

/// The action under which the shim's program is the first process of a pid namespace.
pub(crate) const ACTION: &str = "pid-namespace-init";
/// The program's name on the command line that the containers see, before the action.
const NAME: &std::ffi::CStr = c"skiff-init";
/// The number of the descriptor through which it reports that it is confined.
const CONFINED_FD: i32 = 3;

/// The system calls that it makes once it is confined: to wait for children and for SIGCHLD, and to end.
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

/// Starts the first process of a new pid namespace. Returns its pid, and a pipe through which it sends one byte when it is
/// confined. It dies with the calling thread.
///
/// # Errors
/// Those of opening the shim's own file and of `clone(2)`. A process that cannot be confined ends at once.
pub(crate) fn start_init() -> io::Result<(i32, PipeReader)> {
    let (confined, says) = pipe()?;
    // The containers can reach the file through `/proc/1/exe`.
    let program = open_shim()?;
    let action = std::ffi::CString::new(ACTION)?;
    let new = CloneFlags::CLONE_NEWPID
        | CloneFlags::CLONE_NEWNS
        | CloneFlags::CLONE_NEWNET
        | CloneFlags::CLONE_NEWIPC
        | CloneFlags::CLONE_NEWUTS
        | CloneFlags::CLONE_NEWCGROUP;
    let pid = namespaces::execute(&program, NAME, &action, (says.as_fd(), CONFINED_FD), new)?;
    Ok((pid, confined))
}

/// Runs the first process: confines it, then reaps for ever. It never gets signals from inside the namespace, because it
/// handles none.
///
/// # Errors
/// Those of the step that failed; the process must then end.
pub(crate) fn run_init() -> io::Result<()> {
    // Rust's runtime handles these, so the kernel would deliver them from inside the namespace.
    signals::reset(&[Signal::SIGSEGV, Signal::SIGBUS])?;
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
    let mut says = File::from(inherit(CONFINED_FD)?);
    // Allocated before the confinement, and applied last.
    let filter = filter()?;
    nix::unistd::sethostname("")?;
    jail::enter_empty_root("skiff-init")?;
    // This also clears the parent's death signal.
    jail::become_nobody()?;
    prctl::set_pdeathsig(Signal::SIGKILL)?;
    prctl::set_dumpable(false)?;
    says.write_all(&[0])?;
    drop(says);
    close_from(0)?;
    seccompiler::apply_filter(&filter).map_err(io::Error::other)
}

/// Kills the process on any other system call: it has no use for one.
fn filter() -> io::Result<BpfProgram> {
    let architecture = TargetArch::try_from(std::env::consts::ARCH).map_err(io::Error::other)?;
    let rules: BTreeMap<_, _> = ALLOWED.iter().map(|call| (*call, Vec::new())).collect();
    let filter = SeccompFilter::new(rules, SeccompAction::KillProcess, SeccompAction::Allow, architecture);
    filter.and_then(BpfProgram::try_from).map_err(io::Error::other)
}
