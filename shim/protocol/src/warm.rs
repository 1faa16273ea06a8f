//! How `skiff cache warm` asks the shim's program to compile a module into the cache: a request as JSON on standard input, and the
//! reply on standard output.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

/// The action of the shim's program.
pub const WARM_ACTION: &str = "warm";

/// Which module is compiled, and into which cache.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct WarmRequest {
    /// The absolute path of the module.
    pub file: PathBuf,
    /// The namespace that owns the entry.
    pub namespace: String,
    /// The runtime's option `CacheDir`.
    pub cache_dir: PathBuf,
    /// The runtime's option `CacheMaxBytes`.
    pub cache_max_bytes: u64,
    /// The runtime's option `CompileMemoryBytes`.
    pub compile_memory_bytes: u64,
}

/// What became of it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Warmed {
    /// The sha256 of the module.
    pub module: String,
    /// Whether it was compiled now; otherwise the cache had its code.
    pub is_new: bool,
}
