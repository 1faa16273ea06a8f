//! The engine's own messages on their way to stderr: a bounded number of bytes, written by one thread. Nobody waits for
//! room: a message that finds none is dropped and counted, and the count is written as soon as somebody reads again.

use std::collections::VecDeque;
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

/// How many bytes of messages wait at most.
const BYTES_MAX: usize = 256 << 10;
/// How long one message may be: a backtrace shows names that the guest's author chose.
const MESSAGE_BYTES_MAX: usize = 32 << 10;

/// Messages that wait for their writer.
#[derive(Default)]
pub(crate) struct Queue {
    waiting: Mutex<Waiting>,
    changed: Condvar,
}

#[derive(Default)]
struct Waiting {
    messages: VecDeque<String>,
    bytes: usize,
    dropped: u64,
    is_writing: bool,
}

impl Queue {
    /// Adds a message, or counts it if there is no room.
    pub(crate) fn push(&self, mut message: String) {
        if message.len() > MESSAGE_BYTES_MAX {
            message.truncate(message.floor_char_boundary(MESSAGE_BYTES_MAX));
            message.push_str(" …\n");
        }
        let mut waiting = self.lock();
        if waiting.bytes + message.len() > BYTES_MAX {
            waiting.dropped += 1;
            return;
        }
        waiting.bytes += message.len();
        waiting.messages.push_back(message);
        drop(waiting);
        self.changed.notify_all();
    }

    /// Waits for the next message. The writer calls [`Queue::written`] when it is done with it.
    pub(crate) fn next(&self) -> String {
        let mut waiting = self.lock();
        loop {
            if let Some(message) = waiting.messages.pop_front() {
                waiting.bytes -= message.len();
                waiting.is_writing = true;
                return message;
            }
            if waiting.dropped > 0 {
                waiting.is_writing = true;
                let count = std::mem::take(&mut waiting.dropped);
                return format!("skiff: {count} messages were dropped because nobody read the log\n");
            }
            waiting = self.changed.wait(waiting).unwrap_or_else(PoisonError::into_inner);
        }
    }

    /// Notes that the last message is written.
    pub(crate) fn written(&self) {
        self.lock().is_writing = false;
        self.changed.notify_all();
    }

    /// Waits until there is nothing left to write, at most for `patience`.
    pub(crate) fn wait_empty(&self, patience: Duration) {
        let is_busy = |waiting: &mut Waiting| waiting.is_writing || waiting.dropped > 0 || !waiting.messages.is_empty();
        drop(self.changed.wait_timeout_while(self.lock(), patience, is_busy));
    }

    fn lock(&self) -> MutexGuard<'_, Waiting> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
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
