//! The budget: one bound on the sum of all linear memories, tables and GC heaps of the process, over all its stores. It
//! follows the container's memory limit while the guest runs.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use skiff_linux::cgroup::parse_limit;
use skiff_protocol::Account;
use tokio::sync::Notify;

use crate::memory::denied::Denied;
use crate::memory::share::guest_share_bytes;

/// How old a known limit may be. A guest that grows page by page would otherwise read files all the time.
const LIMIT_AGE_MAX: Duration = Duration::from_millis(10);

/// The memory that the guest of this process may use, as a sum over all stores.
pub(crate) struct Budget {
    limit: Mutex<KnownLimit>,
    /// What is used of it.
    pub(super) account: Account,
    released: Notify,
}

/// The smallest of several limits, as they were last read.
struct KnownLimit {
    files: Vec<(File, Option<u64>)>,
    read_at: Option<Instant>,
    bytes: Option<u64>,
}

impl Budget {
    /// A budget under the smallest of the limits in `files`, or under `fallback_bytes` if there are no files. It keeps what
    /// is used in `account`.
    pub(crate) fn new(files: Vec<File>, fallback_bytes: Option<u64>, account: Account) -> Arc<Self> {
        let files: Vec<_> = files.into_iter().map(|file| (file, None)).collect();
        let bytes = fallback_bytes.filter(|_| files.is_empty());
        let limit = Mutex::new(KnownLimit { files, read_at: None, bytes });
        Arc::new(Self { limit, account, released: Notify::new() })
    }

    /// The container's memory limit in bytes, at most 10 ms old; `None` if there is no limit.
    pub(crate) fn limit_bytes(&self) -> Option<u64> {
        self.limit_younger_than(LIMIT_AGE_MAX)
    }

    fn limit_younger_than(&self, age: Duration) -> Option<u64> {
        let mut known = self.limit.lock().unwrap_or_else(PoisonError::into_inner);
        if !known.files.is_empty() && known.read_at.is_none_or(|when| when.elapsed() >= age) {
            for (file, last) in &mut known.files {
                // The cgroup of a file that cannot be read is gone. Its last limit stays in force.
                *last = read_limit(file).unwrap_or(*last);
            }
            known.bytes = known.files.iter().filter_map(|(_, last)| *last).min();
            known.read_at = Some(Instant::now());
            self.account.set_limit(known.bytes);
        }
        known.bytes
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
        let Some(limit_bytes) = self.limit_bytes() else { return Ok(()) };
        let guest_bytes = guest_share_bytes(limit_bytes);
        let wanted_bytes = self.account.used_bytes().saturating_add(bytes);
        if guest_bytes < least_share_bytes || wanted_bytes <= guest_bytes {
            return Ok(());
        }
        Err(Denied::Memory { wanted_bytes, guest_bytes, limit_bytes })
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
        self.take_under(bytes, self.limit_bytes())
            .or_else(|_| self.take_under(bytes, self.limit_younger_than(Duration::ZERO)))
    }

    fn take_under(&self, bytes: u64, limit_bytes: Option<u64>) -> Result<(), Denied> {
        let guest_bytes = limit_bytes.map_or(u64::MAX, guest_share_bytes);
        self.account.take(bytes, guest_bytes).map_err(|used_bytes| Denied::Memory {
            wanted_bytes: bytes.saturating_add(used_bytes),
            guest_bytes,
            limit_bytes: limit_bytes.unwrap_or(u64::MAX),
        })
    }

    fn give_back(&self, bytes: u64) {
        self.account.give_back(bytes);
    }
}

/// The limit in a file; `None` if it cannot be read.
fn read_limit(file: &File) -> Option<Option<u64>> {
    let mut text = [0_u8; 32];
    let length = file.read_at(&mut text, 0).ok()?;
    Some(parse_limit(std::str::from_utf8(text.get(..length)?).ok()?))
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
        let budget = Budget::new(vec![file.reopen().unwrap()], None, account);
        assert_eq!(budget.limit_bytes(), Some(64 << 20));
        budget.limit.lock().unwrap().files[0].0 = unreadable;
        assert_eq!(budget.limit_younger_than(Duration::ZERO), Some(64 << 20));
        drop(ours);
    }
}
