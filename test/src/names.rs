//! Random names, so that tests can run side by side.

use std::hash::{BuildHasher, RandomState};

/// A random word, by which everything that a test named with it is found.
pub(crate) fn token() -> String {
    // Each state has random keys of its own.
    format!("{:010x}", RandomState::new().hash_one(()) & 0xff_ffff_ffff)
}

/// `prefix` and a random word.
pub fn random_name(prefix: &str) -> String {
    format!("{prefix}-{}", token())
}
