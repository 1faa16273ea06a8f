//! Signals. The engine is process 1 of its namespace, where the kernel ignores every signal without a handler: each
//! signal that ends a native process has one here, so that nothing is swallowed. The handlers run at once, also while
//! the guest spins or blocks in a host call, and cost no thread.

use std::io;
use std::os::fd::{IntoRawFd, OwnedFd};
use std::sync::atomic::{AtomicI32, AtomicU8, Ordering};
use std::time::Duration;

use nix::fcntl::OFlag;
use nix::sys::signal::{SaFlags, SigAction, SigHandler, SigSet, SigmaskHow, Signal, sigaction, sigprocmask};
use nix::unistd::pipe2;
use skiff_protocol::exit_code_of_signal;

/// How long a command goes on after SIGTERM or SIGINT. A guest cannot see signals: this is for one that is about done.
pub(crate) const GRACE: Duration = Duration::from_millis(250);

const HANDLED: [Signal; 7] = [
    Signal::SIGTERM,
    Signal::SIGINT,
    Signal::SIGHUP,
    Signal::SIGQUIT,
    Signal::SIGUSR1,
    Signal::SIGUSR2,
    Signal::SIGALRM,
];

/// What SIGTERM and SIGINT do.
#[derive(Clone, Copy)]
#[repr(u8)]
enum Course {
    /// End the process at once: no guest runs yet.
    AtOnce,
    /// End it after [`GRACE`].
    Grace,
    /// Tell the HTTP server.
    Drain,
}

static COURSE: AtomicU8 = AtomicU8::new(Course::AtOnce as u8);
/// The exit code of the first SIGTERM or SIGINT; 0 before it.
static ENDING: AtomicI32 = AtomicI32::new(0);
/// The pipe that tells the HTTP server; -1 without one.
static NOTIFIED: AtomicI32 = AtomicI32::new(-1);

/// Installs the handlers. Until [`grant_grace`] or [`notify`] every signal ends the process at once.
pub(crate) fn install() {
    let action = SigAction::new(SigHandler::Handler(on_signal), SaFlags::SA_RESTART, SigSet::all());
    for signal in HANDLED {
        // SAFETY: the handler calls async-signal-safe functions only and touches nothing but atomics.
        let installed = unsafe { sigaction(signal, &action) };
        debug_assert!(installed.is_ok(), "the kernel knows all of these signals");
    }
    // A mask is inherited through exec: a blocked signal would never arrive. Unblocking valid signals cannot fail.
    let _unblocked = sigprocmask(SigmaskHow::SIG_UNBLOCK, Some(&SigSet::from_iter(HANDLED)), None);
}

/// From now on SIGTERM and SIGINT leave the guest [`GRACE`].
pub(crate) fn grant_grace() {
    COURSE.store(Course::Grace as u8, Ordering::SeqCst);
}

/// From now on the first SIGTERM or SIGINT makes the answered pipe readable, and nothing else.
///
/// # Errors
/// Those of `pipe2(2)`.
pub(crate) fn notify() -> io::Result<OwnedFd> {
    let (ours, handlers) = pipe2(OFlag::O_CLOEXEC | OFlag::O_NONBLOCK)?;
    NOTIFIED.store(handlers.into_raw_fd(), Ordering::SeqCst);
    COURSE.store(Course::Drain as u8, Ordering::SeqCst);
    Ok(ours)
}

extern "C" fn on_signal(signal: libc::c_int) {
    let code = exit_code_of_signal(signal);
    match signal {
        libc::SIGTERM | libc::SIGINT => {
            if ENDING.swap(code, Ordering::SeqCst) != 0 {
                exit_now(code);
            }
            begin_to_end(code);
        }
        libc::SIGALRM if ENDING.load(Ordering::SeqCst) != 0 => exit_now(ENDING.load(Ordering::SeqCst)),
        _ => exit_now(code),
    }
}

fn begin_to_end(code: libc::c_int) {
    let course = COURSE.load(Ordering::SeqCst);
    if course == Course::Grace as u8 && start_timer() {
        return;
    }
    if course == Course::Drain as u8 && write_event() {
        return;
    }
    exit_now(code);
}

/// Asks for SIGALRM after [`GRACE`].
fn start_timer() -> bool {
    let timer = libc::itimerval {
        it_interval: libc::timeval { tv_sec: 0, tv_usec: 0 },
        it_value: libc::timeval { tv_sec: 0, tv_usec: i64::from(GRACE.subsec_micros()) },
    };
    // SAFETY: the timer is a valid value and the old one is not asked for; the call is a bare system call.
    unsafe { libc::setitimer(libc::ITIMER_REAL, &raw const timer, std::ptr::null_mut()) == 0 }
}

fn write_event() -> bool {
    let byte = [0_u8];
    // SAFETY: `write` is async-signal-safe and reads one byte of a local; without a pipe it answers `EBADF`.
    unsafe { libc::write(NOTIFIED.load(Ordering::SeqCst), byte.as_ptr().cast(), byte.len()) == 1 }
}

/// Ends the process, whatever its threads do.
pub(crate) fn exit_now(code: libc::c_int) {
    // SAFETY: `_exit` is async-signal-safe and runs nothing of this process any more.
    unsafe { libc::_exit(code) }
}
