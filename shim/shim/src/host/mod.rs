//! The node: processes, files, mounts, cgroups and the OCI runtime. All system calls of the shim live here.

pub(crate) mod account;
pub(crate) mod bundle;
pub(crate) mod cache;
pub(crate) mod cgroup;
mod checkpoint;
pub(crate) mod compile;
pub(crate) mod console;
pub(crate) mod engine;
pub(crate) mod idmap;
pub(crate) mod kernel_files;
pub(crate) mod log_fifo;
pub(crate) mod logger;
pub(crate) mod metrics;
pub(crate) mod module;
pub(crate) mod mounts;
pub(crate) mod namespaces;
pub(crate) mod orphans;
pub(crate) mod pid_namespace;
pub(crate) mod process;
pub(crate) mod read_only;
pub(crate) mod rootfs;
pub(crate) mod runtime;
pub(crate) mod stdio;
