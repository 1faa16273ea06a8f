//! Kubernetes, as far as the installer asks its API: the label of a node, and the DaemonSet that keeps all nodes.

pub(crate) mod api;
pub(crate) mod daemon_set;
pub(crate) mod label;
