//! The specification of a container (`config.json`) in its one form: typed where skiff reads or changes it, and otherwise as it
//! was written.
//!
//! What skiff does not read it does not judge either: the launcher does.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use oci_spec::runtime::{LinuxDeviceType, LinuxNamespaceType};
use serde::{Deserialize, Deserializer, Serialize};
use serde_json::{Map, Value};

use crate::error::{Error, Result};

/// The file of the specification in a bundle.
pub(crate) const CONFIG_FILE: &str = "config.json";

const SANDBOX_ID: &str = "io.kubernetes.cri.sandbox-id";

/// The fields that skiff does not read, as they were written.
type Rest = Map<String, Value>;

/// The specification of a container.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub(crate) struct Config {
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) process: Option<Process>,
    #[serde(default, deserialize_with = "or_default")]
    pub(crate) root: Root,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) hostname: Option<String>,
    #[serde(default, deserialize_with = "or_default", skip_serializing_if = "Vec::is_empty")]
    pub(crate) mounts: Vec<Mount>,
    #[serde(default, deserialize_with = "or_default", skip_serializing_if = "BTreeMap::is_empty")]
    pub(crate) annotations: BTreeMap<String, String>,
    #[serde(default, deserialize_with = "or_default")]
    pub(crate) linux: Linux,
    #[serde(flatten)]
    rest: Rest,
    /// It differs from the file in the bundle.
    #[serde(skip)]
    pub(crate) is_rewritten: bool,
}

/// The first process.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct Process {
    #[serde(default, deserialize_with = "or_default")]
    pub(crate) args: Vec<String>,
    #[serde(default, deserialize_with = "or_default")]
    pub(crate) env: Vec<String>,
    pub(crate) cwd: PathBuf,
    #[serde(flatten)]
    rest: Rest,
}

/// The root file system.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct Root {
    /// An absolute path; in the file it may be relative to the bundle.
    #[serde(default)]
    pub(crate) path: PathBuf,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) readonly: Option<bool>,
    #[serde(flatten)]
    rest: Rest,
}

/// A mount.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub(crate) struct Mount {
    pub(crate) destination: PathBuf,
    #[serde(rename = "type", skip_serializing_if = "Option::is_none")]
    pub(crate) kind: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) source: Option<PathBuf>,
    #[serde(default, deserialize_with = "or_default", skip_serializing_if = "Vec::is_empty")]
    pub(crate) options: Vec<String>,
    #[serde(flatten)]
    rest: Rest,
}

/// The type of a file system in memory.
pub(crate) const TMPFS: &str = "tmpfs";

/// What is Linux's own.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Linux {
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) cgroups_path: Option<String>,
    #[serde(default, deserialize_with = "or_default", skip_serializing_if = "Vec::is_empty")]
    pub(crate) namespaces: Vec<Namespace>,
    #[serde(default, deserialize_with = "or_default", skip_serializing_if = "Vec::is_empty")]
    pub(crate) devices: Vec<Device>,
    #[serde(default, deserialize_with = "or_default", skip_serializing_if = "BTreeMap::is_empty")]
    pub(crate) sysctl: BTreeMap<String, String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    resources: Option<Resources>,
    #[serde(flatten)]
    rest: Rest,
}

/// A namespace: a new one, or the one at `path`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct Namespace {
    #[serde(rename = "type")]
    pub(crate) kind: LinuxNamespaceType,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) path: Option<PathBuf>,
    #[serde(flatten)]
    rest: Rest,
}

/// A device node.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Device {
    #[serde(default)]
    pub(crate) path: PathBuf,
    #[serde(rename = "type")]
    pub(crate) kind: LinuxDeviceType,
    #[serde(default)]
    pub(crate) major: i64,
    #[serde(default)]
    pub(crate) minor: i64,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) file_mode: Option<u32>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) uid: Option<u32>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) gid: Option<u32>,
    #[serde(flatten)]
    rest: Rest,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
struct Resources {
    #[serde(skip_serializing_if = "Option::is_none")]
    memory: Option<Memory>,
    #[serde(flatten)]
    rest: Rest,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
struct Memory {
    #[serde(skip_serializing_if = "Option::is_none")]
    limit: Option<i64>,
    #[serde(flatten)]
    rest: Rest,
}

/// What is read before there is a shim for the pod.
#[derive(Deserialize)]
struct Annotated {
    annotations: Option<BTreeMap<String, String>>,
}

fn pod_of(annotations: &BTreeMap<String, String>) -> Option<&str> {
    annotations.get(SANDBOX_ID).map(String::as_str).filter(|id| !id.is_empty())
}

/// The pod that a specification names in its annotations, without a look at the rest of it.
///
/// # Errors
/// `Invalid` when `text` is not JSON with annotations.
pub(crate) fn pod_in(text: &[u8]) -> Result<Option<String>> {
    let config: Annotated =
        serde_json::from_slice(text).map_err(|error| Error::invalid(format!("`{CONFIG_FILE}`: {error}")))?;
    Ok(pod_of(&config.annotations.unwrap_or_default()).map(str::to_string))
}

/// Go writes an absent list or map as `null`.
fn or_default<'de, D: Deserializer<'de>, T: Deserialize<'de> + Default>(value: D) -> std::result::Result<T, D::Error> {
    Option::deserialize(value).map(Option::unwrap_or_default)
}

impl Config {
    /// Parses `text`, the specification in `bundle`.
    ///
    /// # Errors
    /// `Invalid` for what is not a specification.
    pub(crate) fn parse(text: &[u8], bundle: &Path) -> Result<Self> {
        let mut config: Self = serde_json::from_slice(text).map_err(|error| {
            Error::invalid(format!("`{}` is not an OCI specification: {error}", bundle.join(CONFIG_FILE).display()))
        })?;
        config.root.path = bundle.join(&config.root.path);
        Ok(config)
    }

    /// The first word of what the container runs.
    pub(crate) fn entrypoint(&self) -> Option<&str> {
        self.process.as_ref()?.args.first().map(String::as_str)
    }

    /// The pod that the container belongs to: containers of one pod share a shim.
    pub(crate) fn pod(&self) -> Option<&str> {
        pod_of(&self.annotations)
    }

    /// The container's own memory limit, in bytes.
    pub(crate) fn memory_limit_bytes(&self) -> Option<u64> {
        let memory = self.linux.resources.as_ref()?.memory.as_ref()?;
        memory.limit.and_then(|limit| u64::try_from(limit).ok())
    }

    /// The first namespace of this kind.
    pub(crate) fn namespace(&self, kind: LinuxNamespaceType) -> Option<&Namespace> {
        self.linux.namespaces.iter().find(|namespace| namespace.kind == kind)
    }
}

impl Default for Root {
    fn default() -> Self {
        Self { path: "rootfs".into(), readonly: None, rest: Rest::new() }
    }
}

impl Mount {
    /// A bind mount of `source` at `destination`.
    pub(crate) fn bind(destination: PathBuf, source: &Path, options: &[&str]) -> Self {
        Self {
            destination,
            kind: Some("bind".into()),
            source: Some(source.into()),
            options: options.iter().map(|option| (*option).into()).collect(),
            rest: Rest::new(),
        }
    }

    /// An empty file system in memory.
    pub(crate) fn tmpfs(destination: PathBuf, options: &[&str]) -> Self {
        Self { kind: Some(TMPFS.into()), ..Self::bind(destination, Path::new(TMPFS), options) }
    }

    /// Whether one of the options is `name`.
    pub(crate) fn has_option(&self, name: &str) -> bool {
        self.options.iter().any(|option| option == name)
    }

    /// Whether it shows files that are mounted elsewhere already.
    pub(crate) fn is_bind(&self) -> bool {
        self.has_option("bind") || self.has_option("rbind") || self.is_of_kind("bind")
    }

    /// Whether its type is `kind`.
    pub(crate) fn is_of_kind(&self, kind: &str) -> bool {
        self.kind.as_deref() == Some(kind)
    }
}

impl Device {
    /// A character device that everybody may use.
    pub(crate) fn for_everybody(path: PathBuf, major: i64, minor: i64) -> Self {
        Self {
            path,
            kind: LinuxDeviceType::C,
            major,
            minor,
            file_mode: Some(0o666),
            uid: Some(0),
            gid: Some(0),
            rest: Rest::new(),
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn parse(text: &Value) -> Result<Config> {
        Config::parse(text.to_string().as_bytes(), Path::new("/b"))
    }

    #[test]
    fn what_is_not_known_is_kept_as_it_was_written() {
        let text = json!({
            "ociVersion": "1.2.0", "hostname": "h", "hooks": {"prestart": []}, "future": {"a": [1.5, null, u64::MAX]},
            "process": {"args": ["/app"], "env": ["A=1"], "cwd": "/", "user": {"uid": 7}, "future": true},
            "root": {"path": "/b/rootfs", "readonly": true, "future": 1},
            "mounts": [{"destination": "/d", "type": "bind", "source": "/s", "options": ["ro"], "uidMappings": []}],
            "annotations": {"k": "v"},
            "linux": {
                "cgroupsPath": "/c", "sysctl": {"a.b": "1"}, "seccomp": {"defaultAction": "SCMP_ACT_FUTURE"},
                "namespaces": [{"type": "network", "path": "/n", "future": 1}],
                "devices": [{"path": "/dev/x", "type": "c", "major": 1, "minor": 2, "fileMode": 438, "future": 1}],
                "resources": {"memory": {"limit": 4096, "swap": 1}, "cpu": {"shares": 2}}
            }
        });
        let config = parse(&text).unwrap();
        assert_eq!(serde_json::to_value(&config).unwrap(), text);
        assert_eq!((config.entrypoint(), config.memory_limit_bytes()), (Some("/app"), Some(4096)));
    }

    #[test]
    fn what_is_absent_or_null_is_empty() {
        for text in [
            json!({}),
            json!({"process": null, "root": null, "mounts": null, "annotations": null, "linux": null}),
            json!({"linux": {"namespaces": null, "devices": null, "resources": {"memory": {"limit": -1}}}}),
        ] {
            let config = parse(&text).unwrap();
            assert_eq!(config.root.path, Path::new("/b/rootfs"));
            assert_eq!((config.entrypoint(), config.pod(), config.memory_limit_bytes()), (None, None, None));
        }
    }

    #[test]
    fn a_wrong_type_is_refused_in_a_sentence() {
        for text in [
            json!([]),
            json!({"process": {"args": "/app", "cwd": "/"}}),
            json!({"process": {"args": ["/app"]}}),
            json!({"root": {"readonly": "yes"}}),
            json!({"mounts": [{"type": "bind"}]}),
            json!({"mounts": [{"destination": "/d", "options": "ro"}]}),
            json!({"annotations": {"a": 1}}),
            json!({"linux": {"namespaces": [{"type": "other"}]}}),
            json!({"linux": {"devices": [{"path": "/dev/x", "type": "other"}]}}),
            json!({"linux": {"resources": {"memory": {"limit": "1Gi"}}}}),
        ] {
            let error = parse(&text).unwrap_err().to_string();
            assert!(error.starts_with("`/b/config.json` is not an OCI specification: "), "{text}: {error}");
        }
    }
}
