//! Signals that end the process. Their handlers may run at any moment, so they only use atomics and make system calls.

use std::io;
use std::os::fd::AsRawFd;
use std::sync::OnceLock;

use nix::sys::signal::{SaFlags, SigAction, SigHandler, SigSet, Signal, sigaction};

use crate::process::exit_now;

/// How [`end_on`] ends the process.
#[derive(Clone, Copy, Debug)]
struct Ending {
    code: i32,
    sentence: &'static str,
}

static ENDING: OnceLock<Ending> = OnceLock::new();

/// Unblocks `signals`. When one of them arrives, the process writes `sentence` to stderr and exits with `code`. The first
/// call in a process decides the code and the sentence.
///
/// # Errors
/// Those of `sigaction(2)`: a signal that cannot be handled.
pub fn end_on(signals: &[Signal], code: i32, sentence: &'static str) -> io::Result<()> {
    let _decided = ENDING.set(Ending { code, sentence });
    let action = SigAction::new(SigHandler::Handler(end), SaFlags::SA_ONSTACK, SigSet::empty());
    for signal in signals {
        // SAFETY: the handler reads a value that was set before, makes two system calls, and does not return.
        unsafe { sigaction(*signal, &action) }?;
    }
    Ok(SigSet::from_iter(signals.iter().copied()).thread_unblock()?)
}

extern "C" fn end(_: libc::c_int) {
    let Some(Ending { code, sentence }) = ENDING.get() else { return };
    if !sentence.is_empty() {
        let stderr = rustix::stdio::stderr().as_raw_fd();
        // SAFETY: `write` is async-signal-safe, and the text lives as long as the program.
        unsafe { libc::write(stderr, sentence.as_ptr().cast(), sentence.len()) };
    }
    exit_now(*code)
}

/// Removes the handlers of `signals`, such as those of Rust's runtime.
///
/// # Errors
/// Those of `sigaction(2)`.
pub fn reset(signals: &[Signal]) -> io::Result<()> {
    let action = SigAction::new(SigHandler::SigDfl, SaFlags::empty(), SigSet::empty());
    for signal in signals {
        // SAFETY: the default action runs no code of this program.
        unsafe { sigaction(*signal, &action) }?;
    }
    Ok(())
}
