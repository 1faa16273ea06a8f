//! The one error type of the program: what became of the node, and a sentence.

use std::fmt::{self, Display};
use std::process::ExitCode;

/// What became of the node. It decides the exit code.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    /// Nothing was changed: the node is not understood, or is in a state in which it must not be changed. Exit code 1.
    Refused,
    /// A call failed on the node; nothing was changed, or the next run completes the change. Exit code 2.
    Host,
    /// The change failed and everything was put back. Exit code 3.
    RolledBack,
    /// The change failed, and so did putting it back. Exit code 4.
    Stuck,
}

/// One sentence in lower case, with values in backticks; causes follow after `: `.
#[derive(Clone, Debug)]
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

    /// Whether nothing was changed, so that another try costs nothing.
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

/// Adds what was being done to an error of another crate.
pub(crate) trait Context<T> {
    /// The call failed on the node.
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

/// An error with everything that caused it.
pub(crate) fn causes(error: &dyn std::error::Error) -> String {
    let causes = std::iter::successors(Some(error), |error| error.source());
    causes.map(ToString::to_string).collect::<Vec<_>>().join(": ")
}
