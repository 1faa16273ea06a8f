//! HTTP servers: components of `wasi:http`, 0.2 and 0.3, behind HTTP/1.1 and HTTP/2 without TLS.
//!
//! A server's life: bind and try one instance, say Ready, accept until a signal, finish what is under way, end with 0.

mod activity;
mod address;
mod alone;
mod answer;
mod attendance;
mod bodies;
mod buffers;
mod client;
mod connection;
mod desk;
mod host;
mod instances;
mod limit;
mod places;
pub(crate) mod pool;
mod reused;
pub(crate) mod server;
mod size;
mod stream;
mod tracked;
mod turns;
mod worker;
