//! What runtimes write to stderr before they end a program because it ran out of memory.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, PoisonError};

/// Parts of their messages, in lower case: of Go and many others, CPython and Java (`OutOfMemoryError`), CRuby, Rust, C, C++, and
/// Lua.
const WORDS: [&[u8]; 7] = [
    b"out of memory",
    b"memoryerror",
    b"failed to allocate memory",
    b"memory allocation of",
    b"cannot allocate memory",
    b"bad_alloc",
    b"not enough memory",
];
/// A byte less than the longest of them.
const KEPT_BYTES: usize = 24;
/// How many bytes are looked at together.
const PIECE_BYTES: usize = 4096;

/// Whether one of them was written, in one piece or in several.
#[derive(Default)]
pub(super) struct Complaint {
    is_heard: AtomicBool,
    /// The end of what was written, where the rest of a word may follow.
    end: Mutex<Vec<u8>>,
}

impl Complaint {
    /// Takes note of the next bytes.
    pub(super) fn hear(&self, bytes: &[u8]) {
        if self.is_heard() {
            return;
        }
        let mut end = self.end.lock().unwrap_or_else(PoisonError::into_inner);
        // A guest may write all of its memory at once.
        for piece in bytes.chunks(PIECE_BYTES) {
            end.extend(piece.iter().map(u8::to_ascii_lowercase));
            if WORDS.iter().any(|word| end.windows(word.len()).any(|part| part == *word)) {
                self.is_heard.store(true, Ordering::Relaxed);
            }
            let done = end.len().saturating_sub(KEPT_BYTES);
            end.drain(..done);
        }
    }

    /// Whether one of them was written.
    pub(super) fn is_heard(&self) -> bool {
        self.is_heard.load(Ordering::Relaxed)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn is_heard(pieces: &[&str]) -> bool {
        let complaint = Complaint::default();
        pieces.iter().for_each(|piece| complaint.hear(piece.as_bytes()));
        complaint.is_heard()
    }

    #[test]
    fn the_words_of_runtimes_are_heard() {
        for said in [
            "fatal error: runtime: out of memory",
            "Traceback (most recent call last):\n  File \"a.py\", line 1\nMemoryError\n",
            "[FATAL] failed to allocate memory",
            "memory allocation of 1048576 bytes failed",
            "fork: Cannot allocate memory",
            "terminate called after throwing an instance of 'std::bad_alloc'",
            "lua: not enough memory",
            "Out of memory!",
        ] {
            assert!(is_heard(&[said]), "{said}");
            let (first, second) = said.split_at(said.len() / 2);
            assert!(is_heard(&[first, second]), "{said} in two pieces");
            let letters: Vec<String> = said.chars().map(String::from).collect();
            assert!(is_heard(&letters.iter().map(String::as_str).collect::<Vec<_>>()), "{said} by letters");
        }
        assert!(WORDS.iter().all(|word| word.len() <= KEPT_BYTES + 1));
    }

    #[test]
    fn other_words_are_not() {
        assert!(!is_heard(&["no memory for me\n", "out of mem", "\nory\n", "outofmemory"]));
        assert!(!is_heard(&[&"x".repeat(1 << 20), ""]));
    }
}
