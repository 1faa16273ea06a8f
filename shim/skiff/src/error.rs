//! The one error type of the program: who is at fault, and one sentence.

use std::fmt::{self, Display};
use std::process::ExitCode;

pub(crate) use skiff_protocol::Fault;

/// One sentence, lower-case, with values in backticks and its causes joined with `: `.
#[derive(Debug)]
pub(crate) struct Error {
    fault: Fault,
    sentence: String,
}

/// The result of everything that can fail here.
pub(crate) type Result<T, E = Error> = std::result::Result<T, E>;

impl Error {
    pub(crate) fn guest(sentence: impl Into<String>) -> Self {
        Self { fault: Fault::Guest, sentence: sentence.into() }
    }

    pub(crate) fn host(sentence: impl Into<String>) -> Self {
        Self { fault: Fault::Host, sentence: sentence.into() }
    }

    pub(crate) fn limit(sentence: impl Into<String>) -> Self {
        Self { fault: Fault::Limit, sentence: sentence.into() }
    }

    pub(crate) fn memory(sentence: impl Into<String>) -> Self {
        Self { fault: Fault::Memory, sentence: sentence.into() }
    }

    /// The same sentence with exit code 1, for commands that do not distinguish faults.
    pub(crate) fn plain(self) -> Self {
        Self { fault: Fault::Guest, ..self }
    }

    pub(crate) const fn fault(&self) -> Fault {
        self.fault
    }

    pub(crate) fn exit_code(&self) -> ExitCode {
        ExitCode::from(self.fault.code())
    }
}

impl Display for Error {
    /// One line, whatever the causes contain: control characters become spaces.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&one_line(&self.sentence))
    }
}

/// Adds the fault, and what was being done, to an error of another crate.
pub(crate) trait Context<T> {
    /// The node is at fault.
    fn or_host(self, doing: impl Display) -> Result<T>;
    /// The module or the caller is at fault.
    fn or_guest(self, doing: impl Display) -> Result<T>;
}

impl<T, E: Display> Context<T> for std::result::Result<T, E> {
    fn or_host(self, doing: impl Display) -> Result<T> {
        self.map_err(|error| Error::host(format!("{doing}: {error}")))
    }

    fn or_guest(self, doing: impl Display) -> Result<T> {
        self.map_err(|error| Error::guest(format!("{doing}: {error}")))
    }
}

/// `error` and its causes, joined with `: `.
pub(crate) fn with_causes(error: &dyn std::error::Error) -> String {
    let mut sentence = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        let text = error.to_string();
        if !sentence.ends_with(&text) {
            sentence.push_str(": ");
            sentence.push_str(&text);
        }
        cause = error.source();
    }
    sentence
}

/// `text` with runs of white space and control characters as single spaces.
pub(crate) fn one_line(text: &str) -> String {
    let words = text.split(|c: char| c.is_whitespace() || c.is_control()).filter(|word| !word.is_empty());
    words.collect::<Vec<_>>().join(" ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_error_is_one_line_whatever_its_causes_say() {
        let error = Error::guest("`a\nb` is\r\n corrupt:\t\u{1b}[31m red");
        assert_eq!(error.to_string(), "`a b` is corrupt: [31m red");
    }

    #[test]
    fn causes_are_joined_and_not_repeated() {
        let error = std::io::Error::other(std::io::Error::other("inner"));
        assert_eq!(with_causes(&error), "inner");
    }
}
