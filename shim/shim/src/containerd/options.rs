//! The runtime's options as containerd passes them: `containerd.runc.v1.Options`, or `runtimeoptions.v1.Options` with TOML in
//! `config_body` or in the file `config_path`.
//! <https://github.com/containerd/containerd/blob/main/docs/cri/config.md#runtime-classes>

use containerd_shim::protos::shim::oci::Options as RuncOptions;
use protobuf::well_known_types::any::Any;
use protobuf::{CodedInputStream, Message};

use crate::error::{Context, Error, Result};
use crate::settings::Settings;

const RUNC_OPTIONS: &str = "containerd.runc.v1.Options";
const RUNTIME_OPTIONS: &str = "runtimeoptions.v1.Options";

/// Reads the options of a request; absent ones are the defaults, unknown ones are named in the log.
///
/// # Errors
/// `Invalid` when the options cannot be decoded.
pub(super) fn decode(options: Option<&Any>) -> Result<Settings> {
    let Some(options) = options.filter(|any| !any.type_url.is_empty()) else { return Ok(Settings::default()) };
    match options.type_url.rsplit('/').next().unwrap_or_default() {
        RUNC_OPTIONS => {
            let options = RuncOptions::parse_from_bytes(&options.value)
                .map_err(|error| Error::invalid(format!("the runtime options are not a protobuf message: {error}")))?;
            Ok(from_runc(options))
        }
        RUNTIME_OPTIONS => match toml_of(&options.value)? {
            Some(text) => Settings::from_toml(&text),
            None => Ok(Settings::default()),
        },
        other => {
            log::warn!("runtime options of the unknown type `{other}` are ignored");
            Ok(Settings::default())
        }
    }
}

fn from_runc(options: RuncOptions) -> Settings {
    for (name, set) in [
        ("criu_image_path", !options.criu_image_path.is_empty()),
        ("criu_work_path", !options.criu_work_path.is_empty()),
        ("io_uid", options.io_uid != 0),
        ("io_gid", options.io_gid != 0),
    ] {
        if set {
            log::warn!("skiff does not use the runtime option `{name}` and ignores it");
        }
    }
    let mut settings = Settings {
        systemd_cgroup: options.systemd_cgroup,
        shim_cgroup: options.shim_cgroup,
        no_pivot_root: options.no_pivot_root,
        no_new_keyring: options.no_new_keyring,
        ..Settings::default()
    };
    if !options.binary_name.is_empty() {
        settings.binary_name = options.binary_name;
    }
    if !options.root.is_empty() {
        settings.root = options.root.into();
    }
    settings
}

/// The TOML of a `runtimeoptions.v1.Options` message, which has three string fields: 1 `type_url`, 2 `config_path`,
/// 3 `config_body`.
/// <https://github.com/containerd/containerd/blob/main/api/types/runtimeoptions/v1/api.proto>
fn toml_of(message: &[u8]) -> Result<Option<String>> {
    let mut input = CodedInputStream::from_bytes(message);
    let (mut path, mut body) = (String::new(), Vec::new());
    let bad = |error| Error::invalid(format!("the runtime options are not a protobuf message: {error}"));
    while let Some(tag) = input.read_raw_tag_or_eof().map_err(bad)? {
        match tag {
            0x12 => path = input.read_string().map_err(bad)?,
            0x1a => body = input.read_bytes().map_err(bad)?,
            _ => input
                .skip_field(protobuf::rt::WireType::new(tag & 7).ok_or_else(|| {
                    Error::invalid("the runtime options are not a protobuf message: unknown wire type")
                })?)
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
        assert_eq!(decode(None).unwrap(), Settings::default());
        assert_eq!(decode(Some(&Any::default())).unwrap(), Settings::default());
    }

    #[test]
    fn toml_of_the_cri_plugin_is_read() {
        let read = decode(Some(&runtime_options("SystemdCgroup = true\nBinaryName = \"crun\"\nFoo = 1\n"))).unwrap();
        assert_eq!(read, Settings { systemd_cgroup: true, binary_name: "crun".into(), ..Settings::default() });
    }

    #[test]
    fn a_wrong_value_is_refused_in_a_sentence() {
        let error = decode(Some(&runtime_options("SystemdCgroup = 3"))).unwrap_err();
        assert!(error.to_string().starts_with("a runtime option has a wrong value"), "{error}");
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
        let read = decode(Some(&any)).unwrap();
        assert_eq!((read.binary_name.as_str(), read.systemd_cgroup), ("youki", true));
    }
}
