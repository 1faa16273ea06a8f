//! The calls of a guest's functions: how often, how long, and how many trapped, for each function by name.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

/// How many functions are counted by name. The calls of all others are counted together.
pub const FUNCTIONS_MAX: usize = 31;
/// What the functions are called that have no place of their own.
pub const OTHER_FUNCTIONS: &str = "(others)";
/// The longest name that has a place of its own, in bytes.
pub const FUNCTION_NAME_BYTES_MAX: usize = NAME_WORDS * 8;

const NAME_WORDS: usize = 12;
/// Where the figures of a function are, behind its name.
const COUNT: usize = NAME_WORDS;
const TRAPS: usize = COUNT + 1;
const TOTAL_NANOS: usize = TRAPS + 1;
const LONGEST_NANOS: usize = TOTAL_NANOS + 1;
/// The words of one function.
const SLOT: usize = LONGEST_NANOS + 1;
/// The words of all functions.
pub(super) const WORDS: usize = (FUNCTIONS_MAX + 1) * SLOT;

/// What calls of one function came to.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct CalledFunction {
    /// How often it was called.
    pub calls: u64,
    /// How many of the calls trapped.
    pub traps: u64,
    /// How long all of them took together.
    pub time: Duration,
    /// How long the longest took.
    pub longest: Duration,
}

/// The functions that were called, by name.
pub type CalledFunctions = BTreeMap<String, CalledFunction>;

/// Gives the function in `slot` its name. What does not fit is cut off.
pub(super) fn name(words: &[AtomicU64], slot: usize, name: &str) {
    for (word, bytes) in words.iter().skip(slot * SLOT).take(NAME_WORDS).zip(name.as_bytes().chunks(8)) {
        let mut padded = [0; 8];
        padded.iter_mut().zip(bytes).for_each(|(to, from)| *to = *from);
        word.store(u64::from_ne_bytes(padded), Ordering::Relaxed);
    }
}

/// Counts a call of the function in `slot`.
pub(super) fn add(words: &[AtomicU64], slot: usize, duration: Duration, trapped: bool) {
    let Some(words) = words.get(slot * SLOT..(slot + 1) * SLOT) else { return };
    let nanos = u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX);
    words[TOTAL_NANOS].fetch_add(nanos, Ordering::Relaxed);
    words[LONGEST_NANOS].fetch_max(nanos, Ordering::Relaxed);
    words[TRAPS].fetch_add(u64::from(trapped), Ordering::Relaxed);
    words[COUNT].fetch_add(1, Ordering::Relaxed);
}

/// What `words` say, which the container may have written: a name occurs once, whatever is there.
pub(super) fn read(words: &[u64]) -> CalledFunctions {
    let mut functions = CalledFunctions::new();
    for slot in words.chunks_exact(SLOT).filter(|slot| slot[COUNT] > 0) {
        let name: Vec<u8> = slot[..NAME_WORDS].iter().flat_map(|word| word.to_ne_bytes()).collect();
        let name = name.split(|byte| *byte == 0).next().unwrap_or_default();
        let function = functions.entry(String::from_utf8_lossy(name).into_owned()).or_default();
        function.calls = function.calls.saturating_add(slot[COUNT]);
        function.traps = function.traps.saturating_add(slot[TRAPS]);
        function.time = function.time.saturating_add(Duration::from_nanos(slot[TOTAL_NANOS]));
        function.longest = function.longest.max(Duration::from_nanos(slot[LONGEST_NANOS]));
    }
    functions
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn functions_are_counted_by_name_whatever_their_words_say() {
        let words: Vec<AtomicU64> = (0..WORDS).map(|_| AtomicU64::new(0)).collect();
        let now = || read(&words.iter().map(|word| word.load(Ordering::Relaxed)).collect::<Vec<_>>());
        let long = "é".repeat(FUNCTION_NAME_BYTES_MAX);
        for (slot, of) in [(0, "add"), (1, "a:b/c@1.0.0#d"), (2, "add"), (FUNCTIONS_MAX, long.as_str()), (4, "unused")]
        {
            name(&words, slot, of);
        }
        let millis = Duration::from_millis;
        for (slot, took, trapped) in
            [(0, 1, false), (0, 3, true), (1, 2, false), (2, 2, false), (FUNCTIONS_MAX, 0, false), (WORDS, 9, true)]
        {
            add(&words, slot, millis(took), trapped);
        }
        let one =
            |calls, traps, time, longest| CalledFunction { calls, traps, time: millis(time), longest: millis(longest) };
        let expected = [
            ("a:b/c@1.0.0#d".to_owned(), one(1, 0, 2, 2)),
            ("add".to_owned(), one(3, 1, 6, 3)),
            ("é".repeat(FUNCTION_NAME_BYTES_MAX / 2), one(1, 0, 0, 0)),
        ];
        assert_eq!(now(), expected.into());
        words.iter().for_each(|word| word.store(u64::MAX, Ordering::Relaxed));
        let hostile = now();
        assert_eq!(hostile.len(), 1);
        assert!(hostile.values().all(|function| function.calls == u64::MAX));
    }
}
