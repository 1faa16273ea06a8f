//! The budget: one bound on the sum of all linear memories, tables and GC heaps of the process, over all its stores. It
//! follows the container's memory limit while the guest runs.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::{Duration, Instant};

use skiff_linux::memory::trim_heap;
use skiff_protocol::{Account, MemoryLimit, Room};
use tokio::sync::Notify;
use wasmtime::PoolingAllocatorMetrics;

use crate::memory::denied::Denied;

/// How old a known limit may be. A guest that grows page by page would otherwise read files all the time.
const LIMIT_AGE_MAX: Duration = Duration::from_millis(10);
/// How much of the heap may have been given back to the budget and not to the kernel when guests take almost all there is.
const HEAP_BYTES_MAX: u64 = 1 << 20;

/// The memory that the guest of this process may use, as a sum over all stores.
pub(crate) struct Budget {
    limit: Mutex<KnownLimit>,
    /// What is used of it.
    pub(super) account: Account,
    /// What the host keeps of the guest's share.
    kept_bytes: AtomicU64,
    /// Where instances that are gone leave pages for the next ones.
    pool: OnceLock<PoolingAllocatorMetrics>,
    /// What was given back of the heap since that was last trimmed.
    freed_heap_bytes: AtomicU64,
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

impl Budget {
    /// A budget under all of `limits`, or under `fallback_bytes` if there are none. It keeps what is used in `account`.
    pub(crate) fn new(limits: Vec<MemoryLimit>, fallback_bytes: Option<u64>, account: Account) -> Arc<Self> {
        let levels: Vec<_> = limits.into_iter().map(|limit| (limit, None)).collect();
        let bytes = fallback_bytes.filter(|_| levels.is_empty());
        let room = bytes.map(|limit_bytes| Room { limit_bytes, shared_bytes: 0 });
        let limit = Mutex::new(KnownLimit { levels, read_at: None, bytes, room });
        Arc::new(Self {
            limit,
            account,
            kept_bytes: AtomicU64::new(0),
            pool: OnceLock::new(),
            freed_heap_bytes: AtomicU64::new(0),
            released: Notify::new(),
        })
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
                *last = files.room(shared_bytes).unwrap_or(*last);
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
        let guest_bytes = self.guest_bytes(Some(room));
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
        let guest_bytes = self.guest_bytes(room);
        let Room { limit_bytes, shared_bytes } = room.unwrap_or(unlimited);
        self.account.take(bytes, guest_bytes).map_err(|used_bytes| Denied::Memory {
            wanted_bytes: bytes.saturating_add(used_bytes),
            guest_bytes,
            limit_bytes,
            shared_bytes,
        })
    }

    /// Keeps some of the guest's share for the host from now on.
    pub(crate) fn keep(&self, bytes: u64) {
        self.kept_bytes.fetch_add(bytes, Ordering::Relaxed);
    }

    /// Counts from now on what stays resident in this pool while no instance uses it.
    pub(crate) fn count_pool(&self, pool: PoolingAllocatorMetrics) {
        // There is one pool.
        let _counted = self.pool.set(pool);
    }

    fn guest_bytes(&self, room: Option<Room>) -> u64 {
        let Some(room) = room else { return u64::MAX };
        let kept_bytes = self.kept_bytes.load(Ordering::Relaxed);
        let idle_bytes = self.pool.get().map_or(0, |pool| pool.unused_memory_bytes_resident() as u64);
        // Under a limit that was lowered by far it may be more than all, and instances are what makes use of it again.
        let idle_bytes = idle_bytes.min(room.guest_bytes() / 2);
        room.guest_bytes().saturating_sub(kept_bytes.saturating_add(idle_bytes))
    }

    fn give_back(&self, bytes: u64) {
        self.account.give_back(bytes);
    }

    /// Gives free pages of the heap back to the kernel, if a guest may be about to use as much memory as they take.
    fn trim_heap(&self) {
        if self.freed_heap_bytes.load(Ordering::Relaxed) < HEAP_BYTES_MAX {
            return;
        }
        let guest_bytes = self.guest_bytes(self.known(Limits::Known).room);
        if self.account.used_bytes() > guest_bytes / 4 * 3 {
            self.freed_heap_bytes.store(0, Ordering::Relaxed);
            trim_heap();
        }
    }
}

/// What one store holds of the budget, or something else on the heap. It is given back when the last clone is dropped, after the
/// store itself.
pub(crate) struct Lease {
    budget: Arc<Budget>,
    held_bytes: AtomicU64,
    is_of_store: bool,
}

impl Lease {
    /// A lease for something that is not a store. It holds nothing yet.
    pub(crate) fn new(budget: &Arc<Budget>) -> Self {
        Self::of(budget, false)
    }

    /// A lease for a store. It holds nothing yet.
    pub(super) fn of_store(budget: &Arc<Budget>) -> Self {
        Self::of(budget, true)
    }

    fn of(budget: &Arc<Budget>, is_of_store: bool) -> Self {
        Self { budget: Arc::clone(budget), held_bytes: AtomicU64::new(0), is_of_store }
    }

    /// Takes `bytes` more.
    ///
    /// # Errors
    /// [`Denied::Memory`] if there is less than that.
    pub(crate) fn take(&self, bytes: u64) -> Result<(), Denied> {
        self.budget.take(bytes)?;
        self.held_bytes.fetch_add(bytes, Ordering::Relaxed);
        if self.is_of_store {
            self.budget.trim_heap();
        }
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
        let held_bytes = *self.held_bytes.get_mut();
        if !self.is_of_store {
            self.budget.freed_heap_bytes.fetch_add(held_bytes, Ordering::Relaxed);
        }
        self.budget.give_back(held_bytes);
    }
}

#[cfg(test)]
mod tests {
    use std::fs::File;
    use std::os::unix::fs::FileExt;

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
    fn what_the_host_keeps_is_not_the_guests() {
        let account = Account::keep_in(&Account::create().unwrap()).unwrap();
        let budget = Budget::new(Vec::new(), Some(64 << 20), account);
        let share_bytes = skiff_protocol::guest_share_bytes(64 << 20);
        budget.keep(1 << 20);
        assert!(budget.lease(share_bytes).is_err() && budget.check_room(share_bytes, 0).is_err());
        assert!(budget.lease(share_bytes - (1 << 20)).is_ok());
    }

    #[test]
    fn the_heap_is_trimmed_when_guests_may_need_what_was_given_back() {
        let account = Account::keep_in(&Account::create().unwrap()).unwrap();
        let budget = Budget::new(Vec::new(), Some(64 << 20), account);
        let freed = || budget.freed_heap_bytes.load(Ordering::Relaxed);
        drop(budget.lease(HEAP_BYTES_MAX).unwrap());
        let store = Lease::of_store(&budget);
        store.take(32 << 20).unwrap();
        assert_eq!(freed(), HEAP_BYTES_MAX, "there is enough besides");
        drop(budget.lease(HEAP_BYTES_MAX).unwrap());
        store.take(16 << 20).unwrap();
        assert_eq!(freed(), 0);
        drop(store);
        assert_eq!(freed(), 0, "a store is not on the heap");
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
