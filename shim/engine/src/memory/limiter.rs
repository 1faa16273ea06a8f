//! The limiter: what one store may take of the budget, and the counts that bound its memories and tables. It remembers
//! the last growth that it denied, so that the end of a guest can be explained.

use std::sync::Arc;
use std::time::Duration;

use nix::time::{ClockId, clock_gettime};
use skiff_protocol::Limits;
use wasmtime::ResourceLimiter;

use crate::memory::budget::{Budget, Lease};
use crate::memory::denied::Denied;

/// How much processor time a guest may use between a denied growth and giving up because of it.
const GIVES_UP_WITHIN: Duration = Duration::from_secs(1);
const PAGE_BYTES: usize = 64 << 10;
/// The size of one table element: wasmtime keeps a pointer, for every type of reference.
pub(super) const TABLE_ELEMENT_BYTES: u64 = 8;

/// The limiter of one store.
pub(crate) struct Limiter {
    lease: Arc<Lease>,
    limits: Limits,
    table_elements: u64,
    /// What the last growth of a memory was granted, in case that it fails.
    granted_bytes: u64,
    /// The last growth, if it was denied.
    last: Option<DeniedGrowth>,
}

/// A growth that was denied, with no growth granted since.
struct DeniedGrowth {
    denied: Denied,
    /// The processor time of this process until then.
    at: Duration,
}

impl Limiter {
    /// The limiter of a store that draws on `budget`.
    pub(crate) fn new(budget: &Arc<Budget>, limits: &Limits) -> Self {
        let lease = Arc::new(Lease::of_store(budget));
        Self { lease, limits: limits.clone(), table_elements: 0, granted_bytes: 0, last: None }
    }

    /// Takes memory that the store uses besides its memories and tables.
    ///
    /// # Errors
    /// [`Denied::Memory`] if there is less than that.
    pub(crate) fn reserve(&self, bytes: u64) -> Result<(), Denied> {
        self.lease.take(bytes)
    }

    /// A share in the lease, so that the budget is given back only after the store is gone.
    pub(crate) fn lease(&self) -> Arc<Lease> {
        Arc::clone(&self.lease)
    }

    /// What was denied, if the last growth was.
    pub(crate) fn denied(&self) -> Option<&Denied> {
        self.last.as_ref().map(|growth| &growth.denied)
    }

    /// The same, but only while a guest that gives up may be taken to do so because of it.
    pub(crate) fn denied_just_now(&self) -> Option<&Denied> {
        let growth = self.last.as_ref()?;
        (processor_time().saturating_sub(growth.at) < GIVES_UP_WITHIN).then_some(&growth.denied)
    }

    fn grow(&mut self, bytes: u64, elements: u64) -> bool {
        // A growth by nothing asks for the size. It is granted whatever the limit is now.
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
                self.last = None;
                true
            }
            Err(denied) => {
                self.deny(denied);
                false
            }
        }
    }

    fn deny(&mut self, denied: Denied) {
        self.lease.add_refusal();
        self.last = Some(DeniedGrowth { denied, at: processor_time() });
    }
}

/// The processor time that this process has used.
fn processor_time() -> Duration {
    clock_gettime(ClockId::CLOCK_PROCESS_CPUTIME_ID).map_or(Duration::ZERO, Duration::from)
}

/// How much is asked for beyond what there is; `None` if the type itself forbids it.
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
            self.deny(Denied::Pages { wanted_pages, max_pages });
            return Ok(false);
        }
        let bytes = growth(current, desired, maximum).filter(|bytes| self.grow(*bytes, 0));
        self.granted_bytes = bytes.unwrap_or(0);
        Ok(bytes.is_some())
    }

    // Invariant: what is granted is given back once. wasmtime calls this only after a granted growth that the system
    // refused: growth beyond a type's maximum is denied above, and page sizes other than 64 KiB are not enabled.
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
