//! The rivals: which runtime of containerd runs a container, with which options.

use std::path::Path;

use containerd_client::services::v1::container::Runtime;
use prost_types::Any;
use skiff_test::field;

/// A runtime of containerd.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Target {
    /// runc through containerd's own shim.
    Runc,
    /// The minimal shim on `containerd-shim-wasm`.
    Baseline,
    /// What is measured.
    Skiff,
}

impl Target {
    /// Its name in identifiers.
    pub(crate) fn word(self) -> &'static str {
        match self {
            Self::Runc => "runc",
            Self::Baseline => "baseline",
            Self::Skiff => "skiff",
        }
    }

    /// The runtime as containerd wants it; all state is kept below the directory.
    pub(crate) fn runtime(self, directory: &Path) -> Runtime {
        let state = directory.join(self.word()).display().to_string();
        match self {
            Self::Runc => Runtime {
                name: "io.containerd.runc.v2".into(),
                options: Some(Any { type_url: "containerd.runc.v1.Options".into(), value: field(7, &state) }),
            },
            Self::Baseline => Runtime { name: "io.containerd.baseline.v1".into(), options: None },
            Self::Skiff => {
                let toml = format!("Root = {state:?}\nCacheDir = {:?}\n", directory.join("cache"));
                let options = Any { type_url: "runtimeoptions.v1.Options".into(), value: field(3, &toml) };
                Runtime { name: "io.containerd.skiff.v1".into(), options: Some(options) }
            }
        }
    }
}
