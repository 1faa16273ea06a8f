//! Lets signals end the first process of a pid namespace as they would end any other, or later if the process chooses so.
//! The kernel ignores signals to that process unless they have a handler. The handlers run at once, whatever the process is
//! doing, and need no thread.

use std::io;
use std::mem::MaybeUninit;
use std::os::fd::OwnedFd;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicI32, AtomicU32, Ordering};
use std::time::Duration;

use nix::errno::Errno;
use nix::fcntl::OFlag;
use nix::sys::signal::{SaFlags, SigAction, SigHandler, SigSet, SigmaskHow, Signal, sigaction, sigprocmask};
use nix::unistd::{getpid, pipe2};

use crate::process::exit_now;

/// The last real-time signal.
const LAST: libc::c_int = 64;
/// The kernel lets nobody handle the first two. The C library uses the others, in threads.
const OUT_OF_REACH: [libc::c_int; 4] = [libc::SIGKILL, libc::SIGSTOP, 32, 33];
/// Signals that do not end a process without a handler.
const HARMLESS: [libc::c_int; 7] =
    [libc::SIGCHLD, libc::SIGCONT, libc::SIGTSTP, libc::SIGTTIN, libc::SIGTTOU, libc::SIGURG, libc::SIGWINCH];

/// Signals that ask a process to end and that the kernel itself sends for a terminal: for Ctrl-C, for Ctrl-\, and when it hangs up.
const OF_TERMINALS: [libc::c_int; 3] = [libc::SIGINT, libc::SIGQUIT, libc::SIGHUP];

/// The state of the signal handlers. It is static because a handler cannot be given an argument.
struct Handlers {
    /// This process, as the kernel names the sender of a signal.
    own_pid: AtomicI32,
    /// The exit code for the first signal that somebody sent; 0 before it arrives.
    ending: AtomicI32,
    /// How long the process goes on after it, in microseconds; 0 ends the process at once.
    grace_us: AtomicU32,
    /// The pipe that reports the signal instead.
    notified: OnceLock<OwnedFd>,
}

/// The signal handling of this process.
static HANDLERS: Handlers = Handlers {
    own_pid: AtomicI32::new(0),
    ending: AtomicI32::new(0),
    grace_us: AtomicU32::new(0),
    notified: OnceLock::new(),
};

/// Lets every signal that ends a process without a handler end this one at once with 128 plus its number. [`grant_grace`] and
/// [`notify`] change that. Handlers that are there are replaced. What the process is the parent of, which are the orphans of its
/// pid namespace, is not waited for and leaves no zombies.
///
/// # Errors
/// Those of `sigaction(2)`.
pub fn install() -> io::Result<()> {
    HANDLERS.own_pid.store(getpid().as_raw(), Ordering::SeqCst);
    let flags = SaFlags::SA_SIGINFO | SaFlags::SA_RESTART | SaFlags::SA_ONSTACK | SaFlags::SA_NOCLDWAIT;
    let action = SigAction::new(SigHandler::SigAction(on_signal), flags, SigSet::all());
    // SAFETY: the handler only makes system calls and uses atomics.
    unsafe { sigaction(Signal::SIGTERM, &action) }?;
    for signal in (1..=LAST).filter(|signal| !OUT_OF_REACH.contains(signal) && !HARMLESS.contains(signal)) {
        handle_like_sigterm(signal)?;
    }
    let ignore = SigAction::new(SigHandler::SigIgn, SaFlags::SA_NOCLDWAIT, SigSet::empty());
    // SAFETY: there is no handler.
    unsafe { sigaction(Signal::SIGCHLD, &ignore) }?;
    // The mask survives exec, and a blocked signal would never arrive.
    Ok(sigprocmask(SigmaskHow::SIG_SETMASK, Some(&SigSet::empty()), None)?)
}

/// From now on the other signals do the same if somebody sends them.
///
/// # Errors
/// Those of `sigaction(2)`.
pub fn install_for_harmless() -> io::Result<()> {
    HARMLESS.into_iter().try_for_each(handle_like_sigterm)
}

/// Gives `signal` the handler of SIGTERM. C libraries refuse some real-time signals that the kernel knows.
fn handle_like_sigterm(signal: libc::c_int) -> io::Result<()> {
    const SET_BYTES: usize = 8;
    // More than the kernel's structure takes on any architecture.
    let mut action = MaybeUninit::<[u64; 8]>::zeroed();
    let none = std::ptr::null::<u64>();
    // SAFETY: there is no new action, and the old one has room.
    Errno::result(unsafe {
        libc::syscall(libc::SYS_rt_sigaction, libc::SIGTERM, none, action.as_mut_ptr(), SET_BYTES)
    })?;
    // SAFETY: the kernel has just written this action, whose handler is that of `install`.
    Errno::result(unsafe { libc::syscall(libc::SYS_rt_sigaction, signal, action.as_ptr(), none, SET_BYTES) })?;
    Ok(())
}

/// From now on the process goes on for `grace` (less than a second) after the first signal that somebody sends. A second one
/// ends it.
pub fn grant_grace(grace: Duration) {
    HANDLERS.grace_us.store(grace.subsec_micros(), Ordering::SeqCst);
}

/// From now on the first signal that somebody sends only makes the returned pipe readable. A second one ends the process.
///
/// # Errors
/// Those of `pipe2(2)`.
pub fn notify() -> io::Result<OwnedFd> {
    let (ours, handlers) = pipe2(OFlag::O_CLOEXEC | OFlag::O_NONBLOCK)?;
    HANDLERS.notified.set(handlers).map_err(|_| io::Error::from(io::ErrorKind::AlreadyExists))?;
    Ok(ours)
}

extern "C" fn on_signal(signal: libc::c_int, info: *mut libc::siginfo_t, _: *mut libc::c_void) {
    // The shell's code for a process that a signal ended.
    let code = 128 + signal;
    if is_asked_for(signal, info) {
        if HANDLERS.ending.swap(code, Ordering::SeqCst) != 0 || !(has_notified() || starts_timer()) {
            exit_now(code);
        }
        return;
    }
    match signal {
        libc::SIGALRM if HANDLERS.ending.load(Ordering::SeqCst) != 0 => {
            exit_now(HANDLERS.ending.load(Ordering::SeqCst))
        }
        // The instruction is repeated, and ends the process as it would have without a handler.
        libc::SIGSEGV | libc::SIGBUS | libc::SIGILL | libc::SIGFPE => {
            // SAFETY: the default action runs no code of this program.
            unsafe { libc::signal(signal, libc::SIG_DFL) };
        }
        // The failed write says so, too.
        libc::SIGPIPE | libc::SIGXFSZ => {}
        signal if HARMLESS.contains(&signal) => {}
        _ => exit_now(code),
    }
}

/// Whether another process has sent the signal, or somebody at the terminal, rather than the kernel because of something that
/// this process did.
fn is_asked_for(signal: libc::c_int, info: *const libc::siginfo_t) -> bool {
    // SAFETY: the kernel passes the information to a handler that was installed with `SA_SIGINFO`.
    let Some(info) = (unsafe { info.as_ref() }) else { return true };
    if info.si_code > 0 {
        return OF_TERMINALS.contains(&signal);
    }
    // SAFETY: signals with such a code have a sender. It is 0 if this pid namespace cannot see it.
    let sender = unsafe { info.si_pid() };
    sender != HANDLERS.own_pid.load(Ordering::SeqCst)
}

fn has_notified() -> bool {
    HANDLERS.notified.get().is_some_and(|pipe| nix::unistd::write(pipe, &[0]) == Ok(1))
}

/// Sets the timer that sends SIGALRM at the end of the grace period, if there is one.
fn starts_timer() -> bool {
    let grace_us = HANDLERS.grace_us.load(Ordering::SeqCst);
    let timer = libc::itimerval {
        it_interval: libc::timeval { tv_sec: 0, tv_usec: 0 },
        it_value: libc::timeval { tv_sec: 0, tv_usec: grace_us.into() },
    };
    // SAFETY: the timer is a valid value and the old value is not requested; this is a bare system call.
    grace_us > 0 && unsafe { libc::setitimer(libc::ITIMER_REAL, &raw const timer, std::ptr::null_mut()) == 0 }
}
