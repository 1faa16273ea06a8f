//! What skiff's programs agree on: the plan of a wasm container and the control socket that carries it, the account of what it
//! uses and does, the call socket for questions to a running guest, the counters of the cache, exit codes, limits, what the command line prints for the shim, and names. This crate knows neither wasmtime nor
//! containerd.

mod account;
mod calls;
mod content;
mod control;
mod counters;
mod exit;
mod fault;
pub mod interfaces;
pub mod launch;
mod layers;
mod limits;
mod mounts;
pub mod names;
mod room;
mod targets;
mod task;
mod warm;

pub use account::{
    ACCOUNT_FILE, Account, Activity, CODE_CLASSES, CalledFunction, CalledFunctions, DURATION_BOUNDS,
    FUNCTION_NAME_BYTES_MAX, FUNCTIONS_MAX, Figures, OTHER_FUNCTIONS, PLACES, account_holder, called_functions,
};
pub use calls::{FRAME_BYTES_MAX, Frame, Question};
pub use content::{Content, HEAD_BYTES};
pub use control::{
    LIMIT_FILES_MAX, MemoryLimit, Message, REPLY_BYTES_MAX, Refusal, Reply, VERSION, let_run, receive_message,
    send_message, wait_to_run,
};
pub use counters::{COUNTERS_FILE, Counters};
pub use exit::{EXIT_ENGINE, EXIT_NOT_FOUND, EXIT_OOM, EXIT_TRAP, exit_code_of_proc_exit, exit_code_of_signal};
pub use fault::Fault;
pub use layers::{ImageLayers, WasmLayer};
pub use limits::{Limits, bytes_and_mi};
pub use mounts::KERNEL_FILE_SYSTEMS;
pub use room::{FURTHER_PROCESS_BYTES, Room, guest_share_bytes, host_share_bytes};
pub use targets::other_target;
pub use task::{OnTrap, Task};
pub use warm::{WARM_ACTION, WarmRequest, Warmed};

use serde::{Deserialize, Serialize};

/// The engine that compiled code is made for: wasmtime's version and the revision of skiff's engine configuration.
///
/// It is part of the key of every cache entry and of the header of the compiled code itself
/// (`wasmtime::ModuleVersionStrategy::Custom`), so that code for another engine is never mapped.
pub const CODE_ID: &str = "wasmtime-48.0.8-skiff-3";

/// How every wasm binary begins, core module or component.
pub const WASM_MAGIC: [u8; 4] = *b"\0asm";

/// The largest module that is read, compiled and run, in bytes; the largest real one known is 99 MB.
pub const MODULE_BYTES_MAX: u64 = 512 << 20;

/// The descriptor number of the engine's own file in the container's process.
pub const ENGINE_FD: i32 = 3;
/// The descriptor number of the control socket in the engine.
pub const CONTROL_FD: i32 = 4;

/// Everything that the engine needs to know about its container, besides its descriptors and its environment.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct EnginePlan {
    /// What the engine process is for.
    pub task: Task,
    /// The place of the engine process in the container's account; that of its guest is 0.
    pub place: usize,
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
    /// The only directories that the guest may open.
    pub preopens: Vec<Preopen>,
    /// The guest's limits besides those of its cgroup.
    pub limits: Limits,
    /// The file of the guest's view that is left a sentence about an end that is not the guest's own, if the container has one.
    pub termination_log: Option<String>,
    /// The file of the guest's view that is made for a core dump when a core module traps, if one is wanted.
    pub core_dump: Option<String>,
    /// The authorities (`host:port`) of plain HTTP that are spoken to in HTTP/2, because they are known to speak it.
    pub http2_authorities: Vec<String>,
    /// The memory limit from the OCI specification in bytes, for a container whose cgroup has none to read.
    pub memory_limit_bytes: Option<u64>,
    /// The processors that the CPU quotas of the container and its pod allow, rounded up.
    pub processors: Option<usize>,
    /// What becomes of a container when a call ends its live instance.
    pub on_trap: OnTrap,
    /// Signals that do not end a native process ask the guest to end, too. In a pod one of them is the container's stop signal.
    pub each_signal_stops: bool,
    /// Nobody looks into the container by the commands of `skiff`.
    pub looks_are_off: bool,
}

/// A directory of the container that the guest may open.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Preopen {
    /// Where the engine finds it, in the container's mount namespace.
    pub host: String,
    /// Where the guest sees it.
    pub guest: String,
    /// Whether nothing below it can be changed, devices aside. The flags of its mounts say the same.
    pub read_only: bool,
}
