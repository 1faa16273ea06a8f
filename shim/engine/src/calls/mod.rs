//! Questions to the engine of a guest that runs, over the call socket: whoever asks ([`ask`]) is the engine process of an exec, and
//! whoever answers ([`server`]) the engine of the guest.

pub(crate) mod ask;
mod expression;
pub(crate) mod functions;
mod instance;
mod invoke;
mod job;
mod queue;
pub(crate) mod reactor;
mod request;
mod result;
pub(crate) mod server;
pub(crate) mod service;
mod text;
mod weight;
