//! The runtime's options, as containerd passes them with every container.
//!
//! They come as `containerd.runc.v1.Options` or as `runtimeoptions.v1.Options` with TOML in `config_body` or in the file
//! `config_path`. <https://github.com/containerd/containerd/blob/main/docs/cri/config.md#runtime-classes>

use std::path::PathBuf;

use containerd_shim::protos::shim::oci::Options as RuncOptions;
use protobuf::well_known_types::any::Any;
use protobuf::{CodedInputStream, Message};
use serde::{Deserialize, Serialize};

use crate::error::{Context, Error, Result};

const RUNC_OPTIONS: &str = "containerd.runc.v1.Options";
const RUNTIME_OPTIONS: &str = "runtimeoptions.v1.Options";

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
    /// The directory of the compiled-code cache.
    pub(crate) cache_dir: PathBuf,
    /// The size that the compiled-code cache is kept under, in bytes.
    pub(crate) cache_max_bytes: u64,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            systemd_cgroup: false,
            binary_name: "runc".into(),
            root: "/run/skiff/runc".into(),
            shim_cgroup: String::new(),
            no_pivot_root: false,
            no_new_keyring: false,
            cache_dir: "/var/lib/skiff/cache".into(),
            cache_max_bytes: 4 << 30,
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

    /// Reads the options of a request; absent ones are the defaults, unknown ones are named in the log.
    ///
    /// # Errors
    /// `Invalid` when the options cannot be decoded.
    pub(crate) fn from_any(options: Option<&Any>) -> Result<Self> {
        let Some(options) = options.filter(|any| !any.type_url.is_empty()) else { return Ok(Self::default()) };
        match options.type_url.rsplit('/').next().unwrap_or_default() {
            RUNC_OPTIONS => {
                let options = RuncOptions::parse_from_bytes(&options.value)
                    .map_err(|error| Error::invalid(format!("the runtime options are not a message: {error}")))?;
                Ok(Self::from_runc(options))
            }
            RUNTIME_OPTIONS => match toml_of(&options.value)? {
                Some(text) => Self::from_toml(&text),
                None => Ok(Self::default()),
            },
            other => {
                log::warn!("runtime options of the type `{other}` are not known and are ignored");
                Ok(Self::default())
            }
        }
    }

    fn from_runc(options: RuncOptions) -> Self {
        for (name, set) in [
            ("criu_image_path", !options.criu_image_path.is_empty()),
            ("criu_work_path", !options.criu_work_path.is_empty()),
            ("io_uid", options.io_uid != 0),
            ("io_gid", options.io_gid != 0),
        ] {
            if set {
                log::warn!("the runtime option `{name}` is not used by skiff and is ignored");
            }
        }
        let mut settings = Self {
            systemd_cgroup: options.systemd_cgroup,
            shim_cgroup: options.shim_cgroup,
            no_pivot_root: options.no_pivot_root,
            no_new_keyring: options.no_new_keyring,
            ..Self::default()
        };
        if !options.binary_name.is_empty() {
            settings.binary_name = options.binary_name;
        }
        if !options.root.is_empty() {
            settings.root = options.root.into();
        }
        settings
    }

    fn from_toml(text: &str) -> Result<Self> {
        let table: toml::Table = text.parse().map_err(|error: toml::de::Error| {
            Error::invalid(format!("the runtime options are not TOML: {}", error.message()))
        })?;
        let known = toml::Table::try_from(Self::default()).unwrap_or_default();
        for key in table.keys().filter(|key| !known.contains_key(*key)) {
            log::warn!("the runtime option `{key}` is not known and is ignored");
        }
        table.try_into().map_err(|error: toml::de::Error| {
            Error::invalid(format!("a runtime option has a wrong value: {}", error.message()))
        })
    }
}

/// The TOML of a `runtimeoptions.v1.Options` message, which has three string fields: 1 `type_url`, 2 `config_path`,
/// 3 `config_body`.
/// <https://github.com/containerd/containerd/blob/main/api/types/runtimeoptions/v1/api.proto>
fn toml_of(message: &[u8]) -> Result<Option<String>> {
    let mut input = CodedInputStream::from_bytes(message);
    let (mut path, mut body) = (String::new(), Vec::new());
    let bad = |error| Error::invalid(format!("the runtime options are not a message: {error}"));
    while let Some(tag) = input.read_raw_tag_or_eof().map_err(bad)? {
        match tag {
            0x12 => path = input.read_string().map_err(bad)?,
            0x1a => body = input.read_bytes().map_err(bad)?,
            _ => input
                .skip_field(
                    protobuf::rt::WireType::new(tag & 7)
                        .ok_or_else(|| Error::invalid("the runtime options are not a message: unknown wire type"))?,
                )
                .map_err(bad)?,
        }
    }
    if !body.is_empty() {
        return String::from_utf8(body).map(Some).map_err(|_| Error::invalid("the runtime options are not UTF-8"));
    }
    if path.is_empty() {
        return Ok(None);
    }
    std::fs::read_to_string(&path).doing(|| format!("cannot read the runtime options in `{path}`")).map(Some)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn runtime_options(body: &str) -> Any {
        let mut value = vec![0x1a, u8::try_from(body.len()).unwrap()];
        value.extend_from_slice(body.as_bytes());
        Any { type_url: RUNTIME_OPTIONS.into(), value, ..Any::default() }
    }

    #[test]
    fn absent_options_are_the_defaults() {
        assert_eq!(Settings::from_any(None).unwrap(), Settings::default());
        assert_eq!(Settings::from_any(Some(&Any::default())).unwrap(), Settings::default());
    }

    #[test]
    fn toml_of_the_cri_plugin_is_read() {
        let read = Settings::from_any(Some(&runtime_options("SystemdCgroup = true\nBinaryName = \"crun\"\nFoo = 1\n")))
            .unwrap();
        assert_eq!(read, Settings { systemd_cgroup: true, binary_name: "crun".into(), ..Settings::default() });
    }

    #[test]
    fn a_wrong_value_is_refused_in_a_sentence() {
        let error = Settings::from_any(Some(&runtime_options("SystemdCgroup = 3"))).unwrap_err();
        assert!(error.to_string().starts_with("a runtime option has a wrong value"), "{error}");
    }

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

    #[test]
    fn runc_options_are_read() {
        let options = RuncOptions {
            binary_name: "youki".into(),
            root: "/r".into(),
            systemd_cgroup: true,
            ..RuncOptions::default()
        };
        let any = Any { type_url: RUNC_OPTIONS.into(), value: options.write_to_bytes().unwrap(), ..Any::default() };
        let read = Settings::from_any(Some(&any)).unwrap();
        assert_eq!((read.binary_name.as_str(), read.systemd_cgroup), ("youki", true));
    }
}
