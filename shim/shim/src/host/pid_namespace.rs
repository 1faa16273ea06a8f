//! The pid namespace that the containers of a pod share (`shareProcessNamespace`): it needs a first process to live in.
//!
//! That process is the shim's own program, which does nothing but reap what is orphaned in the namespace. It ends with
//! the shim, and everything in the namespace with it.

use std::ffi::CString;
use std::io;

use nix::errno::Errno;
use nix::sched::{CloneFlags, clone};
use nix::sys::signal::{SigSet, Signal};
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
use nix::unistd::Pid;

/// The action under which the shim's program is the first process of a pid namespace.
pub(crate) const ACTION: &str = "pid-namespace-init";
/// The stack of the child until it executes, in bytes.
const STACK_BYTES: usize = 64 << 10;

/// Starts the first process of a new pid namespace and gives its pid. It dies with the calling thread.
pub(crate) fn start_init() -> io::Result<i32> {
    let program = CString::new(std::env::current_exe()?.as_os_str().as_encoded_bytes())?;
    let action = CString::new(ACTION)?;
    let arguments = [program.as_ptr(), action.as_ptr(), std::ptr::null()];
    let environment = [std::ptr::null()];
    let mut stack = vec![0_u8; STACK_BYTES];
    let child = || {
        // SAFETY: prctl with integers; async-signal-safe.
        unsafe { libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL) };
        // SAFETY: the strings and the arrays, which end in null, live until the parent goes on, which is after this.
        unsafe { libc::execve(program.as_ptr(), arguments.as_ptr(), environment.as_ptr()) };
        isize::from(u8::MAX)
    };
    // With CLONE_VFORK the parent waits until the child has executed, so that sharing the memory is safe and cheap.
    let flags = CloneFlags::CLONE_NEWPID | CloneFlags::CLONE_VM | CloneFlags::CLONE_VFORK;
    // SAFETY: the child makes two system calls on a stack of its own and allocates nothing.
    let pid = unsafe { clone(Box::new(child), &mut stack, flags, Some(Signal::SIGCHLD as i32)) }?;
    Ok(pid.as_raw())
}

/// What the first process does: reaps, until it is asked to end.
pub(crate) fn run_init() -> io::Result<()> {
    let mut awaited = SigSet::empty();
    for signal in [Signal::SIGCHLD, Signal::SIGTERM, Signal::SIGINT] {
        awaited.add(signal);
    }
    awaited.thread_block()?;
    loop {
        loop {
            match waitpid(None::<Pid>, Some(WaitPidFlag::WNOHANG)) {
                Ok(WaitStatus::StillAlive) | Err(Errno::ECHILD) => break,
                Ok(_) | Err(Errno::EINTR) => {}
                Err(error) => return Err(error.into()),
            }
        }
        match awaited.wait() {
            Ok(Signal::SIGCHLD) | Err(Errno::EINTR) => {}
            Ok(_) => return Ok(()),
            Err(error) => return Err(error.into()),
        }
    }
}
