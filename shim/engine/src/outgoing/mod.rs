//! Outgoing requests of `wasi:http`: HTTP/1.1 and HTTP/2, with and without TLS, directly or through a proxy. All instances
//! of the container share one client, which keeps connections for the next request. Names are looked up by
//! [`Resolver`](crate::names::resolver::Resolver) only.
//!
//! The pool is hyper-util's. What is bounded here: how many connections there are ([`seats`]), how many requests and what
//! they buffer ([`room`]), and what is read of certificate authorities ([`authorities`]).

mod authorities;
mod body;
pub(crate) mod client;
mod connector;
mod dial;
mod failure;
pub(crate) mod hooks;
mod room;
mod seats;
pub(crate) mod settings;
mod stream;
#[cfg(test)]
mod tests;
