//! The budget: one bound on the sum of all linear memories, tables and GC heaps of the process, over all its stores. It
//! follows the container's memory limit while the guest runs.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use skiff_linux::cgroup::{parse_limit, parse_shared_memory};
use skiff_protocol::{Account, MemoryLimit};
use tokio::sync::Notify;

use crate::memory::denied::Denied;
use crate::memory::share::guest_share_bytes;

/// How old a known limit may be. A guest that grows page by page would otherwise read files all the time.
const LIMIT_AGE_MAX: Duration = Duration::from_millis(10);
/// How much of a `memory.stat` is read. It has some 60 lines.
const STAT_BYTES_MAX: usize = 8 << 10;

/// The memory that the guest of this process may use, as a sum over all stores.
pub(crate) struct Budget {
    limit: Mutex<KnownLimit>,
    /// What is used of it.
    pub(super) account: Account,
    released: Notify,
}

/// Several limits, as they were last read.
struct KnownLimit {
    levels: Vec<(MemoryLimit, Option<Room>)>,
    /// When all of them and their rooms were read.
    read_at: Option<Instant>,
    /// The smallest of them.
    bytes: Option<u64>,
    /// The one that leaves least for the guest.
    room: Option<Room>,
}

/// How new the limits must be that something is decided by.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Limits {
    /// At most [`LIMIT_AGE_MAX`] old.
    Known,
    /// Read now.
    Fresh,
}

/// A limit, and what files in memory take of it.
#[derive(Clone, Copy)]
struct Room {
    limit_bytes: u64,
    shared_bytes: u64,
}

impl Room {
    fn guest_bytes(self) -> u64 {
        guest_share_bytes(self.limit_bytes).saturating_sub(self.shared_bytes)
    }
}

impl Budget {
    /// A budget under all of `limits`, or under `fallback_bytes` if there are none. It keeps what is used in `account`.
    pub(crate) fn new(limits: Vec<MemoryLimit>, fallback_bytes: Option<u64>, account: Account) -> Arc<Self> {
        let levels: Vec<_> = limits.into_iter().map(|limit| (limit, None)).collect();
        let bytes = fallback_bytes.filter(|_| levels.is_empty());
        let room = bytes.map(|limit_bytes| Room { limit_bytes, shared_bytes: 0 });
        let limit = Mutex::new(KnownLimit { levels, read_at: None, bytes, room });
        Arc::new(Self { limit, account, released: Notify::new() })
    }

    /// The container's memory limit in bytes, at most 10 ms old; `None` if there is no limit.
    pub(crate) fn limit_bytes(&self) -> Option<u64> {
        self.known(Limits::Known).bytes
    }

    fn known(&self, limits: Limits) -> MutexGuard<'_, KnownLimit> {
        let mut guard = self.limit.lock().unwrap_or_else(PoisonError::into_inner);
        let known = &mut *guard;
        let is_old = known.read_at.is_none_or(|when| when.elapsed() >= LIMIT_AGE_MAX);
        if !known.levels.is_empty() && (is_old || limits == Limits::Fresh) {
            for (files, last) in &mut known.levels {
                // `memory.stat` costs the kernel far more than a limit.
                let shared_bytes = last.filter(|_| !is_old).map(|room| room.shared_bytes);
                // The cgroup of a file that cannot be read is gone. Its last limit stays in force.
                *last = read_room(files, shared_bytes).unwrap_or(*last);
            }
            let rooms = known.levels.iter().filter_map(|(_, last)| *last);
            known.bytes = rooms.clone().map(|room| room.limit_bytes).min();
            known.room = rooms.min_by_key(|room| room.guest_bytes());
            known.read_at = if is_old { Some(Instant::now()) } else { known.read_at };
            self.account.set_limit(known.bytes);
        }
        guard
    }

    /// Waits until [`Budget::wake_one`] is called after this call.
    pub(crate) fn released(&self) -> impl Future<Output = ()> + use<'_> {
        self.released.notified()
    }

    /// Lets one of those that wait for memory try again.
    pub(crate) fn wake_one(&self) {
        self.released.notify_one();
    }

    /// Checks that `bytes` are free. A share of less than `least_share_bytes` is too small to keep room in it.
    ///
    /// # Errors
    /// [`Denied::Memory`] if there is less than that.
    pub(crate) fn check_room(&self, bytes: u64, least_share_bytes: u64) -> Result<(), Denied> {
        let Some(room) = self.known(Limits::Known).room else { return Ok(()) };
        let Room { limit_bytes, shared_bytes } = room;
        let guest_bytes = room.guest_bytes();
        let wanted_bytes = self.account.used_bytes().saturating_add(bytes);
        if guest_bytes < least_share_bytes || wanted_bytes <= guest_bytes {
            return Ok(());
        }
        Err(Denied::Memory { wanted_bytes, guest_bytes, limit_bytes, shared_bytes })
    }

    /// Notes that the guest gave up because it ran out of memory.
    pub(crate) fn set_ran_out(&self) {
        self.account.set_ran_out();
    }

    /// Takes `bytes` for something that is not a store.
    ///
    /// # Errors
    /// [`Denied::Memory`] if there is less than that.
    pub(crate) fn lease(self: &Arc<Self>, bytes: u64) -> Result<Lease, Denied> {
        let lease = Lease::new(self);
        lease.take(bytes)?;
        Ok(lease)
    }

    fn take(&self, bytes: u64) -> Result<(), Denied> {
        // A limit that has just been raised denies nothing.
        self.take_under(Limits::Known, bytes).or_else(|_| self.take_under(Limits::Fresh, bytes))
    }

    fn take_under(&self, limits: Limits, bytes: u64) -> Result<(), Denied> {
        let unlimited = Room { limit_bytes: u64::MAX, shared_bytes: 0 };
        let room = self.known(limits).room;
        let guest_bytes = room.map_or(u64::MAX, Room::guest_bytes);
        let Room { limit_bytes, shared_bytes } = room.unwrap_or(unlimited);
        self.account.take(bytes, guest_bytes).map_err(|used_bytes| Denied::Memory {
            wanted_bytes: bytes.saturating_add(used_bytes),
            guest_bytes,
            limit_bytes,
            shared_bytes,
        })
    }

    fn give_back(&self, bytes: u64) {
        self.account.give_back(bytes);
    }
}

/// The limit in a file and what files in memory take of it, unless that is known; `None` if they cannot be read.
fn read_room(files: &MemoryLimit, shared_bytes: Option<u64>) -> Option<Option<Room>> {
    let mut text = [0_u8; STAT_BYTES_MAX];
    let Some(limit_bytes) = parse_limit(read_text(&files.limit, &mut text)?) else { return Some(None) };
    let shared_bytes = match shared_bytes {
        Some(known) => known,
        None => parse_shared_memory(read_text(&files.stat, &mut text)?),
    };
    Some(Some(Room { limit_bytes, shared_bytes }))
}

fn read_text<'a>(file: &File, text: &'a mut [u8]) -> Option<&'a str> {
    let length = file.read_at(text, 0).ok()?;
    std::str::from_utf8(text.get(..length)?).ok()
}

/// What one store holds of the budget. It is given back when the last clone is dropped, after the store itself.
pub(crate) struct Lease {
    budget: Arc<Budget>,
    held_bytes: AtomicU64,
}

impl Lease {
    /// A lease that holds nothing yet.
    pub(crate) fn new(budget: &Arc<Budget>) -> Self {
        Self { budget: Arc::clone(budget), held_bytes: AtomicU64::new(0) }
    }

    /// Takes `bytes` more.
    ///
    /// # Errors
    /// [`Denied::Memory`] if there is less than that.
    pub(crate) fn take(&self, bytes: u64) -> Result<(), Denied> {
        self.budget.take(bytes)?;
        self.held_bytes.fetch_add(bytes, Ordering::Relaxed);
        Ok(())
    }

    /// Gives back some of what it holds.
    pub(super) fn give_back(&self, bytes: u64) {
        self.held_bytes.fetch_sub(bytes, Ordering::Relaxed);
        self.budget.give_back(bytes);
    }

    /// What it holds, in bytes.
    pub(crate) fn held_bytes(&self) -> u64 {
        self.held_bytes.load(Ordering::Relaxed)
    }

    /// Counts a denied growth.
    pub(super) fn add_refusal(&self) {
        self.budget.account.add_refusal();
    }
}

impl Drop for Lease {
    fn drop(&mut self) {
        self.budget.give_back(*self.held_bytes.get_mut());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_limit_that_cannot_be_read_any_more_stays() {
        let (ours, theirs) = std::os::unix::net::UnixStream::pair().unwrap();
        let unreadable = File::from(std::os::fd::OwnedFd::from(theirs));
        let mut file = tempfile::NamedTempFile::new().unwrap();
        std::io::Write::write_all(&mut file, b"67108864\n").unwrap();
        let account = Account::keep_in(&Account::create().unwrap()).unwrap();
        let stat = File::open("/dev/null").unwrap();
        let budget = Budget::new(vec![MemoryLimit { limit: file.reopen().unwrap(), stat }], None, account);
        assert_eq!(budget.limit_bytes(), Some(64 << 20));
        budget.limit.lock().unwrap().levels[0].0.limit = unreadable;
        assert_eq!(budget.known(Limits::Fresh).bytes, Some(64 << 20));
        drop(ours);
    }

    #[test]
    fn a_refusal_reads_limits_and_not_what_files_take() {
        let put = |file: &File, text: &str| file.write_all_at(text.as_bytes(), 0).unwrap();
        let [limit, stat] = [tempfile::tempfile().unwrap(), tempfile::tempfile().unwrap()];
        let both = MemoryLimit { limit: limit.try_clone().unwrap(), stat: stat.try_clone().unwrap() };
        put(&limit, "67108864\n");
        put(&stat, "shmem 1048576\n");
        let account = Account::keep_in(&Account::create().unwrap()).unwrap();
        let budget = Budget::new(vec![both], None, account);
        let fresh = || budget.known(Limits::Fresh).room.map(|room| (room.limit_bytes, room.shared_bytes));
        assert_eq!(fresh(), Some((64 << 20, 1 << 20)));
        // What was read in the future does not grow old.
        budget.limit.lock().unwrap().read_at = Some(Instant::now() + Duration::from_secs(3600));
        put(&limit, "33554432\n");
        put(&stat, "shmem 2097152\n");
        assert_eq!(fresh(), Some((32 << 20, 1 << 20)));
        budget.limit.lock().unwrap().read_at = None;
        assert_eq!(fresh(), Some((32 << 20, 2 << 20)));
    }
}
