//! The standard streams of the container, as the guest and the engine itself use them: the container's own descriptors,
//! without a buffer in between.

mod complaint;
pub(crate) mod output;
pub(crate) mod poll;
mod rate;
pub(crate) mod server_output;
pub(crate) mod stdin;
pub(crate) mod streams;
pub(crate) mod tail;
pub(crate) mod target;
pub(crate) mod terminal_input;
pub(crate) mod write;
