//! The rivals: which runtime of containerd runs a container, with which options.

use std::path::Path;

use containerd_client::services::v1::container::Runtime;
use prost_types::Any;

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
    /// A word for identifiers.
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

/// A string field of a protocol buffer message; the options here need one each.
fn field(number: u8, text: &str) -> Vec<u8> {
    let mut bytes = vec![number << 3 | 2];
    let mut length = text.len();
    while length > 0x7f {
        bytes.push(u8::try_from(length & 0x7f).unwrap_or_default() | 0x80);
        length >>= 7;
    }
    bytes.push(u8::try_from(length).unwrap_or_default());
    bytes.extend_from_slice(text.as_bytes());
    bytes
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_string_field_carries_its_length() {
        assert_eq!(field(3, "ab"), [0x1a, 2, b'a', b'b']);
        assert_eq!(field(7, &"x".repeat(200))[..3], [0x3a, 0xc8, 1]);
    }
}
