//! How many connections there are at once. When all places are taken, or there is no memory for another one, the
//! connection that has been idle for longest gives way to a new one.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::sync::Notify;
use tokio::time::{Instant, timeout};

use super::activity::Activity;
use super::buffers::{Buffers, connections_max};
use crate::memory::budget::{Budget, Lease};

/// How soon to look again for a connection that can give way.
const RETRY: Duration = Duration::from_millis(50);

/// The places for connections. Their number follows the container's memory limit.
pub(super) struct Places {
    budget: Arc<Budget>,
    taken: Mutex<Taken>,
    freed: Notify,
}

#[derive(Default)]
struct Taken {
    next: u64,
    connections: HashMap<u64, Arc<Activity>>,
}

/// A connection's place. It is free again when this is dropped.
pub(super) struct Place {
    places: Arc<Places>,
    number: u64,
    activity: Arc<Activity>,
    /// What the guest's share pays for it.
    lease: Option<Lease>,
}

impl Places {
    /// Places in a container with this budget.
    pub(super) fn new(budget: &Arc<Budget>) -> Arc<Self> {
        Arc::new(Self { budget: Arc::clone(budget), taken: Mutex::default(), freed: Notify::new() })
    }

    /// Takes a place for a connection, as soon as there is one.
    pub(super) async fn take(self: &Arc<Self>) -> Place {
        loop {
            let freed = self.freed.notified();
            if let Some(place) = self.try_take() {
                return place;
            }
            // Whatever comes of it, the next look finds it.
            let _waited = timeout(RETRY, freed).await;
        }
    }

    /// Takes a place if there is one; otherwise it asks a connection to give way.
    fn try_take(self: &Arc<Self>) -> Option<Place> {
        let limit_bytes = self.budget.limit_bytes();
        let (max, paid_by_host) = connections_max(limit_bytes);
        let taken = self.taken.lock().unwrap_or_else(PoisonError::into_inner);
        let count = taken.connections.len();
        let lease = match count {
            _ if count < paid_by_host => Some(None),
            _ if count < max => {
                let lease = Lease::new(&self.budget);
                lease.take(Buffers::under(limit_bytes).reserved_bytes).is_ok().then_some(Some(lease))
            }
            _ => None,
        };
        if let Some(lease) = lease {
            drop(taken);
            let mut place = self.take_more();
            place.lease = lease;
            return Some(place);
        }
        let now = Instant::now();
        let ranked = taken.connections.values().filter_map(|activity| Some((activity.standing().rank(now)?, activity)));
        if let Some((_, idlest)) = ranked.min_by_key(|(rank, _)| *rank) {
            idlest.ask_to_give_way();
        }
        drop(taken);
        None
    }

    /// Takes a place even if there is none.
    pub(super) fn take_more(self: &Arc<Self>) -> Place {
        let activity = Arc::new(Activity::new());
        let mut taken = self.taken.lock().unwrap_or_else(PoisonError::into_inner);
        let number = taken.next;
        taken.next += 1;
        taken.connections.insert(number, Arc::clone(&activity));
        Place { places: Arc::clone(self), number, activity, lease: None }
    }
}

impl Place {
    /// What is going on on the connection that has this place.
    pub(super) fn activity(&self) -> &Arc<Activity> {
        &self.activity
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let mut taken = self.places.taken.lock().unwrap_or_else(PoisonError::into_inner);
        taken.connections.remove(&self.number);
        drop(taken);
        if self.lease.take().is_some() {
            // A request may be waiting for memory.
            self.places.budget.wake_one();
        }
        self.places.freed.notify_one();
    }
}
