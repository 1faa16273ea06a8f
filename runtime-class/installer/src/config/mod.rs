//! containerd's configuration as values: what a node has, what it should have, and the edits that lead from one to the other.
//!
//! Nothing here does I/O. The verbs read the files, pass their texts in, and write what comes out.

pub(crate) mod dump;
pub(crate) mod edit;
pub(crate) mod entry;
pub(crate) mod file;
pub(crate) mod layout;
pub(crate) mod plan;
pub(crate) mod root;
pub(crate) mod version;
