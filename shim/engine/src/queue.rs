//! The engine's own messages on their way to stderr: a bounded number of bytes, written by one thread. Nobody waits for
//! room; what finds none is dropped and counted, and the count is told as soon as somebody reads again.

use std::collections::VecDeque;
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

/// How many bytes of messages wait at most.
const BYTES_MAX: usize = 256 << 10;
/// How long one message is at most: a backtrace shows names that the guest's author chose.
const MESSAGE_BYTES_MAX: usize = 32 << 10;

/// Messages that wait for their writer.
#[derive(Default)]
pub(crate) struct Queue {
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Default)]
struct State {
    messages: VecDeque<String>,
    bytes: usize,
    dropped: u64,
    is_writing: bool,
}

impl Queue {
    /// Adds a message, or counts it where there is no room.
    pub(crate) fn push(&self, mut message: String) {
        if message.len() > MESSAGE_BYTES_MAX {
            message.truncate(message.floor_char_boundary(MESSAGE_BYTES_MAX));
            message.push_str(" …\n");
        }
        let mut state = self.lock();
        if state.bytes + message.len() > BYTES_MAX {
            state.dropped += 1;
            return;
        }
        state.bytes += message.len();
        state.messages.push_back(message);
        drop(state);
        self.changed.notify_all();
    }

    /// Waits for the next message. The writer says [`Queue::written`] when it is done with it.
    pub(crate) fn next(&self) -> String {
        let mut state = self.lock();
        loop {
            if let Some(message) = state.messages.pop_front() {
                state.bytes -= message.len();
                state.is_writing = true;
                return message;
            }
            if state.dropped > 0 {
                state.is_writing = true;
                let count = std::mem::take(&mut state.dropped);
                return format!("skiff: {count} messages were dropped because nobody read the log\n");
            }
            state = self.changed.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
    }

    /// Notes that the last message is written.
    pub(crate) fn written(&self) {
        self.lock().is_writing = false;
        self.changed.notify_all();
    }

    /// Waits until there is nothing left to write, at most for `patience`.
    pub(crate) fn wait_empty(&self, patience: Duration) {
        let is_busy = |state: &mut State| state.is_writing || state.dropped > 0 || !state.messages.is_empty();
        drop(self.changed.wait_timeout_while(self.lock(), patience, is_busy));
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_finds_no_room_is_counted_and_told_in_the_end() {
        let queue = Queue::default();
        let message = "x".repeat(MESSAGE_BYTES_MAX);
        for _ in 0..11 {
            queue.push(message.clone());
        }
        for _ in 0..8 {
            assert_eq!(queue.next(), message);
            queue.written();
        }
        assert_eq!(queue.next(), "skiff: 3 messages were dropped because nobody read the log\n");
        queue.wait_empty(Duration::ZERO);
        queue.written();
        queue.push("again".to_owned());
        assert_eq!(queue.next(), "again");
        queue.push(message.repeat(20));
        assert_eq!(queue.next(), format!("{message} …\n"));
    }

    #[test]
    fn the_end_waits_for_the_writer_and_not_for_long() {
        let queue = Queue::default();
        queue.wait_empty(Duration::from_secs(60));
        queue.push("slow".to_owned());
        queue.next();
        queue.wait_empty(Duration::from_millis(20));
        std::thread::scope(|scope| {
            scope.spawn(|| queue.wait_empty(Duration::from_secs(60)));
            queue.written();
        });
    }
}
