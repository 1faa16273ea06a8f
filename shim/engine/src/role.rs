//! The role of an instance: it decides what the instance gets of stdin, and how its output behaves.

/// What an instance is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Role {
    /// A core module that runs once. A broken pipe is an error for it (`EPIPE`).
    Module,
    /// A component that runs once. A broken pipe is a closed stream for it.
    Component,
    /// One of the instances of a server, or one that is made for a call. They have no stdin.
    Server,
    /// The one instance of a service, whose functions are called.
    Service,
}

impl Role {
    /// Whether its calls may block their thread. One guest alone may block the only thread; many must not block each other, and what
    /// blocks in a call with a time limit could not be ended.
    pub(crate) fn may_block(self) -> bool {
        match self {
            Self::Module | Self::Component => true,
            Self::Server | Self::Service => false,
        }
    }
}
