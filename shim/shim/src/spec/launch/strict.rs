//! The parts of a specification that skiff's launcher understands, as types that refuse every other field.

use std::collections::BTreeMap;
use std::path::PathBuf;

use serde::Deserialize;
use serde::de::{DeserializeOwned, IgnoredAny};
use serde_json::Value;
use skiff_protocol::launch::Resource;

use super::reason::Reason;

#[derive(Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub(super) struct Spec {
    pub(super) oci_version: String,
    #[serde(default)]
    pub(super) process: Value,
    #[serde(default)]
    pub(super) root: Value,
    pub(super) hostname: Option<String>,
    pub(super) domainname: Option<String>,
    #[serde(default)]
    pub(super) mounts: Vec<Value>,
    #[serde(default)]
    pub(super) linux: Value,
    #[serde(rename = "annotations")]
    _annotations: Option<IgnoredAny>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Root {
    pub(super) path: PathBuf,
    #[serde(default)]
    pub(super) readonly: bool,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub(super) struct Process {
    #[serde(default)]
    pub(super) terminal: bool,
    #[serde(rename = "consoleSize")]
    _console_size: Option<IgnoredAny>,
    #[serde(default)]
    pub(super) user: Value,
    #[serde(default)]
    pub(super) args: Vec<String>,
    #[serde(default)]
    pub(super) env: Vec<String>,
    pub(super) cwd: PathBuf,
    #[serde(default)]
    pub(super) capabilities: Value,
    #[serde(default)]
    pub(super) rlimits: Vec<Rlimit>,
    #[serde(default)]
    pub(super) no_new_privileges: bool,
    pub(super) apparmor_profile: Option<String>,
    pub(super) oom_score_adj: Option<i32>,
}

#[derive(Default, Deserialize)]
#[serde(default, deny_unknown_fields, rename_all = "camelCase")]
pub(super) struct User {
    pub(super) uid: u32,
    pub(super) gid: u32,
    pub(super) umask: Option<u32>,
    pub(super) additional_gids: Vec<u32>,
}

#[derive(Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(super) struct Capabilities {
    pub(super) bounding: Vec<String>,
    pub(super) effective: Vec<String>,
    pub(super) permitted: Vec<String>,
    pub(super) inheritable: Vec<String>,
    pub(super) ambient: Vec<String>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Rlimit {
    #[serde(rename = "type")]
    pub(super) resource: Resource,
    #[serde(default)]
    pub(super) soft: u64,
    #[serde(default)]
    pub(super) hard: u64,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Mount {
    pub(super) destination: PathBuf,
    #[serde(default, rename = "type")]
    pub(super) kind: String,
    #[serde(default)]
    pub(super) source: String,
    #[serde(default)]
    pub(super) options: Vec<String>,
}

#[derive(Default, Deserialize)]
#[serde(default, deny_unknown_fields, rename_all = "camelCase")]
pub(super) struct Linux {
    pub(super) cgroups_path: String,
    pub(super) namespaces: Vec<Value>,
    pub(super) devices: Vec<Value>,
    pub(super) resources: Value,
    pub(super) sysctl: Option<IgnoredAny>,
    pub(super) masked_paths: Vec<PathBuf>,
    pub(super) readonly_paths: Vec<PathBuf>,
    pub(super) rootfs_propagation: String,
    pub(super) seccomp: Option<Value>,
}

/// The filter itself is the OCI runtime's, so most of what it is made from is not read here.
#[derive(Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub(super) struct Seccomp {
    pub(super) default_action: String,
    #[serde(rename = "defaultErrnoRet")]
    _default_errno: Option<IgnoredAny>,
    #[serde(rename = "architectures")]
    _architectures: Option<IgnoredAny>,
    #[serde(default)]
    pub(super) flags: Vec<String>,
    #[serde(default)]
    pub(super) syscalls: Vec<Syscalls>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Syscalls {
    #[serde(rename = "names")]
    _names: Option<IgnoredAny>,
    pub(super) action: String,
    #[serde(rename = "errnoRet")]
    _errno: Option<IgnoredAny>,
    #[serde(rename = "args")]
    _args: Option<IgnoredAny>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Namespace {
    #[serde(rename = "type")]
    pub(super) kind: String,
    pub(super) path: Option<PathBuf>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub(super) struct Device {
    #[serde(default)]
    pub(super) path: PathBuf,
    #[serde(rename = "type")]
    pub(super) kind: String,
    #[serde(default)]
    pub(super) major: u32,
    #[serde(default)]
    pub(super) minor: u32,
    pub(super) file_mode: Option<u32>,
    #[serde(default)]
    pub(super) uid: u32,
    #[serde(default)]
    pub(super) gid: u32,
}

#[derive(Default, Deserialize)]
#[serde(default, deny_unknown_fields, rename_all = "camelCase")]
pub(super) struct Resources {
    pub(super) memory: Value,
    pub(super) cpu: Value,
    pub(super) pids: Value,
    pub(super) hugepage_limits: Vec<HugepageLimit>,
    pub(super) devices: Vec<Value>,
    pub(super) unified: BTreeMap<String, String>,
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(default, deny_unknown_fields, rename_all = "camelCase")]
pub(super) struct Memory {
    pub(super) limit: i64,
    pub(super) reservation: i64,
    pub(super) swap: i64,
    pub(super) check_before_update: bool,
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(super) struct Cpu {
    pub(super) shares: u64,
    pub(super) quota: i64,
    pub(super) period: u64,
    pub(super) burst: Option<u64>,
    pub(super) cpus: String,
    pub(super) mems: String,
    pub(super) idle: Option<i64>,
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(super) struct Pids {
    pub(super) limit: Option<i64>,
}

#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub(super) struct HugepageLimit {
    pub(super) page_size: String,
    pub(super) limit: u64,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct DeviceRule {
    #[serde(default)]
    pub(super) allow: bool,
    #[serde(default, rename = "type")]
    pub(super) kind: String,
    pub(super) major: Option<i64>,
    pub(super) minor: Option<i64>,
    pub(super) access: String,
}

/// The part `name` of a specification.
pub(super) fn section<T: DeserializeOwned>(name: &str, value: Value) -> Result<T, Reason> {
    let value = if value.is_null() { Value::Object(serde_json::Map::new()) } else { value };
    T::deserialize(value).map_err(|error| {
        let words = error.to_string();
        // A list of what would be understood helps nobody.
        Reason(format!("`{name}`: {}", words.split_once(", expected").map_or(words.as_str(), |(what, _)| what)))
    })
}

/// Removes the fields that the OCI runtime takes for absent: those that are null, false or empty.
pub(super) fn without_empty(value: Value) -> Value {
    let is_empty = |value: &Value| match value {
        Value::Null | Value::Bool(false) => true,
        Value::Bool(true) | Value::Number(_) => false,
        Value::String(text) => text.is_empty(),
        Value::Array(values) => values.is_empty(),
        Value::Object(fields) => fields.is_empty(),
    };
    match value {
        Value::Object(fields) => {
            let fields = fields.into_iter().map(|(name, value)| (name, without_empty(value)));
            Value::Object(fields.filter(|(_, value)| !is_empty(value)).collect())
        }
        Value::Array(values) => Value::Array(values.into_iter().map(without_empty).collect()),
        other => other,
    }
}
