//! The harness of the tests against a real containerd: private instances of it, images made on the spot, containers
//! through its API or through `ctr`, and a look at what is left of them.
//!
//! Everything here fails by panicking, with a sentence: a harness that cannot do its work is a failed test.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::print_stderr,
    reason = "a harness that cannot do its work is a failed test"
)]

mod api;
mod cgroup;
mod cluster;
mod container;
mod containerd;
pub mod cri;
mod events;
mod exec;
mod figures;
mod fuse;
mod http;
mod image;
mod job;
mod left;
mod modules;
mod nested;
mod places;
mod pods;
mod process;
mod spec;
mod streams;
pub mod ttrpc_shim;
mod wait;

pub use api::{Api, Refused};
pub use cgroup::{Cgroup, PodCgroup, hierarchies, is_cgroup_v2};
pub use cluster::{Cluster, Namespace};
pub use container::{Container, Outcome};
pub use containerd::{Containerd, Ctr};
pub use events::{Event, Events};
pub use exec::Exec;
pub use figures::Figures;
pub use fuse::{Silence, Volume};
pub use http::{Answer, Connection, free_port, get, request, serving};
pub use image::{Archive, CONFIG, File, Image, Layer, TAR, sha256};
pub use job::{Described, Job};
pub use left::{assert_nothing_left, left_of};
pub use modules::{saying, slow_module};
pub use places::{guest, guests, programs, tools};
pub use pods::{Lasting, Load, container, deployment, http_pod, service, status_of, wasm_pod};
pub use process::{
    behind_the_wall, children_of, command_line_of, is_alive, is_user_mode_linux, processes_with, tasks_of, zombies_of,
};
pub use streams::{Collected, Streams};
pub use wait::{eventually, random_name, until};
