//! Why a name has no addresses.

use std::fmt;

/// Why a name has no addresses.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Failure {
    /// It is not a host name.
    Invalid,
    /// There is no such name, or it has no addresses.
    Unknown,
    /// No server responded in time.
    Silence,
    /// The servers failed to resolve it; they may succeed later.
    Temporary,
    /// The servers refused the query.
    Permanent,
}

impl fmt::Display for Failure {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(match self {
            Self::Invalid => "not a host name",
            Self::Unknown => "no such name",
            Self::Silence => "no name server responds",
            Self::Temporary => "the name servers failed to resolve it",
            Self::Permanent => "the name servers refused the query",
        })
    }
}
