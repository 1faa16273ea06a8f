//! The places of a pod's containers: reserved while one is made, filled while it is there.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;

use crate::error::{Error, Kind, Result};
use crate::pod::container::Container;

/// How long a create that is no longer wanted may take to be undone before nobody waits for it.
const UNDO_LIMIT: Duration = Duration::from_secs(10);

/// The containers of a pod, by their ids.
#[derive(Default)]
pub(super) struct Slots {
    // Locked for look-ups only, never across an await.
    inner: Mutex<Inner>,
    /// A create has given its slot back, or filled it.
    settled: Notify,
}

#[derive(Default)]
struct Inner {
    containers: HashMap<String, Slot>,
    /// The sandbox is gone, and with it the pod's namespaces: nothing is made any more.
    is_closed: bool,
}

enum Slot {
    /// Taken by a create that is under way; cancelled when its container is no longer wanted.
    Reserved(CancellationToken),
    Ready(Arc<Container>),
}

impl Inner {
    /// The creates under way for which `is_meant`.
    fn reserved(&self, is_meant: impl Fn(&str) -> bool) -> impl Iterator<Item = &CancellationToken> {
        self.containers.iter().filter_map(move |(id, slot)| match slot {
            Slot::Reserved(unwanted) if is_meant(id) => Some(unwanted),
            Slot::Reserved(_) | Slot::Ready(_) => None,
        })
    }
}

impl Slots {
    /// Takes the place of the container `id`, which is about to be made.
    ///
    /// # Errors
    /// `Exists` when the place is taken; `Conflict` when nothing is made any more.
    pub(super) fn reserve(self: &Arc<Self>, id: &str) -> Result<Reservation> {
        let mut inner = self.inner();
        if inner.containers.contains_key(id) {
            return Err(Error::new(Kind::Exists, format!("container `{id}` already exists")));
        }
        if inner.is_closed {
            return Err(Error::new(Kind::Conflict, format!("the pod of container `{id}` has been deleted")));
        }
        let unwanted = CancellationToken::new();
        inner.containers.insert(id.into(), Slot::Reserved(unwanted.clone()));
        Ok(Reservation { slots: self.clone(), id: id.into(), unwanted, kept: false })
    }

    /// The container `id`, once it is made.
    pub(super) fn get(&self, id: &str) -> Option<Arc<Container>> {
        match self.inner().containers.get(id) {
            Some(Slot::Ready(container)) => Some(container.clone()),
            Some(Slot::Reserved(_)) | None => None,
        }
    }

    /// Whether the container `id` is being made.
    pub(super) fn is_reserved(&self, id: &str) -> bool {
        matches!(self.inner().containers.get(id), Some(Slot::Reserved(_)))
    }

    /// The container that is the pod's sandbox, once it is made.
    pub(super) fn sandbox(&self) -> Option<Arc<Container>> {
        self.inner().containers.values().find_map(|slot| match slot {
            Slot::Ready(container) if container.is_pods_sandbox => Some(container.clone()),
            Slot::Ready(_) | Slot::Reserved(_) => None,
        })
    }

    /// Takes `container` out of its place. Returns whether it was there; whoever has its id by now is another.
    pub(super) fn remove(&self, container: &Arc<Container>) -> bool {
        let mut inner = self.inner();
        match inner.containers.get(&container.id) {
            Some(Slot::Ready(current)) if Arc::ptr_eq(current, container) => {
                inner.containers.remove(&container.id).is_some()
            }
            Some(Slot::Ready(_) | Slot::Reserved(_)) | None => false,
        }
    }

    /// Lets nothing more be made in the pod, and undoes what is being made: it would come up in the namespaces that the shim
    /// goes back to, which are the node's.
    pub(super) async fn close(&self) {
        self.inner().is_closed = true;
        self.undo_creates(|_| true).await;
    }

    /// Lets nothing be made in the pod if nothing is there now. Returns whether that is so.
    pub(super) fn close_if_empty(&self) -> bool {
        let mut inner = self.inner();
        inner.is_closed |= inner.containers.is_empty();
        inner.containers.is_empty()
    }

    /// Whether nothing is left of the pod once what is no longer wanted is undone: a create of the container `id`, or any in a
    /// pod without its sandbox. It is not waited for for ever: `delete` finds what is left by the record.
    pub(super) async fn are_over(&self, id: &str) -> bool {
        let is_closed = self.inner().is_closed;
        let is_unwanted = |other: &str| is_closed || other == id;
        self.undo_creates(is_unwanted).await;
        self.inner().containers.iter().all(|(id, slot)| match slot {
            Slot::Reserved(_) => is_unwanted(id),
            Slot::Ready(_) => false,
        })
    }

    /// Says of the creates under way for which `is_meant` that they are no longer wanted, and waits, not for ever, until
    /// they are undone.
    pub(super) async fn undo_creates(&self, is_meant: impl Fn(&str) -> bool) {
        self.inner().reserved(&is_meant).for_each(CancellationToken::cancel);
        let undone = async {
            loop {
                let settled = self.settled.notified();
                if self.inner().reserved(&is_meant).next().is_none() {
                    return;
                }
                settled.await;
            }
        };
        if tokio::time::timeout(UNDO_LIMIT, undone).await.is_err() {
            log::error!("a cancelled create was not undone within {UNDO_LIMIT:?}");
        }
    }

    fn inner(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The place of a container that is being made; given back when it is dropped without being filled.
pub(super) struct Reservation {
    slots: Arc<Slots>,
    id: String,
    /// Cancelled when the container is no longer wanted.
    pub(super) unwanted: CancellationToken,
    kept: bool,
}

impl Reservation {
    /// Puts the container in its place, and does `announce` before anybody can find it there; unless it is no longer
    /// wanted.
    pub(super) fn fill(&mut self, container: &Arc<Container>, announce: impl FnOnce()) -> bool {
        let mut inner = self.slots.inner();
        if self.unwanted.is_cancelled() {
            return false;
        }
        announce();
        inner.containers.insert(self.id.clone(), Slot::Ready(container.clone()));
        self.kept = true;
        true
    }
}

impl Drop for Reservation {
    fn drop(&mut self) {
        if !self.kept {
            self.slots.inner().containers.remove(&self.id);
        }
        self.slots.settled.notify_waiters();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pod_is_closed_when_nothing_is_in_it_and_nothing_is_being_made() {
        let slots = Arc::new(Slots::default());
        let reservation = slots.reserve("c").unwrap();
        assert!(!slots.close_if_empty());
        drop(slots.reserve("d").unwrap());
        drop(reservation);
        assert!(slots.close_if_empty());
        assert_eq!(slots.reserve("c").err().unwrap().to_string(), "the pod of container `c` has been deleted");
    }
}
