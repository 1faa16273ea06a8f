//! Counts in files of `KEY VALUE` lines, such as `memory.events` and, on v1, `memory.oom_control`.

/// The number in the line `key` of `text`.
pub fn count_in(text: &str, key: &str) -> Option<u64> {
    let mut lines = text.lines().filter_map(|line| line.split_once(' '));
    lines.find_map(|(name, value)| value.trim().parse().ok().filter(|_| name == key))
}

/// How many processes the kernel killed because memory ran out.
pub fn oom_kills_in(text: &str) -> Option<u64> {
    count_in(text, "oom_kill")
}
