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

use crate::process::exit_now;

/// The size of a child's stack until it executes or ends, in bytes.
const STACK_BYTES: usize = 64 << 10;
/// The numbers of descriptors that a child gets are below this one.
pub const NUMBERS_END: RawFd = 16;
/// From `linux/sched.h`; libc has it in a type that it does not fit into.
const CLONE_INTO_CGROUP: u64 = 0x2_0000_0000;
/// The most descriptors that a child gets.
const FILES_MAX: usize = 16;

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

/// Executes `program` as `name`, without arguments and environment, in new `namespaces`. It gets `files` as the descriptors of these
/// numbers, which are below [`NUMBERS_END`], and no others. It begins in the `cgroup` of version 2, if one is given. Returns its
/// process id.
///
/// # Errors
/// Those of `clone(2)`; `InvalidInput` for too many files. If the program cannot be executed, the child exits with 255.
pub fn execute_with(
    program: BorrowedFd<'_>,
    name: &CStr,
    files: &[(BorrowedFd<'_>, RawFd)],
    namespaces: CloneFlags,
    cgroup: Option<BorrowedFd<'_>>,
) -> io::Result<i32> {
    let arguments = [name.as_ptr(), std::ptr::null()];
    if files.len() > FILES_MAX {
        return Err(io::ErrorKind::InvalidInput.into());
    }
    let child = || {
        let mut moved = [-1; FILES_MAX];
        for (slot, (file, _)) in moved.iter_mut().zip(files) {
            // SAFETY: fcntl with integers; async-signal-safe.
            *slot = unsafe { libc::fcntl(file.as_raw_fd(), libc::F_DUPFD_CLOEXEC, NUMBERS_END) };
        }
        // SAFETY: fcntl with integers; async-signal-safe.
        let program = unsafe { libc::fcntl(program.as_raw_fd(), libc::F_DUPFD_CLOEXEC, NUMBERS_END) };
        // SAFETY: integers; nothing is closed before the program is executed; async-signal-safe.
        let closed = unsafe { libc::syscall(libc::SYS_close_range, 0, libc::c_uint::MAX, libc::CLOSE_RANGE_CLOEXEC) };
        if closed < 0 {
            return isize::from(u8::MAX);
        }
        for (source, (_, number)) in moved.into_iter().zip(files) {
            // SAFETY: nobody owns this number in the child, which has a file table of its own; async-signal-safe.
            if unsafe { libc::dup2(source, *number) } < 0 {
                return isize::from(u8::MAX);
            }
        }
        // SAFETY: the strings live until the parent goes on, which is after this.
        unsafe { execute_here(program, &arguments) }
    };
    // Keeps this process's signal handlers from running in the child, which may share its memory.
    let mask = SigSet::all().thread_swap_mask(SigmaskHow::SIG_SETMASK)?;
    let started = match cgroup {
        Some(cgroup) => clone_into(cgroup, namespaces, child),
        // SAFETY: the child makes system calls and allocates nothing.
        None => unsafe { clone_sharing(namespaces, child) },
    };
    mask.thread_set_mask()?;
    Ok(started?)
}

/// Makes a child in `cgroup`, which does what `child` does with a copy of the memory, and ends with its result. It must allocate
/// nothing.
fn clone_into(cgroup: BorrowedFd<'_>, namespaces: CloneFlags, mut child: impl FnMut() -> isize) -> Result<i32, Errno> {
    let number = |value: i32| u64::try_from(value).map_err(|_| Errno::EINVAL);
    let flags = number((namespaces | CloneFlags::CLONE_VFORK).bits())? | CLONE_INTO_CGROUP;
    let arguments = libc::clone_args {
        flags,
        pidfd: 0,
        child_tid: 0,
        parent_tid: 0,
        exit_signal: number(libc::SIGCHLD)?,
        stack: 0,
        stack_size: 0,
        tls: 0,
        set_tid: 0,
        set_tid_size: 0,
        cgroup: number(cgroup.as_raw_fd())?,
    };
    let size = size_of_val(&arguments);
    // SAFETY: the arguments outlive the call. The child goes on here as after `fork(2)`, with memory and a stack of its own; until it
    // executes its program or ends it makes system calls only.
    match Errno::result(unsafe { libc::syscall(libc::SYS_clone3, &raw const arguments, size) })? {
        0 => exit_now(i32::try_from(child()).unwrap_or(i32::MAX)),
        pid => i32::try_from(pid).map_err(|_| Errno::EOVERFLOW),
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
    let child = || {
        // SAFETY: prctl with integers; async-signal-safe.
        unsafe { libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL) };
        // SAFETY: nobody owns this number in the child, which has a file table of its own; async-signal-safe.
        unsafe { libc::dup2(passed.as_raw_fd(), number) };
        // SAFETY: the strings live until the parent goes on, which is after this.
        unsafe { execute_here(program.as_raw_fd(), &arguments) }
    };
    // SAFETY: the child makes three system calls and allocates nothing.
    Ok(unsafe { clone_sharing(namespaces, child) }?)
}

/// Makes a child that shares the memory of this process until it executes a program, for which the parent waits. So it is cheap.
///
/// # Safety
/// The child has a stack of its own, but may only make system calls, and allocate nothing.
unsafe fn clone_sharing(namespaces: CloneFlags, child: impl FnMut() -> isize) -> Result<i32, Errno> {
    let mut stack = vec![0_u8; STACK_BYTES];
    let flags = namespaces | CloneFlags::CLONE_VM | CloneFlags::CLONE_VFORK;
    // SAFETY: as the caller promises; the stack lives until the parent goes on.
    unsafe { clone(Box::new(child), &mut stack, flags, Some(Signal::SIGCHLD as i32)) }.map(Pid::as_raw)
}

/// Executes `program` with these arguments, which end with a null, and an empty environment. Returns the exit code if that fails.
///
/// # Safety
/// The arguments must be strings. Async-signal-safe.
unsafe fn execute_here(program: RawFd, arguments: &[*const libc::c_char]) -> isize {
    let environment = [std::ptr::null::<libc::c_char>()];
    // SAFETY: both arrays end with a null and outlive the call.
    unsafe {
        libc::syscall(
            libc::SYS_execveat,
            program,
            c"".as_ptr(),
            arguments.as_ptr(),
            environment.as_ptr(),
            libc::AT_EMPTY_PATH,
        )
    };
    isize::from(u8::MAX)
}
