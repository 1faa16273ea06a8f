//! The one error type of the program: what became of the node, and one sentence.

use std::fmt::{self, Display};
use std::process::ExitCode;

/// What became of the node; it decides the exit code.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    /// Nothing was changed: the node is not understood, or not in a state to be changed. Exit code 1.
    Refused,
    /// The node failed a call; nothing was changed, or the next run completes it. Exit code 2.
    Host,
    /// The change did not work and everything was put back. Exit code 3.
    RolledBack,
    /// The change did not work, and neither did putting it back. Exit code 4.
    Stuck,
}

/// One sentence, lower-case, with values in backticks and its causes joined with `: `.
#[derive(Debug)]
pub(crate) struct Error {
    kind: Kind,
    sentence: String,
}

/// The result of everything that can fail here.
pub(crate) type Result<T, E = Error> = std::result::Result<T, E>;

impl Error {
    pub(crate) fn new(kind: Kind, sentence: impl Into<String>) -> Self {
        Self { kind, sentence: sentence.into() }
    }

    pub(crate) fn refused(sentence: impl Into<String>) -> Self {
        Self::new(Kind::Refused, sentence)
    }

    pub(crate) fn host(sentence: impl Into<String>) -> Self {
        Self::new(Kind::Host, sentence)
    }

    /// Whether nothing was changed, so that another try is for free.
    pub(crate) fn is_refusal(&self) -> bool {
        self.kind == Kind::Refused
    }

    pub(crate) fn exit_code(&self) -> ExitCode {
        ExitCode::from(match self.kind {
            Kind::Refused => 1,
            Kind::Host => 2,
            Kind::RolledBack => 3,
            Kind::Stuck => 4,
        })
    }
}

impl Display for Error {
    /// One line, whatever the causes contain.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let words = self.sentence.split(|c: char| c.is_whitespace() || c.is_control()).filter(|word| !word.is_empty());
        f.write_str(&words.collect::<Vec<_>>().join(" "))
    }
}

/// Says what was being done when an error of another crate came.
pub(crate) trait Context<T> {
    /// The node is at fault.
    fn or_host(self, doing: impl Display) -> Result<T>;
    /// The node is not understood.
    fn or_refused(self, doing: impl Display) -> Result<T>;
}

impl<T, E: Display> Context<T> for std::result::Result<T, E> {
    fn or_host(self, doing: impl Display) -> Result<T> {
        self.map_err(|error| Error::host(format!("{doing}: {error}")))
    }

    fn or_refused(self, doing: impl Display) -> Result<T> {
        self.map_err(|error| Error::refused(format!("{doing}: {error}")))
    }
}
