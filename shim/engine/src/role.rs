//! The role of an instance: it decides what the instance gets of stdin, and how its output behaves.

/// What an instance is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Role {
    /// A core module that runs once. A broken pipe is an error for it (`EPIPE`).
    Module,
    /// A component that runs once. A broken pipe is a closed stream for it.
    Component,
    /// One of the instances of a server. They have no stdin.
    Server,
}

impl Role {
    /// Whether its calls may block their thread. One guest alone may block the only thread; many must not block each other.
    pub(crate) fn may_block(self) -> bool {
        match self {
            Self::Module | Self::Component => true,
            Self::Server => false,
        }
    }
}
