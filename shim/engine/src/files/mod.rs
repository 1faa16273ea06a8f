//! The guest's files: its directories, opened once and without the kernel's file systems, and what is done with paths
//! below them.

pub(crate) mod directories;
pub(crate) mod listing;
mod mounts;
pub(crate) mod new_file;
mod opened;
pub(crate) mod reader;
pub(crate) mod tree;
