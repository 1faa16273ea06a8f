//! The harness of the suites: a private containerd, a fake one, pods through the CRI, and a Kubernetes; images and containers for
//! them, and checks that nothing is left of those.
//!
//! Everything here fails by panicking with a sentence: a harness that cannot do its work is a failed test.

mod api;
mod apparmor;
mod cgroup;
mod cluster;
mod container;
mod containerd;
pub mod cri;
mod disk;
mod encoding;
mod event;
mod events;
mod exec;
pub mod fake_containerd;
mod figures;
mod fuse;
mod http;
mod image;
mod job;
mod left;
mod machine;
mod modules;
mod names;
mod nested;
pub mod page;
mod places;
mod pods;
mod process;
mod spec;
mod streams;
mod wait;

pub use api::{Api, Refused};
pub use apparmor::{APPARMOR_PROFILE, has_apparmor, load_apparmor_profile};
pub use cgroup::{Cgroup, PodCgroup, hierarchies, is_cgroup_v2};
pub use cluster::{Cluster, Namespace};
pub use container::{Container, Outcome};
pub use containerd::{Containerd, Ctr};
pub use disk::Disk;
pub use encoding::field;
pub use event::Event;
pub use events::Events;
pub use exec::Exec;
pub use figures::Figures;
pub use fuse::{Silence, Volume};
pub use http::{Answer, Connection, free_port, get, request, serving};
pub use image::{Archive, CONFIG, File, Image, Layer, TAR, sha256};
pub use job::{Described, Job};
pub use left::{TERMINALS, assert_nothing_left, left_of};
pub use machine::files_below;
pub use modules::{saying, slow_module};
pub use names::random_name;
pub use places::{SHIM, guest, guests, programs, tools};
pub use pods::{Lasting, Load, container, deployment, http_pod, service, status_of, wasm_pod};
pub use process::{
    behind_the_wall, children_of, command_line_of, compilers_of, is_alive, is_user_mode_linux, processes_touching,
    processes_with, signal, status_field, tasks_of, zombies_of,
};
pub use spec::{capabilities, default_spec};
pub use streams::{Collected, Streams};
pub use wait::{PATIENCE, eventually, holds, holds_within, mostly, until, until_every};
