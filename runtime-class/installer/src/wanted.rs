//! What a node should be: the word that the command line, the DaemonSet and `keep` share.

use clap::ValueEnum;

/// The variable of the environment that says what a node should be.
pub(crate) const VARIABLE: &str = "SKIFF_NODE_WANTED";

/// What a node should be.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Wanted {
    /// With skiff, and with its label.
    Installed,
    /// As it was before skiff.
    Removed,
}

impl Wanted {
    /// The value for the command line and the variable.
    pub(crate) const fn word(self) -> &'static str {
        match self {
            Self::Installed => "installed",
            Self::Removed => "removed",
        }
    }
}
