//! What the host does for a guest: one file for each family of interfaces, with what a guest is granted of it and what
//! defines each of its interfaces in a linker. Their names are in [`skiff_protocol::interfaces`].
//!
//! The interfaces are added one by one, so that the look-ups of wasmtime-wasi itself, which are glibc's, are not even part
//! of the program.

pub(crate) mod add;
pub(crate) mod cli;
pub(crate) mod clocks;
pub(crate) mod filesystem;
pub(crate) mod http;
pub(crate) mod io;
pub(crate) mod names;
pub(crate) mod preview;
pub(crate) mod random;
pub(crate) mod sockets;
mod waiting;
