//! Children in new namespaces, made by `clone(2)` because the standard library cannot make them.

use std::ffi::CStr;
use std::fs::File;
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, RawFd};

use nix::errno::Errno;
use nix::sched::{CloneFlags, clone};
use nix::sys::signal::{SigSet, SigmaskHow, Signal, kill};
use nix::sys::wait::{WaitPidFlag, waitpid};
use nix::unistd::{Pid, getpid, getppid, pause};

/// The size of a child's stack until it executes or ends, in bytes.
const STACK_BYTES: usize = 64 << 10;

/// A child in a new user namespace that does nothing. It ends when this is dropped, or with the calling thread.
#[derive(Debug)]
pub struct UserNamespaceChild(Pid);

impl UserNamespaceChild {
    /// Starts it.
    ///
    /// # Errors
    /// Those of `clone(2)`.
    pub fn start() -> io::Result<Self> {
        let parent = getpid();
        let child = move || {
            // SAFETY: prctl with integers; async-signal-safe.
            unsafe { libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL) };
            // If the parent ended before that, the signal never comes.
            while getppid() == parent {
                pause();
            }
            0
        };
        let mut stack = vec![0_u8; STACK_BYTES];
        // With a table of its own the child would keep the other ends of pipes open.
        let flags = CloneFlags::CLONE_NEWUSER | CloneFlags::CLONE_FILES;
        // Keeps this process's signal handlers from running in the child. The one signal that ends it cannot be blocked.
        let mask = SigSet::all().thread_swap_mask(SigmaskHow::SIG_SETMASK)?;
        // SAFETY: the child has a copy of the memory, including the stack; it only makes system calls and allocates
        // nothing.
        let started = unsafe { clone(Box::new(child), &mut stack, flags, None) }.map(Self);
        mask.thread_set_mask()?;
        Ok(started?)
    }

    /// Its process id.
    pub fn pid(&self) -> i32 {
        self.0.as_raw()
    }
}

impl Drop for UserNamespaceChild {
    fn drop(&mut self) {
        // Killing a child that has not been reaped cannot fail.
        if kill(self.0, Signal::SIGKILL).is_ok() {
            // The child sends no signal when it ends, so a wait for any child elsewhere does not return it.
            while waitpid(self.0, Some(WaitPidFlag::__WALL)) == Err(Errno::EINTR) {}
        }
    }
}

/// Executes `program` as `name` in new `namespaces`, with `argument` as its only argument, an empty environment, and
/// `passed` as the descriptor `number`. Returns its process id. It ends with the calling thread.
///
/// # Errors
/// Those of `clone(2)`. If the program cannot be executed, the child exits with 255.
pub fn execute(
    program: &File,
    name: &CStr,
    argument: &CStr,
    (passed, number): (BorrowedFd<'_>, RawFd),
    namespaces: CloneFlags,
) -> io::Result<i32> {
    let arguments = [name.as_ptr(), argument.as_ptr(), std::ptr::null()];
    let environment = [std::ptr::null::<libc::c_char>()];
    let child = || {
        // SAFETY: prctl with integers; async-signal-safe.
        unsafe { libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL) };
        // SAFETY: nobody owns this number in the child, which has a file table of its own; async-signal-safe.
        unsafe { libc::dup2(passed.as_raw_fd(), number) };
        // SAFETY: the strings and the null-terminated arrays live until the parent goes on, which is after this.
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
    let mut stack = vec![0_u8; STACK_BYTES];
    // With CLONE_VFORK the parent waits until the child has executed, so sharing the memory is safe and cheap.
    let flags = namespaces | CloneFlags::CLONE_VM | CloneFlags::CLONE_VFORK;
    // SAFETY: the child makes three system calls on a stack of its own and allocates nothing.
    let pid = unsafe { clone(Box::new(child), &mut stack, flags, Some(Signal::SIGCHLD as i32)) }?;
    Ok(pid.as_raw())
}
