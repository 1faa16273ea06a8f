//! The places of a container's processes in its account: what each of them takes of the container's memory. The sum of all is what
//! the limit is compared with, and a process that was killed leaves nothing but its own place, which the shim empties.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::sync::atomic::{AtomicU64, Ordering};

/// How many processes of a container have a place at once: the guest's engine, and a hundred beside it.
pub const PLACES: usize = 101;

/// The words of all places.
pub(super) const WORDS: usize = 2 * PLACES;

/// How often memory is tried to be taken while others take some at the same moment.
const TRIES_MAX: usize = 1000;

/// The words of the places: first what each takes, in bytes, and then how many instances are alive in each.
pub(super) struct Places<'a>(pub(super) &'a [AtomicU64]);

impl Places<'_> {
    /// What all processes take together, in bytes.
    pub(super) fn used_bytes(&self) -> u64 {
        sum(self.0.iter().take(PLACES).map(|word| word.load(Ordering::SeqCst)))
    }

    /// How many bytes the process in `place` takes.
    fn used_in(&self, place: usize) -> Option<&AtomicU64> {
        self.0.get(..PLACES)?.get(place)
    }

    /// How many bytes each process takes that is not in `place`.
    fn used_in_others(&self, place: usize) -> impl Iterator<Item = u64> {
        let words = self.0.iter().take(PLACES).enumerate();
        words.filter(move |(other, _)| *other != place).map(|(_, word)| word.load(Ordering::SeqCst))
    }

    /// How many instances are alive in the process in `place`.
    pub(super) fn instances_in(&self, place: usize) -> Option<&AtomicU64> {
        self.0.get(PLACES..)?.get(place)
    }

    /// Adds `bytes` to what the process in `place` takes, and returns the sum of all.
    ///
    /// # Errors
    /// The present sum, when with `bytes` it would exceed `max_bytes`. Then nothing is added.
    pub(super) fn take(&self, place: usize, bytes: u64, max_bytes: u64) -> Result<u64, u64> {
        let fits = |used: u64| used.checked_add(bytes).is_some_and(|sum| sum <= max_bytes);
        let own = self.used_in(place).ok_or_else(|| self.used_bytes())?;
        for _ in 0..TRIES_MAX {
            // Nothing is added before it fits, so that what is denied to one is never missed by another.
            let before = own.load(Ordering::SeqCst);
            let used = sum([before].into_iter().chain(self.used_in_others(place)));
            let Some(after) = before.checked_add(bytes).filter(|_| fits(used)) else { return Err(used) };
            if own.compare_exchange(before, after, Ordering::SeqCst, Ordering::SeqCst).is_err() {
                continue;
            }
            let used = sum([after].into_iter().chain(self.used_in_others(place)));
            if used <= max_bytes {
                return Ok(used);
            }
            // Another process has taken some meanwhile, or takes it back like this.
            own.fetch_sub(bytes, Ordering::SeqCst);
            std::thread::yield_now();
        }
        Err(self.used_bytes())
    }

    /// Subtracts `bytes` from what the process in `place` takes.
    pub(super) fn give_back(&self, place: usize, bytes: u64) {
        if let Some(own) = self.used_in(place) {
            own.fetch_sub(bytes, Ordering::SeqCst);
        }
    }
}

/// What `words` of all places say in sum: the bytes that are taken, and the instances that are alive.
pub(super) fn sums(words: &[u64]) -> (u64, u64) {
    let (used, instances) = words.split_at(words.len().min(PLACES));
    (sum(used.iter().copied()), sum(instances.iter().copied()))
}

/// The container can write anything there.
fn sum(words: impl Iterator<Item = u64>) -> u64 {
    words.fold(0, u64::saturating_add)
}

/// Writes that the process in `place` of the account in `file`, which does not run, takes `bytes` and has no instances.
///
/// # Errors
/// Those of `pwrite(2)`; `InvalidInput` for a place that there is not.
pub(super) fn set(file: &File, first: usize, place: usize, bytes: u64) -> io::Result<()> {
    if place >= PLACES {
        return Err(io::Error::new(io::ErrorKind::InvalidInput, "the account has no such place"));
    }
    for (word, value) in [(first + PLACES + place, 0), (first + place, bytes)] {
        file.write_all_at(&value.to_ne_bytes(), word as u64 * 8)?;
    }
    Ok(())
}
