//! Pods through a real containerd's CRI.
