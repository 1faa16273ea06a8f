//! What a file is by its first bytes, so that whoever gets something that is not wasm hears what it is instead.

use crate::WASM_MAGIC;

/// How many of a file's first bytes are looked at.
pub const HEAD_BYTES: usize = 4096;

/// The place in the header of an ELF file of the byte that wasmtime has a value of its own for, and that value.
const ELF_OSABI: (usize, u8) = (7, 200);
/// How Mach-O files begin, in both byte orders.
const MACH_O: [[u8; 4]; 4] =
    [[0xfe, 0xed, 0xfa, 0xce], [0xfe, 0xed, 0xfa, 0xcf], [0xce, 0xfa, 0xed, 0xfe], [0xcf, 0xfa, 0xed, 0xfe]];
/// How Mach-O files for several processors begin, and Java classes.
const FAT: [u8; 4] = [0xca, 0xfe, 0xba, 0xbe];
/// The following number is how many processors there are, or the release of Java, the first of which is 45.
const FAT_PROCESSORS_MAX: u32 = 40;

/// What a file is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Content {
    /// A wasm binary; it may still be broken.
    Wasm,
    /// Nothing.
    Empty,
    /// Wasm in its text format.
    Text,
    /// A file that gzip compressed.
    Gzip,
    /// A program for Linux.
    Elf,
    /// What wasmtime compiled ahead of time.
    Compiled,
    /// A program for Windows.
    Pe,
    /// A program for macOS.
    MachO,
    /// A script whose first line names its interpreter.
    Script,
    /// Something else.
    Other,
}

impl Content {
    /// What a file is that begins with `head`; no more than [`HEAD_BYTES`] of it are looked at.
    #[must_use]
    pub fn of(head: &[u8]) -> Self {
        let head = &head[..head.len().min(HEAD_BYTES)];
        match head {
            [] => Self::Empty,
            _ if head.starts_with(&WASM_MAGIC) => Self::Wasm,
            [0x7f, b'E', b'L', b'F', ..] if head.get(ELF_OSABI.0) == Some(&ELF_OSABI.1) => Self::Compiled,
            [0x7f, b'E', b'L', b'F', ..] => Self::Elf,
            [0x1f, 0x8b, ..] => Self::Gzip,
            [b'M', b'Z', ..] => Self::Pe,
            [b'#', b'!', ..] => Self::Script,
            _ if MACH_O.iter().any(|magic| head.starts_with(magic)) || is_fat(head) => Self::MachO,
            _ if is_text(head) => Self::Text,
            _ => Self::Other,
        }
    }

    /// Why the file is not run as wasm, as the end of a sentence that begins with its name; `None` if it is wasm.
    #[must_use]
    pub const fn fault(self) -> Option<&'static str> {
        Some(match self {
            Self::Wasm => return None,
            Self::Empty => "is empty",
            Self::Text => "is wasm in its text format: skiff runs only the binary format",
            Self::Gzip => "is compressed with gzip: unpack it first",
            Self::Elf => {
                "is a native program (ELF), not wasm: build it for WASI (`GOOS=wasip1 GOARCH=wasm`, `--target wasm32-wasip1`)"
            }
            Self::Compiled => "is code that wasmtime compiled: skiff never runs compiled code from an image",
            Self::Pe => {
                "is a native program (PE), not wasm: build it for WASI (`GOOS=wasip1 GOARCH=wasm`, `--target wasm32-wasip1`)"
            }
            Self::MachO => {
                "is a native program (Mach-O), not wasm: build it for WASI (`GOOS=wasip1 GOARCH=wasm`, `--target wasm32-wasip1`)"
            }
            Self::Script => "is a script, not wasm: it does not begin with `\\0asm`",
            Self::Other => "is not wasm: it does not begin with `\\0asm`",
        })
    }
}

fn is_fat(head: &[u8]) -> bool {
    let Some((number, _)) = head.strip_prefix(&FAT).and_then(<[u8]>::split_first_chunk) else { return false };
    u32::from_be_bytes(*number) <= FAT_PROCESSORS_MAX
}

/// Whether `head` begins with `(module` or `(component`, after white space and line comments.
fn is_text(head: &[u8]) -> bool {
    let mut rest = head.trim_ascii_start();
    while rest.starts_with(b";;") {
        let end = rest.iter().position(|byte| *byte == b'\n').unwrap_or(rest.len());
        rest = rest[end..].trim_ascii_start();
    }
    rest.starts_with(b"(module") || rest.starts_with(b"(component")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_is_known_by_its_first_bytes_whatever_it_is() {
        let comment = [b";; ".as_slice(), &[b'x'; HEAD_BYTES], b"\n(module)"].concat();
        for (head, expected) in [
            (&b"\0asm\x01\0\0\0"[..], Content::Wasm),
            (b"", Content::Empty),
            (b"\0as", Content::Other),
            (b"(module)", Content::Text),
            (b";; hi\n (component)", Content::Text),
            // Beyond what is looked at.
            (&comment, Content::Other),
            (b"\x1f\x8b\x08\0", Content::Gzip),
            (b"\x7fELF\x02\x01\x01\0", Content::Elf),
            (b"\x7fELF", Content::Elf),
            (b"\x7fELF\x02\x01\x01\xc8", Content::Compiled),
            (b"MZ\x90\0", Content::Pe),
            (b"\xcf\xfa\xed\xfe", Content::MachO),
            (b"\xca\xfe\xba\xbe\0\0\0\x02", Content::MachO),
            (b"\xca\xfe\xba\xbe\0\0\0\x41", Content::Other),
            (b"\xca\xfe\xba\xbe", Content::Other),
            (b"#!/bin/sh\n", Content::Script),
            (b"hello", Content::Other),
        ] {
            let found = Content::of(head);
            assert_eq!(found, expected, "{head:?}");
            assert_eq!(found.fault().is_none(), found == Content::Wasm, "{head:?}");
        }
    }
}
