//! The end of what an instance has written to stderr: what its language says about its end comes there before the end.

use std::sync::{Mutex, PoisonError};

/// How much is kept, in bytes: as much as Kubernetes shows of a log.
const BYTES_MAX: usize = 2 << 10;

/// What was written last.
#[derive(Debug, Default)]
pub(crate) struct Tail(Mutex<Vec<u8>>);

impl Tail {
    /// Takes note of the next bytes.
    pub(super) fn hear(&self, bytes: &[u8]) {
        let bytes = bytes.get(bytes.len().saturating_sub(BYTES_MAX)..).unwrap_or(bytes);
        let mut kept = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let over = (kept.len() + bytes.len()).saturating_sub(BYTES_MAX);
        kept.drain(..over);
        kept.extend_from_slice(bytes);
    }

    /// The last bytes. The first line of them may lack its beginning.
    pub(crate) fn text(&self) -> String {
        String::from_utf8_lossy(&self.0.lock().unwrap_or_else(PoisonError::into_inner)).into_owned()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_bytes_are_kept_however_they_came() {
        let (full, long) = ("x".repeat(BYTES_MAX), "y".repeat(3 * BYTES_MAX));
        for (pieces, expected) in [
            (&[][..], String::new()),
            (&["one\n", "two"], "one\ntwo".to_owned()),
            (&[&full], full.clone()),
            (&[&full, "é"], format!("{}é", "x".repeat(BYTES_MAX - 2))),
            (&["one", &long], "y".repeat(BYTES_MAX)),
            (&[&long, "\n", ""], format!("{}\n", "y".repeat(BYTES_MAX - 1))),
        ] {
            let tail = Tail::default();
            pieces.iter().for_each(|piece| tail.hear(piece.as_bytes()));
            assert_eq!(tail.text(), expected);
        }
    }
}
