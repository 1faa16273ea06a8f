//! The log of this program: one line per event, on standard error.

use std::io::{self, Write};

/// Writes one line of the log.
pub(crate) fn say(line: &str) {
    // If standard error is closed, there is nobody to report to.
    drop(writeln!(io::stderr().lock(), "skiff-node: {line}"));
}
