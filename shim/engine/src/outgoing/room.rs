//! What requests in progress may take: their number, and the memory of what is buffered for them on both sides.

use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::timeout;
use wasmtime_wasi_http::Error;

use crate::memory::budget::{Budget, Lease};

/// The most requests in progress at once.
pub(super) const REQUESTS_MAX: usize = 1024;
/// What one request may have buffered: by hyper, by the kernel and by TLS, in both directions.
const REQUEST_BYTES: u64 = 256 << 10;
/// How many requests at a time the host's share of the memory pays for, where the guest's has no room.
const UNPAID_MAX: usize = 2;
/// How long a request waits for others to finish.
pub(super) const WAIT: Duration = Duration::from_secs(10);
/// How soon it looks again whether the guest has given memory back.
pub(super) const RETRY: Duration = Duration::from_millis(250);

/// The room for requests.
pub(super) struct Room {
    budget: Arc<Budget>,
    requests: Arc<Semaphore>,
    unpaid: Arc<Semaphore>,
}

/// The room of one request.
pub(super) struct Reserved {
    _request: OwnedSemaphorePermit,
    _memory: Memory,
}

enum Memory {
    Leased { _lease: Lease },
    Unpaid { _permit: OwnedSemaphorePermit },
}

impl Room {
    /// Room for requests whose memory belongs to `budget`.
    pub(super) fn new(budget: Arc<Budget>) -> Self {
        Self { budget, requests: Arc::new(Semaphore::new(REQUESTS_MAX)), unpaid: Arc::new(Semaphore::new(UNPAID_MAX)) }
    }

    /// Reserves the room of one request; it waits if others have all that there is.
    ///
    /// # Errors
    /// `ConnectionLimitReached` if it has waited for long.
    pub(super) async fn reserve(&self) -> Result<Reserved, Error> {
        let reserving = async {
            // The semaphores are never closed.
            let request = Arc::clone(&self.requests).acquire_owned().await.ok()?;
            Some(Reserved { _request: request, _memory: self.memory().await? })
        };
        timeout(WAIT, reserving).await.ok().flatten().ok_or(Error::ConnectionLimitReached)
    }

    async fn memory(&self) -> Option<Memory> {
        // Kept while it waits, for its place in the queue.
        let mut unpaid = pin!(Arc::clone(&self.unpaid).acquire_owned());
        loop {
            if let Ok(lease) = self.budget.lease(REQUEST_BYTES) {
                return Some(Memory::Leased { _lease: lease });
            }
            if let Ok(permit) = timeout(RETRY, unpaid.as_mut()).await {
                return permit.ok().map(|permit| Memory::Unpaid { _permit: permit });
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::fs::File;
    use std::io::Write;

    use skiff_protocol::{Account, MemoryLimit};

    use super::*;

    #[test]
    fn a_request_waits_for_others_where_the_guest_has_all_the_memory() {
        let mut limit = tempfile::NamedTempFile::new().unwrap();
        limit.write_all(b"16777216\n").unwrap();
        let account = Account::keep_in(&Account::create().unwrap()).unwrap();
        let budget = Budget::new(
            vec![MemoryLimit { limit: limit.reopen().unwrap(), stat: File::open("/dev/null").unwrap() }],
            None,
            account,
        );
        let room = Room::new(Arc::clone(&budget));
        let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap();
        runtime.block_on(async {
            let first = room.reserve().await.unwrap();
            assert_eq!(room.unpaid.available_permits(), UNPAID_MAX, "the guest's memory pays for it");
            let mut guest = Vec::new();
            while let Ok(lease) = budget.lease(REQUEST_BYTES) {
                guest.push(lease);
            }
            let unpaid = [room.reserve().await.unwrap(), room.reserve().await.unwrap()];
            assert_eq!(room.unpaid.available_permits(), 0);
            let mut waiting = std::pin::pin!(room.reserve());
            assert!(timeout(Duration::ZERO, waiting.as_mut()).await.is_err(), "there is no room for a fourth");
            drop(unpaid);
            assert!(waiting.await.is_ok(), "others are done");
            drop(guest);
            drop(first);
            assert!(room.reserve().await.is_ok_and(|reserved| matches!(reserved._memory, Memory::Leased { .. })));
        });
    }
}
