//! Why the guest ended, for the file in which Kubernetes looks for it: a pod's status shows what is there, and then no longer the end of
//! the log. So what the guest said last is there, too: a panic's message, or an exception. What the guest wrote there itself stays: the
//! engine adds nothing to it.

use std::fs::File;
use std::io::Write;
use std::path::Path;
use std::sync::{Mutex, MutexGuard, PoisonError};

use crate::files::reader::Reader;
use crate::files::tree::Links;

/// What Kubernetes shows of the file, in bytes.
const BYTES_MAX: usize = 4096;

/// Where the last sentence goes about a guest that did not end by itself. The first thread that has one leaves it.
#[derive(Default)]
pub(crate) struct LastWords(Mutex<Option<File>>);

impl LastWords {
    /// Opens the file at `path`, as long as nothing of the guest has run: afterwards nobody follows a path of it any more.
    pub(crate) fn open(&self, reader: &Reader, path: &str) {
        // Whatever is wrong with the file, the guest runs without it.
        *self.lock() = reader.find(Path::new(path), Links::Keep).and_then(|place| place.open_file_to_append()).ok();
    }

    /// Writes what the guest `said` last and the sentence into the file, if that is empty. Later sentences are not written.
    pub(crate) fn leave(&self, sentence: &str, said: &str) {
        // Held until it is written: a thread that ends the process meanwhile waits here.
        let mut open = self.lock();
        let Some(mut file) = open.take() else { return };
        if file.metadata().is_ok_and(|metadata| metadata.len() == 0) {
            // The same is on stderr. There is nobody left to tell that it is not here.
            let _written = file.write_all(words(sentence, said).as_bytes());
        }
    }

    fn lock(&self) -> MutexGuard<'_, Option<File>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The sentence, after as much of the end of what was said as there is room for.
fn words(sentence: &str, said: &str) -> String {
    let sentence = format!("skiff: {sentence}");
    let sentence = sentence.get(..sentence.floor_char_boundary(BYTES_MAX)).unwrap_or_default();
    let said = said.trim_end();
    // One byte is for the end of the line.
    let begin = said.len().saturating_sub((BYTES_MAX - sentence.len()).saturating_sub(1));
    match said.get(said.ceil_char_boundary(begin)..) {
        Some(said) if !said.is_empty() => format!("{said}\n{sentence}"),
        _ => sentence.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What is in the file, which had `before` in it, after these sentences.
    fn left(before: &str, sentences: &[&str]) -> String {
        let folder = tempfile::tempdir().unwrap();
        std::fs::write(folder.path().join("log"), before).unwrap();
        let words = LastWords::default();
        words.open(&Reader::of("/", folder.path()), "/log");
        sentences.iter().for_each(|sentence| words.leave(sentence, ""));
        std::fs::read_to_string(folder.path().join("log")).unwrap()
    }

    #[test]
    fn the_first_sentence_is_left_in_an_empty_file_only() {
        let long = "x".repeat(10_000);
        for (before, sentences, expected) in [
            ("", &["first", "second"][..], "skiff: first"),
            ("", &[], ""),
            ("the guest's", &["first"], "the guest's"),
            ("", &[&long], &format!("skiff: {}", "x".repeat(BYTES_MAX - 7))),
        ] {
            assert_eq!(left(before, sentences), expected);
        }
    }

    #[test]
    fn what_was_said_last_is_before_the_sentence_as_far_as_there_is_room() {
        let (long, wide) = ("x".repeat(BYTES_MAX), "é".repeat(BYTES_MAX));
        for (sentence, said, expected) in [
            ("the end", "", "skiff: the end".to_owned()),
            ("the end", "\n\n", "skiff: the end".to_owned()),
            ("the end", "one\ntwo\n\n", "one\ntwo\nskiff: the end".to_owned()),
            ("the end", "one", "one\nskiff: the end".to_owned()),
            ("the end", &long, format!("{}\nskiff: the end", "x".repeat(BYTES_MAX - 15))),
            ("the ends", &wide, format!("{}\nskiff: the ends", "é".repeat(BYTES_MAX / 2 - 8))),
            (&long, "one", format!("skiff: {}", "x".repeat(BYTES_MAX - 7))),
        ] {
            assert_eq!(words(sentence, said), expected);
        }
    }

    #[test]
    fn a_sentence_that_is_too_long_is_cut_between_characters() {
        for shift in ["", "x"] {
            let text = left("", &[&format!("{shift}{}", "é".repeat(3000))]);
            assert!(text.ends_with('é') && (BYTES_MAX - 1..=BYTES_MAX).contains(&text.len()), "{}", text.len());
        }
    }

    #[test]
    fn threads_that_end_the_guest_at_once_leave_one_sentence() {
        let folder = tempfile::tempdir().unwrap();
        std::fs::write(folder.path().join("log"), "").unwrap();
        let words = LastWords::default();
        words.open(&Reader::of("/", folder.path()), "/log");
        std::thread::scope(|scope| {
            for _ in 0..8 {
                scope.spawn(|| words.leave("the end", ""));
            }
        });
        assert_eq!(std::fs::read_to_string(folder.path().join("log")).unwrap(), "skiff: the end");
    }

    #[test]
    fn only_a_regular_file_is_opened() {
        let folder = tempfile::tempdir().unwrap();
        nix::unistd::mkfifo(&folder.path().join("fifo"), nix::sys::stat::Mode::S_IRWXU).unwrap();
        std::os::unix::fs::symlink("../../etc/passwd", folder.path().join("out")).unwrap();
        let words = LastWords::default();
        for path in ["/fifo", "/out", "/", "/missing", ""] {
            words.open(&Reader::of("/", folder.path()), path);
            assert!(words.lock().is_none(), "{path}");
        }
        words.leave("nothing happens", "");
    }
}
