//! containerd's side: how it starts the shim, what it asks for, and what it hears. Its messages go no further than this folder.

pub(crate) mod cli;

mod bootstrap;
mod cleanup;
mod events;
mod metrics;
mod options;
mod pod_config;
mod publisher;
mod sandbox;
mod server;
mod socket;
mod start;
mod task;
mod wire;
