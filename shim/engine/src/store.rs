//! The state of a store, and the limits of what its guest may take.
//!
//! One [`Budget`] bounds the sum of all linear memories, tables and GC heaps of the process, over all its stores. It
//! follows the container's memory limit while the guest runs.

use std::fmt;
use std::fs::File;
use std::os::unix::fs::FileExt;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use tokio::sync::Notify;
use wasmtime::{Engine, ResourceLimiter, Store};
use wasmtime_wasi::p1::WasiP1Ctx;
use wasmtime_wasi::{WasiCtxView, WasiView};
use wasmtime_wasi_http::{WasiHttpCtx, WasiHttpCtxView, WasiHttpView};

use crate::limits::{TABLE_ELEMENT_BYTES, TABLE_ELEMENTS_MAX, guest_share_bytes, parse_limit};

/// How old a known limit may be. A guest that grows page by page would otherwise read files all the time.
const LIMIT_AGE_MAX: Duration = Duration::from_millis(10);

/// What the host keeps for one guest instance.
pub(crate) struct State {
    /// The WASI context, for modules and components alike.
    pub(crate) wasi: WasiP1Ctx,
    /// The limits, and what they refused.
    pub(crate) limiter: Limiter,
    http: WasiHttpCtx,
}

impl State {
    /// The state of a new instance that draws on `budget`.
    pub(crate) fn new(wasi: WasiP1Ctx, budget: &Arc<Budget>) -> Self {
        Self { wasi, limiter: Limiter::new(budget), http: WasiHttpCtx::new() }
    }

    /// Makes a store of this state, its limits in force and its epoch deadline out of reach.
    pub(crate) fn into_store(self, engine: &Engine) -> Store<Self> {
        let mut store = Store::new(engine, self);
        store.limiter(|state| &mut state.limiter);
        store.set_epoch_deadline(u64::MAX / 2);
        store
    }
}

impl WasiView for State {
    fn ctx(&mut self) -> WasiCtxView<'_> {
        self.wasi.ctx()
    }
}

impl WasiHttpView for State {
    fn http(&mut self) -> WasiHttpCtxView<'_> {
        WasiHttpCtxView {
            ctx: &mut self.http,
            table: self.wasi.ctx().table,
            hooks: wasmtime_wasi_http::default_hooks(),
        }
    }
}

/// The memory that the guest of this process may use, as a sum over all stores.
pub(crate) struct Budget {
    files: Vec<File>,
    known: Mutex<Option<(Instant, Option<u64>)>>,
    used_bytes: AtomicU64,
    released: Notify,
}

impl Budget {
    /// A budget under the smallest of the limits in `files`; without files it has no limit.
    pub(crate) fn new(files: Vec<File>) -> Arc<Self> {
        Arc::new(Self { files, known: Mutex::new(None), used_bytes: AtomicU64::new(0), released: Notify::new() })
    }

    /// The container's memory limit in bytes, at most 10 ms old; `None` is no limit.
    pub(crate) fn limit_bytes(&self) -> Option<u64> {
        if self.files.is_empty() {
            return None;
        }
        let mut known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        match *known {
            Some((when, limit_bytes)) if when.elapsed() < LIMIT_AGE_MAX => limit_bytes,
            _ => {
                let limit_bytes = self.files.iter().filter_map(read_limit).min();
                *known = Some((Instant::now(), limit_bytes));
                limit_bytes
            }
        }
    }

    /// Waits until some store gave memory back after this call.
    pub(crate) fn released(&self) -> impl Future<Output = ()> + use<'_> {
        self.released.notified()
    }

    fn take(&self, bytes: u64) -> Result<(), Denied> {
        let limit_bytes = self.limit_bytes();
        let guest_bytes = limit_bytes.map_or(u64::MAX, guest_share_bytes);
        self.used_bytes
            .fetch_update(Ordering::Relaxed, Ordering::Relaxed, |used| {
                used.checked_add(bytes).filter(|sum| *sum <= guest_bytes)
            })
            .map(|_| ())
            .map_err(|used_bytes| Denied::Memory {
                wanted_bytes: bytes.saturating_add(used_bytes),
                guest_bytes,
                limit_bytes: limit_bytes.unwrap_or(u64::MAX),
            })
    }

    fn give_back(&self, bytes: u64) {
        self.used_bytes.fetch_sub(bytes, Ordering::Relaxed);
        self.released.notify_one();
    }
}

fn read_limit(file: &File) -> Option<u64> {
    let mut text = [0_u8; 32];
    let length = file.read_at(&mut text, 0).ok()?;
    parse_limit(std::str::from_utf8(text.get(..length)?).ok()?)
}

/// What a guest asked for and did not get.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Denied {
    /// More memory than the container has for its guest.
    Memory {
        /// All that the guest would use.
        wanted_bytes: u64,
        /// What the limit leaves for the guest.
        guest_bytes: u64,
        /// The container's limit.
        limit_bytes: u64,
    },
    /// More table elements than any guest gets.
    Table {
        /// All table elements that the guest would use.
        wanted_elements: u64,
    },
}

impl fmt::Display for Denied {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Memory { wanted_bytes, guest_bytes, limit_bytes } => write!(
                formatter,
                "its memories and tables take {wanted_bytes} bytes, but the memory limit of {limit_bytes} bytes leaves \
                 {guest_bytes} bytes for the guest"
            ),
            Self::Table { wanted_elements } => write!(
                formatter,
                "its tables have {wanted_elements} elements, but a guest may have {TABLE_ELEMENTS_MAX}"
            ),
        }
    }
}

impl std::error::Error for Denied {}

/// What one store holds of the budget; given back when the last clone is dropped, after the store itself.
pub(crate) struct Lease {
    budget: Arc<Budget>,
    held_bytes: AtomicU64,
}

impl Lease {
    fn take(&self, bytes: u64) -> Result<(), Denied> {
        self.budget.take(bytes)?;
        self.held_bytes.fetch_add(bytes, Ordering::Relaxed);
        Ok(())
    }

    fn give_back(&self, bytes: u64) {
        self.held_bytes.fetch_sub(bytes, Ordering::Relaxed);
        self.budget.give_back(bytes);
    }
}

impl Drop for Lease {
    fn drop(&mut self) {
        self.budget.give_back(*self.held_bytes.get_mut());
    }
}

/// The limiter of one store.
pub(crate) struct Limiter {
    lease: Arc<Lease>,
    table_elements: u64,
    /// What the last growth of a memory was granted, in case that it fails.
    granted_bytes: u64,
    denied: Option<Denied>,
}

impl Limiter {
    fn new(budget: &Arc<Budget>) -> Self {
        let lease = Arc::new(Lease { budget: Arc::clone(budget), held_bytes: AtomicU64::new(0) });
        Self { lease, table_elements: 0, granted_bytes: 0, denied: None }
    }

    /// A share in the lease, so that the budget is given back only after the store is gone.
    pub(crate) fn lease(&self) -> Arc<Lease> {
        Arc::clone(&self.lease)
    }

    /// The last refusal, once.
    pub(crate) fn take_denied(&mut self) -> Option<Denied> {
        self.denied.take()
    }

    fn grow(&mut self, bytes: u64, elements: u64) -> bool {
        let wanted_elements = self.table_elements.saturating_add(elements);
        let grown = if wanted_elements > TABLE_ELEMENTS_MAX {
            Err(Denied::Table { wanted_elements })
        } else {
            self.lease.take(bytes)
        };
        match grown {
            Ok(()) => {
                self.table_elements = wanted_elements;
                true
            }
            Err(denied) => {
                self.denied = Some(denied);
                false
            }
        }
    }
}

/// How much is asked for beyond what there is; `None` where the type itself forbids it.
fn growth(current: usize, desired: usize, maximum: Option<usize>) -> Option<u64> {
    if maximum.is_some_and(|maximum| desired > maximum) {
        return None;
    }
    u64::try_from(desired.saturating_sub(current)).ok()
}

impl ResourceLimiter for Limiter {
    fn memory_growing(&mut self, current: usize, desired: usize, maximum: Option<usize>) -> wasmtime::Result<bool> {
        let bytes = growth(current, desired, maximum).filter(|bytes| self.grow(*bytes, 0));
        self.granted_bytes = bytes.unwrap_or(0);
        Ok(bytes.is_some())
    }

    // Invariant: what is granted is given back once. wasmtime calls this only after a granted growth that the system
    // refused: growth beyond a type's maximum is refused above, and page sizes other than 64 KiB are not enabled.
    fn memory_grow_failed(&mut self, _: wasmtime::Error) -> wasmtime::Result<()> {
        self.lease.give_back(std::mem::take(&mut self.granted_bytes));
        Ok(())
    }

    fn table_growing(&mut self, current: usize, desired: usize, maximum: Option<usize>) -> wasmtime::Result<bool> {
        Ok(growth(current, desired, maximum)
            .is_some_and(|elements| self.grow(elements.saturating_mul(TABLE_ELEMENT_BYTES), elements)))
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use super::*;

    const MIB: usize = 1 << 20;

    fn limited(limit: &str) -> (tempfile::NamedTempFile, Arc<Budget>) {
        let mut file = tempfile::NamedTempFile::new().unwrap();
        file.write_all(limit.as_bytes()).unwrap();
        let budget = Budget::new(vec![file.reopen().unwrap()]);
        (file, budget)
    }

    #[test]
    fn two_memories_share_one_budget() {
        let (_file, budget) = limited("67108864\n");
        let (mut first, mut second) = (Limiter::new(&budget), Limiter::new(&budget));
        assert!(first.memory_growing(0, 40 * MIB, None).unwrap());
        assert!(!second.memory_growing(0, 40 * MIB, None).unwrap());
        assert!(second.memory_growing(0, 16 * MIB, None).unwrap());
        drop(first);
        assert!(second.memory_growing(16 * MIB, 40 * MIB, None).unwrap());
    }

    #[test]
    fn a_lease_outlives_its_limiter() {
        let (_file, budget) = limited("67108864\n");
        let mut limiter = Limiter::new(&budget);
        assert!(limiter.memory_growing(0, 40 * MIB, None).unwrap());
        let lease = limiter.lease();
        drop(limiter);
        assert_eq!(budget.used_bytes.load(Ordering::Relaxed), 40 << 20);
        drop(lease);
        assert_eq!(budget.used_bytes.load(Ordering::Relaxed), 0);
    }

    #[test]
    fn the_refusal_names_its_numbers() {
        let (_file, budget) = limited("67108864\n");
        let mut limiter = Limiter::new(&budget);
        assert!(!limiter.memory_growing(0, 256 * MIB, None).unwrap());
        let denied = limiter.take_denied().unwrap();
        assert_eq!(denied, Denied::Memory { wanted_bytes: 256 << 20, guest_bytes: 62_783_488, limit_bytes: 64 << 20 });
        assert_eq!(limiter.take_denied(), None);
    }

    #[test]
    fn tables_count_by_their_elements() {
        let budget = Budget::new(Vec::new());
        let mut limiter = Limiter::new(&budget);
        assert!(limiter.table_growing(0, 9_000_000, None).unwrap());
        assert_eq!(budget.used_bytes.load(Ordering::Relaxed), 72_000_000);
        assert!(!limiter.table_growing(0, 2_000_000, None).unwrap());
        assert_eq!(limiter.take_denied(), Some(Denied::Table { wanted_elements: 11_000_000 }));
    }

    #[test]
    fn a_failed_growth_is_given_back_once() {
        let budget = Budget::new(Vec::new());
        let mut limiter = Limiter::new(&budget);
        assert!(limiter.memory_growing(0, MIB, None).unwrap());
        assert!(limiter.memory_growing(MIB, 3 * MIB, None).unwrap());
        limiter.memory_grow_failed(wasmtime::Error::msg("no mapping")).unwrap();
        limiter.memory_grow_failed(wasmtime::Error::msg("again")).unwrap();
        limiter.table_grow_failed(wasmtime::Error::msg("overflow")).unwrap();
        assert_eq!(budget.used_bytes.load(Ordering::Relaxed), 1 << 20);
        assert!(!limiter.memory_growing(MIB, 3 * MIB, Some(2 * MIB)).unwrap());
        assert_eq!(limiter.take_denied(), None);
    }

    #[test]
    fn a_changed_limit_is_seen() {
        let (mut file, budget) = limited("16777216\n");
        let mut limiter = Limiter::new(&budget);
        assert!(!limiter.memory_growing(0, 32 * MIB, None).unwrap());
        file.as_file().set_len(0).unwrap();
        std::io::Seek::rewind(&mut file).unwrap();
        file.write_all(b"max\n").unwrap();
        let deadline = Instant::now() + Duration::from_secs(10);
        while !limiter.memory_growing(0, 32 * MIB, None).unwrap() {
            assert!(Instant::now() < deadline, "the new limit was never read");
            std::thread::yield_now();
        }
    }

    #[test]
    fn concurrent_stores_never_take_more_than_there_is() {
        let (_file, budget) = limited("67108864\n");
        std::thread::scope(|scope| {
            for _ in 0..8 {
                scope.spawn(|| {
                    for _ in 0..200 {
                        let mut limiter = Limiter::new(&budget);
                        let mut size = 0;
                        while limiter.memory_growing(size, size + 64 * 1024, None).unwrap() {
                            size += 64 * 1024;
                            let used = budget.used_bytes.load(Ordering::Relaxed);
                            assert!(used <= guest_share_bytes(64 << 20), "{used}");
                            if size > 16 * MIB {
                                break;
                            }
                        }
                    }
                });
            }
        });
        assert_eq!(budget.used_bytes.load(Ordering::Relaxed), 0);
    }
}
