//! What the property tests share: how often they try, and how they break what they try.

use proptest::prelude::*;
use proptest::sample::Index;

/// How many inputs each property is tried with.
const INPUTS: u32 = 10_000;
/// What a broken text has in unexpected places.
const TOKENS: &[&[u8]] = &[
    b"null",
    b"[",
    b"]",
    b"{",
    b"}",
    b"\"",
    b":",
    b",",
    b"-1",
    b"1e999",
    b"18446744073709551616",
    b"\\ud800",
    b"\xff",
    b"\0",
];

/// Ten thousand inputs. Those that fail are not written to a file.
pub(crate) fn many() -> ProptestConfig {
    ProptestConfig { failure_persistence: None, ..ProptestConfig::with_cases(INPUTS) }
}

/// One of the `originals`, broken in up to eight places.
pub(crate) fn mutated(originals: &[Vec<u8>]) -> impl Strategy<Value = Vec<u8>> + use<> {
    let original = prop::sample::select(originals.to_vec());
    let edit = (0_u8..5, any::<Index>(), any::<Index>(), any::<u8>());
    (original, prop::collection::vec(edit, 1..=8)).prop_map(|(mut bytes, edits)| {
        for (kind, from, to, byte) in edits {
            if bytes.is_empty() {
                break;
            }
            let (from, to) = (from.index(bytes.len()), to.index(bytes.len()));
            let range = from.min(to)..from.max(to);
            match kind {
                0 => bytes[from] ^= byte,
                1 => bytes.truncate(from),
                2 => drop(bytes.drain(range)),
                3 => {
                    let copy = bytes[range].to_vec();
                    bytes.splice(from..from, copy);
                }
                _ => {
                    let token = TOKENS[usize::from(byte) % TOKENS.len()];
                    bytes.splice(from..from, token.iter().copied());
                }
            }
        }
        bytes
    })
}
