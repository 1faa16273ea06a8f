//! The parts of Linux that skiff's programs use beyond the standard library: every system call that needs unsafe code is
//! here, behind a safe function. This crate decides nothing and knows neither containerd nor wasmtime.
//!
//! The only unsafe code elsewhere loads compiled code.

pub mod bpf;
pub mod cgroup;
pub mod descriptors;
pub mod jail;
pub mod keyring;
pub mod memory;
pub mod mount_ids;
pub mod mounts;
pub mod names;
pub mod namespaces;
pub mod network;
pub mod pidfd;
pub mod probe;
pub mod process;
pub mod seccomp;
pub mod signals;
pub mod standin;
pub mod terminal;
pub mod termination;
pub mod trust;
