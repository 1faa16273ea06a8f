//! What keeps requests bounded that wait for an instance which serves several: they wait on when their clients leave.

use std::sync::Arc;

use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use super::buffers::Buffers;
use super::turns::Turn;
use crate::memory::budget::{Budget, Lease};

/// How many of them the host's share pays for. The guest's share pays for the others.
const PAID_BY_HOST: usize = 32;

/// The room for requests that wait.
pub(super) struct Queue {
    budget: Arc<Budget>,
    paid_by_host: Arc<Semaphore>,
    each_bytes: u64,
}

/// What such a request holds until an instance serves it, whether or not its client is still there.
pub(super) struct Queued {
    _turn: Arc<Turn>,
    _room: Room,
}

enum Room {
    Host { _permit: Option<OwnedSemaphorePermit> },
    Guest { _lease: Lease },
}

impl Queue {
    /// Room in a container with this budget.
    pub(super) fn new(budget: &Arc<Budget>) -> Self {
        // A head, its fields and the task that waits with them.
        let each_bytes = Buffers::under(budget.limit_bytes()).user_bytes as u64 * 2;
        Self { budget: Arc::clone(budget), paid_by_host: Arc::new(Semaphore::new(PAID_BY_HOST)), each_bytes }
    }

    /// Waits for room. Until then the client's connection pays for the request.
    pub(super) async fn enter(&self, turn: &Arc<Turn>) -> Queued {
        let room = match Arc::clone(&self.paid_by_host).try_acquire_owned() {
            Ok(permit) => Room::Host { _permit: Some(permit) },
            Err(_) => match self.budget.lease(self.each_bytes) {
                Ok(lease) => Room::Guest { _lease: lease },
                // It is never closed, so there is always a permit.
                Err(_) => Room::Host { _permit: Arc::clone(&self.paid_by_host).acquire_owned().await.ok() },
            },
        };
        Queued { _turn: Arc::clone(turn), _room: room }
    }
}

#[cfg(test)]
mod tests {
    use std::task::{Context, Poll, Waker};

    use skiff_protocol::Account;

    use super::super::instances::Caller;
    use super::super::turns::Turns;
    use super::*;

    #[tokio::test]
    async fn requests_wait_for_room_in_the_queue() {
        const LEASED: usize = 3;
        let account = Account::keep_in(&Account::create().unwrap()).unwrap();
        let budget = Budget::new(Vec::new(), Some(64 << 20), account);
        let queue = Queue::new(&budget);
        let left = budget.lease((64 << 20) - (4 << 20) - (128 << 10) - LEASED as u64 * queue.each_bytes);
        let _left = left.unwrap();
        let turns = Turns::new(1);
        let turn = Arc::new(turns.take(Caller::Client).await);
        let enter = || {
            let mut entering = Box::pin(queue.enter(&turn));
            match entering.as_mut().poll(&mut Context::from_waker(Waker::noop())) {
                Poll::Ready(queued) => Some(queued),
                Poll::Pending => None,
            }
        };
        let mut queued: Vec<_> = std::iter::from_fn(enter).collect();
        assert_eq!(queued.len(), PAID_BY_HOST + LEASED);
        queued.remove(0);
        assert!(enter().is_some(), "the room of one that is served is free again");
        drop(turn);
        assert!(!turns.are_free(), "what waits has its turn");
        drop(queued);
        assert!(turns.are_free());
    }
}
