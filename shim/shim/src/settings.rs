//! The runtime's options, as an operator sets them. How they reach the shim with every container is containerd's side.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};
use skiff_protocol::names;

use crate::error::{Error, Result};

/// What an operator can set for the runtime; the keys are containerd's where containerd has them.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, rename_all = "PascalCase")]
pub(crate) struct Settings {
    /// `cgroupsPath` has systemd's form `slice:prefix:name`.
    pub(crate) systemd_cgroup: bool,
    /// The OCI runtime that makes containers: a name to be found in `PATH`, or a path.
    pub(crate) binary_name: String,
    /// Where the OCI runtime keeps its state; the namespace is appended.
    pub(crate) root: PathBuf,
    /// A cgroup for the shim itself, relative to the root of the hierarchy.
    pub(crate) shim_cgroup: String,
    /// Do not use `pivot_root(2)`.
    pub(crate) no_pivot_root: bool,
    /// Do not give a container a session keyring of its own.
    pub(crate) no_new_keyring: bool,
    /// Make wasm containers without the OCI runtime where their whole specification is understood.
    pub(crate) own_launcher: bool,
    /// The directory of the compiled-code cache.
    pub(crate) cache_dir: PathBuf,
    /// The size that the compiled-code cache is kept under, in bytes.
    pub(crate) cache_max_bytes: u64,
    /// The memory that compiling one module may take, in bytes.
    pub(crate) compile_memory_bytes: u64,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            systemd_cgroup: false,
            binary_name: "runc".into(),
            root: names::RUNTIME_ROOT.into(),
            shim_cgroup: String::new(),
            no_pivot_root: false,
            no_new_keyring: false,
            own_launcher: true,
            cache_dir: names::CACHE_DIR.into(),
            cache_max_bytes: 4 << 30,
            compile_memory_bytes: 2 << 30,
        }
    }
}

impl Settings {
    /// These settings for a container with this `cgroupsPath`: one of systemd's form says by itself that it is.
    pub(crate) fn for_cgroups_path(mut self, path: Option<&str>) -> Self {
        let parts: Vec<_> = path.unwrap_or_default().split(':').collect();
        self.systemd_cgroup |= parts.len() == 3 && parts[0].ends_with(".slice");
        self
    }

    /// Reads settings from TOML; absent ones are the defaults, unknown ones are named in the log.
    ///
    /// # Errors
    /// `Invalid` for what is not TOML, or for a value of the wrong type.
    pub(crate) fn from_toml(text: &str) -> Result<Self> {
        let table: toml::Table = text.parse().map_err(|error: toml::de::Error| {
            Error::invalid(format!("the runtime options are not TOML: {}", error.message()))
        })?;
        let known = toml::Table::try_from(Self::default()).unwrap_or_default();
        for key in table.keys().filter(|key| !known.contains_key(*key)) {
            log::warn!("the runtime option `{key}` is unknown and is ignored");
        }
        table.try_into().map_err(|error: toml::de::Error| {
            Error::invalid(format!("a runtime option has a wrong value: {}", error.message()))
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_path_of_systemds_form_needs_no_option() {
        for (path, expected) in [
            (Some("kubepods-pod1.slice:cri-containerd:abc"), true),
            (Some("/kubepods/pod1/abc"), false),
            (Some("/kubepods/a:b:c"), false),
            (Some("x.slice:abc"), false),
            (None, false),
        ] {
            assert_eq!(Settings::default().for_cgroups_path(path).systemd_cgroup, expected, "{path:?}");
        }
        let told = Settings { systemd_cgroup: true, ..Settings::default() };
        assert!(told.for_cgroups_path(Some(":cri:abc")).systemd_cgroup);
    }
}
