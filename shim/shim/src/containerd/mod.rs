//! containerd's side: how it starts the shim, what it asks, and what it is told.

pub(crate) mod bootstrap;
pub(crate) mod command;
pub(crate) mod layers;
pub(crate) mod publisher;
pub(crate) mod service;
pub(crate) mod time;
