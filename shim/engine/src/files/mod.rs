//! The guest's files: each directory of its plan, opened once and without the kernel's file systems.

pub(crate) mod directories;
mod mounts;
mod opened;
