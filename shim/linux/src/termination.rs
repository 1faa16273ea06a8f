//! Lets signals end the first process of a pid namespace as they would end any other, or later if the process chooses so.
//! The kernel ignores signals to that process unless they have a handler. The handlers run at once, whatever the process is
//! doing, and need no thread.

use std::io;
use std::os::fd::OwnedFd;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicI32, AtomicU32, Ordering};
use std::time::Duration;

use nix::fcntl::OFlag;
use nix::sys::signal::{SaFlags, SigAction, SigHandler, SigSet, SigmaskHow, Signal, sigaction, sigprocmask};
use nix::unistd::pipe2;

use crate::process::exit_now;

/// The state of the signal handlers. It is static because a handler cannot be given an argument.
struct Handlers {
    /// The exit code for the first SIGTERM or SIGINT; 0 before it arrives.
    ending: AtomicI32,
    /// How long the process goes on after it, in microseconds; 0 ends the process at once.
    grace_us: AtomicU32,
    /// The pipe that reports the signal instead.
    notified: OnceLock<OwnedFd>,
}

/// The signal handling of this process.
static HANDLERS: Handlers =
    Handlers { ending: AtomicI32::new(0), grace_us: AtomicU32::new(0), notified: OnceLock::new() };

/// Lets each of `signals`, and SIGALRM, end the process at once with 128 plus its number. [`grant_grace`] and [`notify`]
/// change that for SIGTERM and SIGINT.
///
/// # Errors
/// Those of `sigaction(2)`: a signal that cannot be handled.
pub fn install(signals: &[Signal]) -> io::Result<()> {
    let signals: SigSet = signals.iter().copied().chain([Signal::SIGALRM]).collect();
    let action = SigAction::new(SigHandler::Handler(on_signal), SaFlags::SA_RESTART, SigSet::all());
    for signal in &signals {
        // SAFETY: the handler only makes system calls and uses atomics.
        unsafe { sigaction(signal, &action) }?;
    }
    // The mask survives exec, and a blocked signal would never arrive.
    Ok(sigprocmask(SigmaskHow::SIG_UNBLOCK, Some(&signals), None)?)
}

/// From now on the process goes on for `grace` (less than a second) after the first SIGTERM or SIGINT. A second one ends
/// it.
pub fn grant_grace(grace: Duration) {
    HANDLERS.grace_us.store(grace.subsec_micros(), Ordering::SeqCst);
}

/// From now on the first SIGTERM or SIGINT only makes the returned pipe readable. A second one ends the process.
///
/// # Errors
/// Those of `pipe2(2)`.
pub fn notify() -> io::Result<OwnedFd> {
    let (ours, handlers) = pipe2(OFlag::O_CLOEXEC | OFlag::O_NONBLOCK)?;
    HANDLERS.notified.set(handlers).map_err(|_| io::Error::from(io::ErrorKind::AlreadyExists))?;
    Ok(ours)
}

extern "C" fn on_signal(signal: libc::c_int) {
    // The shell's code for a process that a signal ended.
    let code = 128 + signal;
    match signal {
        libc::SIGTERM | libc::SIGINT => {
            if HANDLERS.ending.swap(code, Ordering::SeqCst) != 0 || !(has_notified() || starts_timer()) {
                exit_now(code);
            }
        }
        libc::SIGALRM if HANDLERS.ending.load(Ordering::SeqCst) != 0 => {
            exit_now(HANDLERS.ending.load(Ordering::SeqCst))
        }
        _ => exit_now(code),
    }
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
