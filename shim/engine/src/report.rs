//! What the engine says on the container's stderr, and the exit code that goes with it.

use std::fmt::Write as _;
use std::io;
use std::sync::OnceLock;
use std::thread::Builder;
use std::time::Duration;

use skiff_protocol::{EXIT_TRAP, exit_code_of_proc_exit};
use wasmtime::{Error, Result, Trap, WasmBacktrace};
use wasmtime_wasi::I32Exit;

use crate::queue::Queue;
use crate::stdio;

/// The messages of a server; a command has none.
static QUEUE: OnceLock<Queue> = OnceLock::new();
const STACK_BYTES: usize = 64 << 10;
/// How long the last line waits for a slow reader, in milliseconds.
const LAST_WAIT: u8 = 100;

/// The exit code of a guest that ended with `result`; a trap is told on stderr.
pub(crate) fn exit_code(module: &str, result: Result<i32>) -> i32 {
    match result {
        Ok(code) => exit_code_of_proc_exit(code),
        Err(error) => match error.downcast_ref::<I32Exit>() {
            Some(exit) => exit_code_of_proc_exit(exit.0),
            None => {
                trap(module, &error);
                EXIT_TRAP
            }
        },
    }
}

/// Whether the guest's own code ended with `error`, and not the host that prepared it.
pub(crate) fn is_of_guest(error: &Error) -> bool {
    error.is::<Trap>() || error.is::<I32Exit>() || error.is::<WasmBacktrace>()
}

/// Tells a trap on stderr: the message and the wasm backtrace.
pub(crate) fn trap(module: &str, error: &Error) {
    line(&trap_text(module, error));
}

/// Writes one message to stderr: at once and whole, or in a server, whose threads do not wait for a reader, in its turn.
pub(crate) fn line(text: &str) {
    let message = format!("skiff: {text}\n");
    match QUEUE.get() {
        Some(queue) => queue.push(message),
        // There is nobody left to tell when stderr itself fails.
        None => drop(stdio::say(message.as_bytes())),
    }
}

/// From now on a thread of its own writes the messages.
///
/// # Errors
/// When there is no room for a thread.
pub(crate) fn queue() -> io::Result<()> {
    let queue = QUEUE.get_or_init(Queue::default);
    Builder::new().name("stderr".to_owned()).stack_size(STACK_BYTES).spawn(move || {
        loop {
            let _told = stdio::say(queue.next().as_bytes());
            queue.written();
        }
    })?;
    Ok(())
}

/// Waits until all messages are written, but not for long.
pub(crate) fn flush() {
    if let Some(queue) = QUEUE.get() {
        queue.wait_empty(Duration::from_millis(LAST_WAIT.into()));
    }
}

/// The same for a process that ends whether or not somebody reads.
pub(crate) fn last_line(text: &str) {
    if stdio::is_writable(&std::io::stderr(), LAST_WAIT) {
        line(text);
    }
}

/// The error and its causes as one line, without the backtrace.
pub(crate) fn sentence(error: &Error) -> String {
    let mut parts: Vec<String> = Vec::new();
    for cause in error.chain() {
        let text = cause.to_string();
        if !text.starts_with(BACKTRACE_HEAD) && parts.last() != Some(&text) {
            parts.push(text);
        }
    }
    parts.join(": ").split_whitespace().collect::<Vec<_>>().join(" ")
}

/// How wasmtime's backtraces begin.
const BACKTRACE_HEAD: &str = "error while executing at wasm backtrace:";

fn trap_text(module: &str, error: &Error) -> String {
    let message = error.root_cause().to_string();
    let mut text = format!("{module} trapped: {}", message.strip_prefix("wasm trap: ").unwrap_or(&message));
    if let Some(backtrace) = error.downcast_ref::<WasmBacktrace>() {
        let frames = backtrace.to_string();
        // Writing to a string cannot fail.
        let _written = write!(text, "\n{}", frames.strip_prefix(BACKTRACE_HEAD).unwrap_or(&frames).trim_matches('\n'));
    }
    text
}

#[cfg(test)]
mod tests {
    use wasmtime::error::Context as _;

    use super::*;

    #[test]
    fn exit_codes_are_taken_modulo_256() {
        for (code, expected) in [(0, 0), (7, 7), (126, 126), (300, 44), (-1, 255)] {
            assert_eq!(exit_code("x", Ok(code)), expected);
            assert_eq!(exit_code("x", Err(I32Exit(code).into())), expected);
        }
    }

    #[test]
    fn a_trap_ends_with_134() {
        assert_eq!(exit_code("x", Err(Trap::StackOverflow.into())), 134);
        let text = trap_text("/x.wasm", &Error::from(Trap::UnreachableCodeReached));
        assert_eq!(text, "/x.wasm trapped: wasm `unreachable` instruction executed");
    }

    #[test]
    fn causes_become_one_sentence() {
        let error = Err::<(), _>(Error::msg("no\n  such thing")).context("cannot load").unwrap_err();
        assert_eq!(sentence(&error), "cannot load: no such thing");
    }
}
