//! What a command of the looking glass works with in the exec's own process: the guest's view of files, where output goes, and
//! whether something went wrong. One path that cannot be shown does not keep others from being shown.

use std::io::{self, BufWriter, ErrorKind, Write};
use std::path::Path;

use skiff_protocol::exit_code_of_signal;

use super::text::{shown, why};
use crate::files::reader::{Links, Place};
use crate::shared::Shared;

/// How much output is collected before it is written, in bytes.
const BUFFER_BYTES: usize = 64 << 10;
/// The exit code of a command that could not do all it was asked for.
const EXIT_FAILED: u8 = 1;

/// What a command works with.
pub(super) struct Scene<'a> {
    pub(super) shared: &'a Shared,
    pub(super) output: BufWriter<Box<dyn Write>>,
    has_failed: bool,
}

impl<'a> Scene<'a> {
    /// A scene whose output goes to `stdout`.
    pub(super) fn new(shared: &'a Shared, stdout: Box<dyn Write>) -> Self {
        Self { shared, output: BufWriter::with_capacity(BUFFER_BYTES, stdout), has_failed: false }
    }

    /// Finds what the guest has at a path, which is absolute or relative to the container's working directory. What is not there
    /// is told.
    pub(super) fn find(&mut self, path: &str, links: Links) -> Option<Place> {
        let absolute = Path::new(&self.shared.plan.cwd).join(path);
        self.or_complain(path, self.shared.reader().find(&absolute, links))
    }

    /// What was done with `path`, unless it failed: that is told.
    pub(super) fn or_complain<T, Error: Into<io::Error>>(&mut self, path: &str, done: Result<T, Error>) -> Option<T> {
        match done {
            Ok(value) => Some(value),
            Err(error) => {
                self.complain(&format!("`{}`: {}", shown(path.as_bytes()), why(&error.into())));
                None
            }
        }
    }

    /// Says that something could not be done. What was written before comes first.
    pub(super) fn complain(&mut self, sentence: &str) {
        self.has_failed = true;
        self.note(sentence);
    }

    /// Says something on stderr.
    pub(super) fn note(&mut self, sentence: &str) {
        // If nobody reads, the next write to stdout ends the command.
        let _written = self.output.flush();
        self.shared.reporter.line(sentence);
    }

    /// The stream to stdout, for a command that somebody else does.
    pub(super) fn into_stdout(self) -> Box<dyn Write> {
        Box::new(self.output)
    }

    /// The exit code of a command that has come to its end, or could not write any more. Nobody reads a broken pipe: that ends it
    /// quietly, like a process that SIGPIPE ends.
    pub(super) fn end(mut self, done: io::Result<()>) -> u8 {
        match done.and_then(|()| self.output.flush()) {
            Ok(()) => {
                if self.has_failed {
                    EXIT_FAILED
                } else {
                    0
                }
            }
            Err(error) if error.kind() == ErrorKind::BrokenPipe => {
                u8::try_from(exit_code_of_signal(libc::SIGPIPE)).unwrap_or(EXIT_FAILED)
            }
            Err(error) => {
                self.shared.reporter.line(&format!("cannot write to stdout: {}", why(&error)));
                EXIT_FAILED
            }
        }
    }
}
