//! What a file is by its first bytes. It decides nothing else: a file with the right first bytes may still be broken.

use skiff_protocol::Content;

use crate::error::{Error, Result};

/// The two things that skiff compiles.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    /// A core module.
    Module,
    /// A component.
    Component,
}

impl Kind {
    /// The word for it in messages.
    pub(crate) const fn name(self) -> &'static str {
        match self {
            Self::Module => "module",
            Self::Component => "component",
        }
    }
}

const MAGIC: &[u8] = &skiff_protocol::WASM_MAGIC;
const MODULE: &[u8] = &[1, 0, 0, 0];
const COMPONENT: &[u8] = &[0x0d, 0, 1, 0];

/// The kind of the wasm binary `bytes`, which messages call `name`.
///
/// # Errors
/// The guest's fault if it is not a wasm binary; the message says what it is instead.
pub(crate) fn kind_of(bytes: &[u8], name: &str) -> Result<Kind> {
    if !bytes.is_empty() && MAGIC.starts_with(bytes) {
        return Err(truncated(bytes, name));
    }
    if let Some(fault) = Content::of(bytes).fault() {
        return Err(Error::guest(format!("`{name}` {fault}")));
    }
    match bytes.get(4..8) {
        Some(MODULE) => Ok(Kind::Module),
        Some(COMPONENT) => Ok(Kind::Component),
        Some(version) => Err(Error::guest(format!("`{name}` is corrupt: unknown wasm version `{version:02x?}`"))),
        None => Err(truncated(bytes, name)),
    }
}

fn truncated(bytes: &[u8], name: &str) -> Error {
    Error::guest(format!("`{name}` is corrupt: it ends after {} bytes, within the preamble", bytes.len()))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::testing::{many, mutated};

    fn check(bytes: &[u8], expected: Result<Kind, &str>) {
        let found = kind_of(bytes, "a").map_err(|error| error.to_string());
        assert_eq!(found, expected.map_err(|end| format!("`a` {end}")), "{bytes:?}");
    }

    #[test]
    fn a_file_is_known_by_its_first_bytes() {
        check(b"\0asm\x01\0\0\0", Ok(Kind::Module));
        check(b"\0asm\x0d\0\x01\0rest", Ok(Kind::Component));
        check(b"", Err("is empty"));
        check(b"\0as", Err("is corrupt: it ends after 3 bytes, within the preamble"));
        check(b"\0asm\x01", Err("is corrupt: it ends after 5 bytes, within the preamble"));
        check(b"\0asm\x02\0\0\0", Err("is corrupt: unknown wasm version `[02, 00, 00, 00]`"));
        check(b"#!/bin/sh\n", Err("is a script, not wasm: it does not begin with `\\0asm`"));
        check(b";; hi\n (module)", Err("is wasm in its text format: skiff runs only the binary format"));
        check(b"\x7fELF", Err(Content::Elf.fault().unwrap()));
        check(
            b"\x7fELF\x02\x01\x01\xc8",
            Err("is code that wasmtime compiled: skiff never runs compiled code from an image"),
        );
    }

    proptest! {
        #![proptest_config(many())]

        #[test]
        fn any_first_bytes_are_wasm_or_one_sentence(
            bytes in prop_oneof![
                prop::collection::vec(any::<u8>(), 0..64),
                mutated(&[b"\0asm\x01\0\0\0".to_vec(), b"\0asm\x0d\0\x01\0".to_vec(), b";; a\n (module)".to_vec()]),
            ]
        ) {
            match kind_of(&bytes, "a") {
                Ok(_) => prop_assert!(bytes.starts_with(MAGIC)),
                Err(error) => prop_assert!(error.to_string().starts_with("`a` is ")),
            }
        }
    }
}
