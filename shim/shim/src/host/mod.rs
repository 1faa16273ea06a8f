//! The node: processes, files, mounts and cgroups.

pub(crate) mod account;
pub(crate) mod cache;
pub(crate) mod call_socket;
pub(crate) mod compile;
pub(crate) mod console;
pub(crate) mod engine;
pub(crate) mod idmap;
pub(crate) mod kernel_files;
pub(crate) mod layers;
pub(crate) mod logging_program;
pub(crate) mod lookup;
pub(crate) mod memory_limits;
pub(crate) mod module;
pub(crate) mod namespaces;
pub(crate) mod orphans;
pub(crate) mod pid_namespace;
pub(crate) mod process;
pub(crate) mod read_only;
pub(crate) mod reader;
pub(crate) mod record;
pub(crate) mod rootfs;
pub(crate) mod sandbox_files;
pub(crate) mod shim_log;
pub(crate) mod stdio;
pub(crate) mod termination_log;
