//! The places of the processes that run beside a wasm container's guest: in its account, and so in its memory.

use std::fs::File;
use std::sync::{Arc, Mutex, PoisonError};

use skiff_protocol::{Account, FURTHER_PROCESS_BYTES, Figures, MemoryLimit, PLACES, Room, bytes_and_mi};

use crate::error::{Context, Error, Kind, Result};

/// The places of one container. That of the guest, the first, is never free.
pub(super) struct Places {
    account: Arc<File>,
    are_taken: Mutex<[bool; PLACES]>,
}

/// A place; emptied and given back when it is dropped, which must not be before its process has ended.
pub(super) struct Place {
    places: Arc<Places>,
    index: usize,
}

impl Places {
    /// The places in `account`.
    pub(super) fn new(account: Arc<File>) -> Arc<Self> {
        let mut are_taken = [false; PLACES];
        are_taken[0] = true;
        Arc::new(Self { account, are_taken: Mutex::new(are_taken) })
    }

    /// Takes a place, and memory for a process under all of `limits`.
    ///
    /// # Errors
    /// `Conflict` if no place is free; `Invalid` if the guest has left no memory.
    pub(super) fn take(self: &Arc<Self>, limits: &[MemoryLimit]) -> Result<Place> {
        let place = self.claim().ok_or_else(|| {
            let count = PLACES - 1;
            Error::new(
                Kind::Conflict,
                format!("{count} processes run beside the guest already: wait until one has ended"),
            )
        })?;
        let rooms = limits.iter().filter_map(|limit| limit.room(None).flatten());
        let room = rooms.min_by_key(|room| room.guest_bytes());
        // Compared before it is kept: the guest's own growth must not be refused for a process that is refused anyway.
        self.check(room, FURTHER_PROCESS_BYTES)?;
        Account::set_place(&self.account, place.index, FURTHER_PROCESS_BYTES).doing(keeping)?;
        self.check(room, 0)?;
        Ok(place)
    }

    /// Checks that there is `room` for what all processes take and for `more_bytes`.
    fn check(&self, room: Option<Room>, more_bytes: u64) -> Result<()> {
        let used_bytes = Figures::read(&self.account).doing(keeping)?.linear_memory_bytes.saturating_add(more_bytes);
        match room {
            Some(room) if used_bytes > room.guest_bytes() => Err(Error::invalid(too_full(room, used_bytes))),
            _ => Ok(()),
        }
    }

    fn claim(self: &Arc<Self>) -> Option<Place> {
        let mut are_taken = self.are_taken.lock().unwrap_or_else(PoisonError::into_inner);
        let index = are_taken.iter().position(|is_taken| !is_taken)?;
        are_taken[index] = true;
        Some(Place { places: self.clone(), index })
    }
}

fn keeping() -> String {
    "cannot keep memory for the process".into()
}

fn too_full(room: Room, used_bytes: u64) -> String {
    format!(
        "there is no memory for another process in the container: it needs {}, and of the {} that the limit of {} leaves for guests \
         {} are in use: raise the limit",
        bytes_and_mi(FURTHER_PROCESS_BYTES),
        bytes_and_mi(room.guest_bytes()),
        bytes_and_mi(room.limit_bytes),
        bytes_and_mi(used_bytes.saturating_sub(FURTHER_PROCESS_BYTES)),
    )
}

impl Place {
    /// Its number in the account.
    pub(super) fn index(&self) -> usize {
        self.index
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        if let Err(error) = Account::set_place(&self.places.account, self.index, 0) {
            log::warn!("cannot empty a place in the account of a container: {error}");
        }
        self.places.are_taken.lock().unwrap_or_else(PoisonError::into_inner)[self.index] = false;
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use super::*;

    const MIB: u64 = 1 << 20;

    fn limit(bytes: u64) -> (tempfile::NamedTempFile, MemoryLimit) {
        let mut file = tempfile::NamedTempFile::new().unwrap();
        writeln!(file, "{bytes}").unwrap();
        let limit = MemoryLimit { limit: file.reopen().unwrap(), stat: File::open("/dev/null").unwrap() };
        (file, limit)
    }

    #[test]
    fn a_hundred_processes_have_a_place_and_the_next_one_after_one_has_ended() {
        let account = Arc::new(Account::create().unwrap());
        let kept = Account::keep_in(&account).unwrap();
        let places = Places::new(account);
        let mut taken: Vec<_> = (1..PLACES).map(|_| places.take(&[]).unwrap()).collect();
        assert_eq!(kept.used_bytes(), 100 * FURTHER_PROCESS_BYTES);
        let error = places.take(&[]).map(drop).unwrap_err();
        assert_eq!(error.to_string(), "100 processes run beside the guest already: wait until one has ended");
        let ended = taken.swap_remove(7).index();
        assert_eq!(kept.used_bytes(), 99 * FURTHER_PROCESS_BYTES);
        assert_eq!(places.take(&[]).unwrap().index(), ended);
    }

    #[test]
    fn a_process_is_refused_where_the_guest_has_left_no_memory_for_it() {
        let account = Arc::new(Account::create().unwrap());
        let kept = Account::keep_in(&account).unwrap();
        let places = Places::new(account);
        let ((_wide, wide), (_narrow, narrow)) = (limit(1 << 30), limit(32 * MIB));
        let limits = [wide, narrow];
        drop(places.take(&limits).unwrap());
        kept.take(27 * MIB, u64::MAX).unwrap();
        let sentence = places.take(&limits).map(drop).unwrap_err().to_string();
        for part in ["no memory for another process", "(4Mi)", "32Mi", "27Mi"] {
            assert!(sentence.contains(part), "{part}: {sentence}");
        }
        assert_eq!(kept.used_bytes(), 27 * MIB);
    }
}
