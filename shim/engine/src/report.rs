//! What the engine says on the container's stderr, and the exit code that goes with it.

use std::io;
use std::sync::{Arc, OnceLock};
use std::thread::Builder;
use std::time::Duration;

use skiff_protocol::{EXIT_TRAP, exit_code_of_proc_exit};
use wasmtime::Result;
use wasmtime_wasi::I32Exit;

use crate::lastwords::LastWords;
use crate::queue::Queue;
use crate::stdio::poll::is_writable;
use crate::stdio::write::say;

const STACK_BYTES: usize = 64 << 10;
/// How long the last line waits for a slow reader, in milliseconds.
const LAST_WAIT: u8 = 100;

/// Writes the engine's messages to stderr.
#[derive(Default)]
pub(crate) struct Reporter {
    /// The messages of a server, whose threads do not wait for a reader. A command has none.
    queue: OnceLock<Arc<Queue>>,
    last_words: LastWords,
}

impl Reporter {
    /// Writes one message: at once and whole, or in its turn if there is a queue.
    pub(crate) fn line(&self, text: &str) {
        let message = format!("skiff: {text}\n");
        match self.queue.get() {
            Some(queue) => queue.push(message),
            // There is nobody left to tell when stderr itself fails.
            None => drop(say(message.as_bytes())),
        }
    }

    /// Where the last sentence goes besides stderr.
    pub(crate) fn last_words(&self) -> &LastWords {
        &self.last_words
    }

    /// Says why the guest ends, which `said` something before.
    pub(crate) fn end(&self, sentence: &str, said: &str) {
        // First where nobody has to read it: writing to stderr may take as long as its reader likes.
        self.last_words.leave(sentence, said);
        self.line(sentence);
    }

    /// From now on a thread of its own writes the messages.
    ///
    /// # Errors
    /// If there is no room for a thread.
    pub(crate) fn write_by_queue(&self) -> io::Result<()> {
        let queue: Arc<Queue> = Arc::default();
        let writers = Arc::clone(&queue);
        Builder::new().name("stderr".to_owned()).stack_size(STACK_BYTES).spawn(move || {
            loop {
                let _said = say(writers.next().as_bytes());
                writers.written();
            }
        })?;
        self.queue.get_or_init(|| queue);
        Ok(())
    }

    /// Waits until all messages are written, but not for long.
    pub(crate) fn flush(&self) {
        if let Some(queue) = self.queue.get() {
            queue.wait_empty(Duration::from_millis(LAST_WAIT.into()));
        }
    }

    /// Writes a message that must not hold anything up, such as the last one of a process: nobody may read it.
    pub(crate) fn last_line(&self, text: &str) {
        if is_writable(&std::io::stderr(), LAST_WAIT) {
            self.line(text);
        }
    }
}

/// The exit code of a guest that ended with `result`.
pub(crate) fn exit_code(result: &Result<i32>) -> i32 {
    match result {
        Ok(code) => exit_code_of_proc_exit(*code),
        Err(error) => error.downcast_ref::<I32Exit>().map_or(EXIT_TRAP, |exit| exit_code_of_proc_exit(exit.0)),
    }
}

#[cfg(test)]
mod tests {
    use wasmtime::Trap;

    use super::*;

    #[test]
    fn exit_codes_are_taken_modulo_256() {
        for (code, expected) in [(0, 0), (7, 7), (126, 126), (300, 44), (-1, 255)] {
            assert_eq!(exit_code(&Ok(code)), expected);
            assert_eq!(exit_code(&Err(I32Exit(code).into())), expected);
        }
    }

    #[test]
    fn a_trap_ends_with_134() {
        assert_eq!(exit_code(&Err(Trap::StackOverflow.into())), 134);
    }
}
