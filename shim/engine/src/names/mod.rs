//! Names of hosts: the container's `/etc/hosts`, then the servers of its `/etc/resolv.conf`, and nothing else.
//!
//! Invariant: glibc's resolver is not part of the engine. It would load libraries that a file of the image names, and hold
//! a thread for each question. Everything here is asynchronous: a server that does not answer holds no thread.

mod dns;
pub(crate) mod failure;
mod file;
mod hosts;
mod resolv_conf;
pub(crate) mod resolver;
