//! What the commands for people print. A reader that has seen enough, such as `head`, is not an error.

use std::fmt::{Display, Write as _};
use std::io::{self, ErrorKind, Write};

use serde::Serialize;

use crate::error::{Context, Result};

/// Prints `text` and a new line.
///
/// # Errors
/// When standard output cannot be written.
pub(crate) fn print(text: impl Display) -> Result<()> {
    let mut out = io::stdout().lock();
    match writeln!(out, "{text}").and_then(|()| out.flush()) {
        Err(error) if error.kind() == ErrorKind::BrokenPipe => Ok(()),
        written => written.or_host("cannot write to standard output"),
    }
}

/// Prints `report` as one line of JSON.
///
/// # Errors
/// Those of [`print`].
pub(crate) fn print_json(report: &(impl Serialize + ?Sized)) -> Result<()> {
    print(serde_json::to_string(report).or_host("cannot write JSON")?)
}

/// A stranger's `text` for a terminal: what it could confuse the terminal or its reader with is escaped, and what follows its
/// first `characters` characters is left out.
pub(crate) fn shown(text: &str, characters: usize) -> String {
    let mut shown = String::new();
    for c in text.chars().take(characters) {
        match c {
            '"' | '\'' => shown.push(c),
            // Writing to a string cannot fail.
            _ => drop(write!(shown, "{}", c.escape_debug())),
        }
    }
    if text.chars().nth(characters).is_some() {
        shown.push('…');
    }
    shown
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_stranger_wrote_does_not_reach_the_terminal_as_it_is() {
        for (text, expected) in [
            ("plain name", "plain name"),
            ("it's \"quoted\"", "it's \"quoted\""),
            ("a\u{1b}[2Jb\n\tc", "a\\u{1b}[2Jb\\n\\tc"),
            ("\u{202e}gnp.exe", "\\u{202e}gnp.exe"),
            ("Grüße", "Grüße"),
            ("12345678901", "1234567890…"),
        ] {
            assert_eq!(shown(text, if text.starts_with("12") { 10 } else { 80 }), expected);
        }
    }
}
