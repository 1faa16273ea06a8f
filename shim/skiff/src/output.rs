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

/// Prints `rows` below `head`, each column as wide as its widest cell.
///
/// # Errors
/// Those of [`print`].
pub(crate) fn print_table<const COLUMNS: usize>(head: &[&str; COLUMNS], rows: &[[String; COLUMNS]]) -> Result<()> {
    print(table(head, rows))
}

fn table<const COLUMNS: usize>(head: &[&str; COLUMNS], rows: &[[String; COLUMNS]]) -> String {
    let head = head.map(str::to_owned);
    let lines = || std::iter::once(&head).chain(rows);
    let width = |column: usize| lines().map(|cells| cells[column].chars().count()).max().unwrap_or(0);
    let widths: [usize; COLUMNS] = std::array::from_fn(width);
    let line = |cells: &[String; COLUMNS]| {
        let cells = cells.iter().zip(widths).map(|(cell, width)| format!("{cell:<width$}"));
        cells.collect::<Vec<_>>().join("  ").trim_end().to_owned()
    };
    lines().map(line).collect::<Vec<_>>().join("\n")
}

/// A size in mebibytes, with one digit after the point.
pub(crate) fn mebibytes(bytes: u64) -> String {
    let tenths = u128::from(bytes) * 10 / (1 << 20);
    format!("{}.{}Mi", tenths / 10, tenths % 10)
}

/// A time in its largest whole unit.
pub(crate) fn period(seconds: u64) -> String {
    match seconds {
        0..60 => format!("{seconds}s"),
        60..3600 => format!("{}m", seconds / 60),
        3600..86400 => format!("{}h", seconds / 3600),
        _ => format!("{}d", seconds / 86400),
    }
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

    #[test]
    fn a_table_is_as_wide_as_its_widest_cells() {
        let rows = [["long name".into(), mebibytes(1_600_000), period(59)], ["é".into(), mebibytes(0), period(90_000)]];
        assert_eq!(table(&["A", "B", "C"], &rows), "A          B      C\nlong name  1.5Mi  59s\né          0.0Mi  1d");
        assert_eq!(
            (period(3599), period(86_399), mebibytes(u64::MAX)),
            ("59m".into(), "23h".into(), "17592186044415.9Mi".into())
        );
    }
}
