//! Why a name has no addresses.

use std::fmt;

/// Why a name has no addresses.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Failure {
    /// It is not the name of a host.
    Invalid,
    /// There is no such name, or it has no addresses.
    Unknown,
    /// No server answered in time.
    Silence,
    /// The servers cannot answer now.
    Temporary,
    /// The servers refuse to answer.
    Permanent,
}

impl fmt::Display for Failure {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(match self {
            Self::Invalid => "not a name of a host",
            Self::Unknown => "no such name",
            Self::Silence => "no name server answers",
            Self::Temporary => "the name servers cannot answer",
            Self::Permanent => "the name servers refuse to answer",
        })
    }
}
