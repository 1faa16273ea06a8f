//! Whom the shim serves, and where.

/// The one pod that a shim serves, as containerd knows it.
#[derive(Clone, Debug, Default)]
pub(crate) struct Identity {
    /// The namespace in containerd.
    pub(crate) namespace: String,
    /// containerd's gRPC socket.
    pub(crate) containerd: String,
    /// The shim's own socket.
    pub(crate) socket: String,
}
