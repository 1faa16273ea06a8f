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

use nix::time::{ClockId, clock_gettime};
use skiff_protocol::{Account, Limits, parse_limit};
use tokio::sync::Notify;
use wasmtime::{Engine, ResourceLimiter, Store};
use wasmtime_wasi::p1::WasiP1Ctx;
use wasmtime_wasi::{WasiCtxView, WasiView};
use wasmtime_wasi_http::{WasiHttpCtx, WasiHttpCtxView, WasiHttpView};

use crate::limits::{TABLE_ELEMENT_BYTES, guest_share_bytes};
use crate::names::Resolver;
use crate::outgoing::Outgoing;

/// How old a known limit may be. A guest that grows page by page would otherwise read files all the time.
const LIMIT_AGE_MAX: Duration = Duration::from_millis(10);
/// How much processor time a guest may use between a refusal and giving up because of it.
const GIVES_UP_WITHIN: Duration = Duration::from_secs(1);
const PAGE_BYTES: usize = 64 << 10;

/// What the host keeps for one guest instance.
pub(crate) struct State {
    /// The WASI context, for modules and components alike.
    pub(crate) wasi: WasiP1Ctx,
    /// The limits, and what they refused.
    pub(crate) limiter: Limiter,
    /// What looks names up.
    pub(crate) resolver: Arc<Resolver>,
    http: WasiHttpCtx,
    outgoing: Outgoing,
}

impl State {
    /// The state of a new instance that draws on `budget`.
    ///
    /// # Errors
    /// When the budget has no room for a stack that is larger than usual.
    pub(crate) fn new(
        wasi: WasiP1Ctx,
        budget: &Arc<Budget>,
        limits: &Limits,
        resolver: &Arc<Resolver>,
    ) -> Result<Self, Denied> {
        let limiter = Limiter::new(budget, limits);
        let usual_bytes = Limits::default().stack_bytes;
        limiter.lease.take(limits.stack_bytes.saturating_sub(usual_bytes) as u64)?;
        let outgoing = Outgoing(Arc::clone(resolver));
        Ok(Self { wasi, limiter, resolver: Arc::clone(resolver), http: WasiHttpCtx::new(), outgoing })
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
        WasiHttpCtxView { ctx: &mut self.http, table: self.wasi.ctx().table, hooks: &mut self.outgoing }
    }
}

/// The memory that the guest of this process may use, as a sum over all stores.
pub(crate) struct Budget {
    limit: Mutex<KnownLimit>,
    account: Account,
    released: Notify,
}

/// The smallest of several limits, as it was read last.
struct KnownLimit {
    files: Vec<(File, Option<u64>)>,
    read_at: Option<Instant>,
    bytes: Option<u64>,
}

impl Budget {
    /// A budget under the smallest of the limits in `files`, and under `fallback_bytes` without files. What is used of it
    /// stands in `account`.
    pub(crate) fn new(files: Vec<File>, fallback_bytes: Option<u64>, account: Account) -> Arc<Self> {
        let files: Vec<_> = files.into_iter().map(|file| (file, None)).collect();
        let bytes = fallback_bytes.filter(|_| files.is_empty());
        let limit = Mutex::new(KnownLimit { files, read_at: None, bytes });
        Arc::new(Self { limit, account, released: Notify::new() })
    }

    /// The container's memory limit in bytes, at most 10 ms old; `None` is no limit.
    pub(crate) fn limit_bytes(&self) -> Option<u64> {
        self.limit_younger_than(LIMIT_AGE_MAX)
    }

    fn limit_younger_than(&self, age: Duration) -> Option<u64> {
        let mut known = self.limit.lock().unwrap_or_else(PoisonError::into_inner);
        if !known.files.is_empty() && known.read_at.is_none_or(|when| when.elapsed() >= age) {
            for (file, last) in &mut known.files {
                // The cgroup of a file that cannot be read is gone: its limit stays what it was.
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

    /// Lets one of those who wait for memory try again.
    pub(crate) fn wake_one(&self) {
        self.released.notify_one();
    }

    /// Notes that the guest gave up for want of memory.
    pub(crate) fn set_ran_out(&self) {
        self.account.set_ran_out();
    }

    fn take(&self, bytes: u64) -> Result<(), Denied> {
        // Nothing is refused on account of a limit that has just been raised.
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

/// The limit in a file; `None` when it cannot be read.
fn read_limit(file: &File) -> Option<Option<u64>> {
    let mut text = [0_u8; 32];
    let length = file.read_at(&mut text, 0).ok()?;
    Some(parse_limit(std::str::from_utf8(text.get(..length)?).ok()?))
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
    /// A linear memory of more pages than one may have.
    Pages {
        /// The pages that it would have.
        wanted_pages: u64,
        /// The pages that it may have.
        max_pages: u64,
    },
    /// More table elements than the guest may have.
    Table {
        /// All table elements that the guest would use.
        wanted_elements: u64,
        /// What it may use.
        max_elements: u64,
    },
}

impl fmt::Display for Denied {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Memory { wanted_bytes, guest_bytes, limit_bytes } => write!(
                formatter,
                "its memories and tables would take {wanted_bytes} bytes, but the memory limit of {limit_bytes} bytes \
                 leaves {guest_bytes} bytes for the guest"
            ),
            Self::Pages { wanted_pages, max_pages } => write!(
                formatter,
                "a memory would have {wanted_pages} pages, but the limit `memory-pages` is {max_pages}"
            ),
            Self::Table { wanted_elements, max_elements } => write!(
                formatter,
                "its tables would have {wanted_elements} elements, but the limit `table-elements` is {max_elements}"
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
    limits: Limits,
    table_elements: u64,
    /// What the last growth of a memory was granted, in case that it fails.
    granted_bytes: u64,
    refusal: Option<Refusal>,
}

/// A growth that was refused, and none was granted since.
struct Refusal {
    denied: Denied,
    /// The processor time of this process until then.
    at: Duration,
}

impl Limiter {
    fn new(budget: &Arc<Budget>, limits: &Limits) -> Self {
        let lease = Arc::new(Lease { budget: Arc::clone(budget), held_bytes: AtomicU64::new(0) });
        Self { lease, limits: limits.clone(), table_elements: 0, granted_bytes: 0, refusal: None }
    }

    /// A share in the lease, so that the budget is given back only after the store is gone.
    pub(crate) fn lease(&self) -> Arc<Lease> {
        Arc::clone(&self.lease)
    }

    /// The refusal of the last growth.
    pub(crate) fn denied(&self) -> Option<&Denied> {
        self.refusal.as_ref().map(|refusal| &refusal.denied)
    }

    /// The same, as long as a guest that gives up may be taken to do so because of it.
    pub(crate) fn denied_just_now(&self) -> Option<&Denied> {
        let refusal = self.refusal.as_ref()?;
        (processor_time().saturating_sub(refusal.at) < GIVES_UP_WITHIN).then_some(&refusal.denied)
    }

    fn grow(&mut self, bytes: u64, elements: u64) -> bool {
        // A growth by nothing asks for the size; it is granted whatever has become of the limit.
        if bytes == 0 {
            return true;
        }
        let wanted_elements = self.table_elements.saturating_add(elements);
        let max_elements = self.limits.table_elements;
        let grown = if wanted_elements > max_elements {
            Err(Denied::Table { wanted_elements, max_elements })
        } else {
            self.lease.take(bytes)
        };
        match grown {
            Ok(()) => {
                self.table_elements = wanted_elements;
                self.refusal = None;
                true
            }
            Err(denied) => {
                self.refuse(denied);
                false
            }
        }
    }

    fn refuse(&mut self, denied: Denied) {
        self.lease.budget.account.add_refusal();
        self.refusal = Some(Refusal { denied, at: processor_time() });
    }
}

/// The processor time that this process has used.
fn processor_time() -> Duration {
    clock_gettime(ClockId::CLOCK_PROCESS_CPUTIME_ID).map_or(Duration::ZERO, Duration::from)
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
        self.granted_bytes = 0;
        let wanted_pages = desired.div_ceil(PAGE_BYTES) as u64;
        if let Some(max_pages) = self.limits.memory_pages.filter(|max| wanted_pages > *max) {
            self.refuse(Denied::Pages { wanted_pages, max_pages });
            return Ok(false);
        }
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

    fn instances(&self) -> usize {
        self.limits.instances
    }

    fn memories(&self) -> usize {
        self.limits.memories
    }

    fn tables(&self) -> usize {
        self.limits.tables
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use proptest::collection::vec;
    use proptest::prelude::{Just, ProptestConfig, Strategy, prop_assert_eq, prop_oneof, proptest};

    use super::*;

    const MIB: usize = 1 << 20;

    fn account() -> Account {
        Account::keep_in(&Account::create().unwrap()).unwrap()
    }

    fn limited(limit: &str) -> (tempfile::NamedTempFile, Arc<Budget>) {
        let mut file = tempfile::NamedTempFile::new().unwrap();
        file.write_all(limit.as_bytes()).unwrap();
        let budget = Budget::new(vec![file.reopen().unwrap()], Some(1), account());
        (file, budget)
    }

    fn limiter(budget: &Arc<Budget>) -> Limiter {
        Limiter::new(budget, &Limits::default())
    }

    #[test]
    fn two_memories_share_one_budget() {
        let (_file, budget) = limited("67108864\n");
        let (mut first, mut second) = (limiter(&budget), limiter(&budget));
        assert!(first.memory_growing(0, 40 * MIB, None).unwrap());
        assert!(!second.memory_growing(0, 40 * MIB, None).unwrap());
        assert!(second.memory_growing(0, 16 * MIB, None).unwrap());
        drop(first);
        assert!(second.memory_growing(16 * MIB, 40 * MIB, None).unwrap());
    }

    #[test]
    fn a_lease_outlives_its_limiter() {
        let (_file, budget) = limited("67108864\n");
        let mut limiter = limiter(&budget);
        assert!(limiter.memory_growing(0, 40 * MIB, None).unwrap());
        let lease = limiter.lease();
        drop(limiter);
        assert_eq!(budget.account.used_bytes(), 40 << 20);
        drop(lease);
        assert_eq!(budget.account.used_bytes(), 0);
    }

    #[test]
    fn the_refusal_names_its_numbers() {
        let (_file, budget) = limited("67108864\n");
        let mut limiter = limiter(&budget);
        assert!(!limiter.memory_growing(0, 256 * MIB, None).unwrap());
        let denied = Denied::Memory { wanted_bytes: 256 << 20, guest_bytes: 62_783_488, limit_bytes: 64 << 20 };
        assert_eq!(limiter.denied(), Some(&denied));
        assert_eq!(limiter.denied_just_now(), Some(&denied));
        assert!(limiter.memory_growing(0, MIB, None).unwrap());
        assert_eq!(limiter.denied(), None, "a guest that goes on with less has handled it");
    }

    #[test]
    fn tables_count_by_their_elements() {
        let budget = Budget::new(Vec::new(), None, account());
        let mut limiter = limiter(&budget);
        assert!(limiter.table_growing(0, 9_000_000, None).unwrap());
        assert_eq!(budget.account.used_bytes(), 72_000_000);
        assert!(!limiter.table_growing(0, 2_000_000, None).unwrap());
        assert_eq!(limiter.denied(), Some(&Denied::Table { wanted_elements: 11_000_000, max_elements: 10_000_000 }));
    }

    #[test]
    fn a_failed_growth_is_given_back_once() {
        let budget = Budget::new(Vec::new(), None, account());
        let mut limiter = limiter(&budget);
        assert!(limiter.memory_growing(0, MIB, None).unwrap());
        assert!(limiter.memory_growing(MIB, 3 * MIB, None).unwrap());
        limiter.memory_grow_failed(wasmtime::Error::msg("no mapping")).unwrap();
        limiter.memory_grow_failed(wasmtime::Error::msg("again")).unwrap();
        limiter.table_grow_failed(wasmtime::Error::msg("overflow")).unwrap();
        assert_eq!(budget.account.used_bytes(), 1 << 20);
        assert!(!limiter.memory_growing(MIB, 3 * MIB, Some(2 * MIB)).unwrap());
        assert_eq!(limiter.denied(), None);
    }

    #[test]
    fn a_changed_limit_is_seen() {
        let (mut file, budget) = limited("16777216\n");
        let mut limiter = limiter(&budget);
        assert!(!limiter.memory_growing(0, 32 * MIB, None).unwrap());
        file.as_file().set_len(0).unwrap();
        std::io::Seek::rewind(&mut file).unwrap();
        file.write_all(b"max\n").unwrap();
        assert!(limiter.memory_growing(0, 32 * MIB, None).unwrap(), "nothing is refused under a limit of before");
    }

    #[test]
    fn a_limit_that_cannot_be_read_any_more_stays() {
        let (ours, theirs) = std::os::unix::net::UnixStream::pair().unwrap();
        let unreadable = File::from(std::os::fd::OwnedFd::from(theirs));
        let (file, _) = limited("67108864\n");
        let budget = Budget::new(vec![file.reopen().unwrap()], None, account());
        assert_eq!(budget.limit_bytes(), Some(64 << 20));
        budget.limit.lock().unwrap().files[0].0 = unreadable;
        assert_eq!(budget.limit_younger_than(Duration::ZERO), Some(64 << 20));
        drop(ours);
    }

    #[test]
    fn without_files_the_specification_says_the_limit() {
        let budget = Budget::new(Vec::new(), Some(16 << 20), account());
        assert!(!limiter(&budget).memory_growing(0, 13 * MIB, None).unwrap());
    }

    #[test]
    fn a_memory_has_no_more_pages_than_it_may() {
        let budget = Budget::new(Vec::new(), None, account());
        let mut limiter = Limiter::new(&budget, &Limits { memory_pages: Some(16), ..Limits::default() });
        assert!(limiter.memory_growing(0, MIB, None).unwrap());
        assert!(!limiter.memory_growing(MIB, MIB + 1, None).unwrap());
        assert_eq!(limiter.denied(), Some(&Denied::Pages { wanted_pages: 17, max_pages: 16 }));
        limiter.memory_grow_failed(wasmtime::Error::msg("of the last one")).unwrap();
        assert_eq!(budget.account.used_bytes(), 1 << 20);
    }

    /// What a store of the property test does next.
    #[derive(Clone, Debug)]
    enum Step {
        GrowMemory(usize),
        FailGrowth,
        GrowTable(usize),
        Drop,
        Limit(u64),
    }

    fn step() -> impl Strategy<Value = Step> {
        prop_oneof![
            (1..8 * MIB).prop_map(Step::GrowMemory),
            Just(Step::FailGrowth),
            (1..100_000_usize).prop_map(Step::GrowTable),
            Just(Step::Drop),
            (8 * MIB as u64..64 * MIB as u64).prop_map(Step::Limit),
        ]
    }

    /// One store's life: its limiter, the sizes of its memory and its table, and the last growth of the memory.
    struct Life {
        limiter: Limiter,
        memory: usize,
        table: usize,
        last: usize,
    }

    impl Life {
        fn new(budget: &Arc<Budget>) -> Self {
            Self { limiter: limiter(budget), memory: 0, table: 0, last: 0 }
        }

        fn take(&mut self, step: &Step, budget: &Arc<Budget>, limit: &tempfile::NamedTempFile) {
            match *step {
                Step::GrowMemory(bytes) => {
                    let granted = self.limiter.memory_growing(self.memory, self.memory + bytes, None).unwrap();
                    self.last = if granted { bytes } else { 0 };
                    self.memory += self.last;
                }
                Step::FailGrowth => {
                    self.limiter.memory_grow_failed(wasmtime::Error::msg("no mapping")).unwrap();
                    self.memory -= std::mem::take(&mut self.last);
                }
                Step::GrowTable(elements) => {
                    let granted = self.limiter.table_growing(self.table, self.table + elements, None).unwrap();
                    self.table += if granted { elements } else { 0 };
                }
                Step::Drop => *self = Self::new(budget),
                // At once and of one length: a reader sees one number or the other.
                Step::Limit(bytes) => limit.as_file().write_all_at(format!("{bytes:<10}\n").as_bytes(), 0).unwrap(),
            }
        }

        fn held_bytes(&self) -> u64 {
            self.memory as u64 + self.table as u64 * TABLE_ELEMENT_BYTES
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]
        #[test]
        fn what_stores_hold_is_what_the_budget_says(lives in vec(vec(step(), 1..60), 1..5)) {
            let (file, budget) = limited("67108864  \n");
            let run = |steps: &[Step]| {
                let mut life = Life::new(&budget);
                for step in steps {
                    life.take(step, &budget, &file);
                    let used = budget.account.used_bytes();
                    assert!(used <= guest_share_bytes(64 << 20), "{used}");
                }
                (life.held_bytes(), life)
            };
            std::thread::scope(|scope| {
                let threads: Vec<_> = lives.iter().map(|steps| scope.spawn(|| run(steps))).collect();
                let ended: Vec<_> = threads.into_iter().map(|thread| thread.join().unwrap()).collect();
                assert_eq!(budget.account.used_bytes(), ended.iter().map(|(held, _)| held).sum::<u64>());
            });
            prop_assert_eq!(budget.account.used_bytes(), 0);
        }
    }

    #[test]
    fn concurrent_stores_never_take_more_than_there_is() {
        let (_file, budget) = limited("67108864\n");
        std::thread::scope(|scope| {
            for _ in 0..8 {
                scope.spawn(|| {
                    for _ in 0..200 {
                        let mut limiter = limiter(&budget);
                        let mut size = 0;
                        while limiter.memory_growing(size, size + 64 * 1024, None).unwrap() {
                            size += 64 * 1024;
                            let used = budget.account.used_bytes();
                            assert!(used <= guest_share_bytes(64 << 20), "{used}");
                            if size > 16 * MIB {
                                break;
                            }
                        }
                    }
                });
            }
        });
        assert_eq!(budget.account.used_bytes(), 0);
    }
}
