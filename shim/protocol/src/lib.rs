//! What the shim and the engine agree on: the plan of a wasm container, the control socket that carries it, and the
//! exit codes. It knows neither wasmtime nor containerd.

mod account;
mod control;
mod exit;
mod limits;
mod mounts;

pub use account::{ACCOUNT_FILE, Account, Figures};
pub use control::{LIMIT_FILES_MAX, Message, REPLY_BYTES_MAX, Refusal, Reply, receive_message, send_message};
pub use exit::{EXIT_ENGINE, EXIT_OOM, EXIT_TRAP, exit_code_of_proc_exit, exit_code_of_signal};
pub use limits::{Limits, parse_limit};
pub use mounts::{KERNEL_FILE_SYSTEMS, unescape_mount};

use serde::{Deserialize, Serialize};

/// Names what compiled code is made for: wasmtime's version and the revision of skiff's engine configuration.
///
/// It is part of the key of every cache entry and of the header of compiled code itself
/// (`wasmtime::ModuleVersionStrategy::Custom`), so that code of another engine is never mapped.
pub const CODE_ID: &str = "wasmtime-48.0.8-skiff-1";

/// The largest module that is read, compiled and run, in bytes; the largest real one known is 99 MB.
pub const MODULE_BYTES_MAX: u64 = 512 << 20;

/// The descriptor number under which the engine's own file is passed to the container's process.
pub const ENGINE_FD: i32 = 3;
/// The descriptor number of the control socket in the engine.
pub const CONTROL_FD: i32 = 4;

/// Everything that the engine needs to know of its container, besides its descriptors and its environment.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct EnginePlan {
    /// The module's name as the pod's owner wrote it; used in messages only.
    pub module: String,
    /// The export to run instead of the default entry point (`module.wasm#function`).
    pub function: Option<String>,
    /// The guest's arguments, its own name first.
    pub args: Vec<String>,
    /// The guest's environment, each as `NAME=value`. The engine itself is executed with none, so that no variable of the
    /// container changes what the engine does.
    pub env: Vec<String>,
    /// The guest's working directory, an absolute path.
    pub cwd: String,
    /// The directories that the guest may open, and nothing else.
    pub preopens: Vec<Preopen>,
    /// What bounds the guest besides its cgroup.
    pub limits: Limits,
    /// The memory limit of the specification in bytes, for a container whose cgroup has none to read.
    pub memory_limit_bytes: Option<u64>,
    /// How many processors the quotas of the container and its pod come to, rounded up.
    pub processors: Option<usize>,
}

/// A directory of the container that the guest may open.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Preopen {
    /// Where the engine finds it, in the container's mount namespace.
    pub host: String,
    /// Where the guest sees it.
    pub guest: String,
    /// Whether the guest may only read; the kernel's mount flags say the same once more.
    pub read_only: bool,
}
