//! Who can change a directory, or replace it, judged step by step from `/`: for places from which root runs what it finds.

use std::fs::Metadata;
use std::os::unix::fs::MetadataExt;

/// Which step of a path is judged.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Step {
    /// One on the way. If it is sticky, others cannot replace what belongs to its owner, and the next step checks that it does.
    Way,
    /// The directory itself: nobody else may add to it.
    Last,
}

/// Why a step of a path is not in safe hands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Distrust {
    /// It belongs to this user.
    Owner(u32),
    /// Users other than its owner can write to it; its mode.
    Writable(u32),
}

/// Why what `lstat(2)` described cannot be trusted by `owners`; `None` when it can.
pub fn distrust(metadata: &Metadata, step: Step, owners: &[u32]) -> Option<Distrust> {
    let mode = metadata.mode() & 0o7777;
    if !owners.contains(&metadata.uid()) {
        return Some(Distrust::Owner(metadata.uid()));
    }
    let is_kept = mode & libc::S_ISVTX != 0 && step == Step::Way;
    (!metadata.is_symlink() && mode & 0o022 != 0 && !is_kept).then_some(Distrust::Writable(mode))
}
