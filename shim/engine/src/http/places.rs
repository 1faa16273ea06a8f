//! How many connections there are at once. When all places are taken, or there is no memory for another one, the
//! connection that has been idle for longest gives way to a new one.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::Notify;
use tokio::time::{Instant, timeout};

use super::activity::{Activity, Standing};
use super::buffers::{Buffers, connections_max};
use crate::memory::budget::{Budget, Lease};

/// How soon to look again for a connection that can give way.
const RETRY: Duration = Duration::from_millis(50);
/// How long a connection keeps its memory after a change: its request may be on the way.
const FRESH: Duration = Duration::from_secs(1);
/// How long a connection of HTTP/2 waits for its memory.
const HTTP_2_WAIT: Duration = Duration::from_secs(10);

/// The places for connections. Their number follows the container's memory limit.
pub(super) struct Places {
    budget: Arc<Budget>,
    /// What each connection may hold. It was settled at the start.
    buffers: Buffers,
    /// How many files the process may have open.
    files: usize,
    taken: Mutex<Taken>,
    freed: Notify,
}

#[derive(Default)]
struct Taken {
    next: u64,
    connections: HashMap<u64, Connection>,
}

struct Connection {
    activity: Arc<Activity>,
    /// What the guest's share pays for it.
    lease: Arc<Lease>,
}

/// What there is too little of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Need {
    /// Places, or descriptors.
    Place,
    /// Memory for one more place.
    PaidPlace,
    /// Memory of the guest's share.
    Memory,
    /// Instances: clients that take nothing hold them.
    Instance,
}

impl Need {
    /// Whether a connection's end helps.
    fn is_met_by(self, standing: Standing, leased_bytes: u64) -> bool {
        match self {
            // Those that the host's share pays for are counted, and not told apart.
            Self::Place | Self::PaidPlace => true,
            Self::Memory => leased_bytes > 0 || matches!(standing, Standing::Stalled(_)),
            Self::Instance => matches!(standing, Standing::Stalled(_)),
        }
    }
}

/// A connection's place. It is free again when this is dropped.
pub(super) struct Place {
    places: Arc<Places>,
    number: u64,
    activity: Arc<Activity>,
    lease: Option<Arc<Lease>>,
}

impl Places {
    /// Places for connections with these buffers in a container with this budget, in a process that may have so many
    /// files open.
    pub(super) fn new(budget: &Arc<Budget>, buffers: Buffers, files: usize) -> Arc<Self> {
        Arc::new(Self { budget: Arc::clone(budget), buffers, files, taken: Mutex::default(), freed: Notify::new() })
    }

    /// Takes a place for a connection, as soon as there is one.
    pub(super) async fn take(self: &Arc<Self>) -> Place {
        loop {
            let freed = self.freed.notified();
            match self.try_take() {
                Ok(place) => return place,
                Err(need) => self.make_room(need),
            }
            // Whatever comes of it, the next look finds it.
            let _waited = timeout(RETRY, freed).await;
        }
    }

    /// The most connections at present.
    pub(super) fn most(&self) -> usize {
        self.maximum().0
    }

    fn maximum(&self) -> (usize, usize) {
        connections_max(self.budget.limit_bytes(), self.buffers.reserved_bytes, self.files)
    }

    /// Whether no request is under way, and no client has yet to take something that the kernel does not have.
    pub(super) fn are_idle(&self) -> bool {
        let is_idle = |standing| matches!(standing, Standing::Idle(_) | Standing::Head(_) | Standing::Leaving);
        self.taken().connections.values().all(|connection| is_idle(connection.activity.standing()))
    }

    /// Takes a place if there is one, and the memory for it.
    fn try_take(self: &Arc<Self>) -> Result<Place, Need> {
        let reserved_bytes = self.buffers.reserved_bytes;
        let (max, paid_by_host) = self.maximum();
        let count = self.taken().connections.len();
        let lease = match count {
            _ if count < paid_by_host => Lease::new(&self.budget),
            _ if count < max => self.budget.lease(reserved_bytes).map_err(|_| Need::PaidPlace)?,
            _ => return Err(Need::Place),
        };
        Ok(self.place(lease))
    }

    /// Asks the connection to give way that has been idle for longest of those whose end helps.
    pub(super) fn make_room(&self, need: Need) {
        self.make_room_for(None, need);
    }

    fn make_room_for(&self, number: Option<u64>, need: Need) {
        let now = Instant::now();
        let taken = self.taken();
        let others = taken.connections.iter().filter(|(other, _)| Some(**other) != number);
        let ranked = others.filter_map(|(_, Connection { activity, lease })| {
            let standing = activity.standing();
            let rank @ (_, since) = standing.rank(now)?;
            let is_fresh = matches!(need, Need::Memory | Need::PaidPlace) && now.duration_since(since) < FRESH;
            (!is_fresh && need.is_met_by(standing, lease.held_bytes())).then_some((rank, activity))
        });
        if let Some((_, idlest)) = ranked.min_by_key(|(rank, _)| *rank) {
            idlest.ask_to_give_way();
        }
    }

    /// Takes a place even if there is none.
    pub(super) fn take_more(self: &Arc<Self>) -> Place {
        self.place(Lease::new(&self.budget))
    }

    fn place(self: &Arc<Self>, lease: Lease) -> Place {
        let (activity, lease) = (Arc::new(Activity::new()), Arc::new(lease));
        let connection = Connection { activity: Arc::clone(&activity), lease: Arc::clone(&lease) };
        let mut taken = self.taken();
        let number = taken.next;
        taken.next += 1;
        taken.connections.insert(number, connection);
        Place { places: Arc::clone(self), number, activity, lease: Some(lease) }
    }

    fn taken(&self) -> MutexGuard<'_, Taken> {
        self.taken.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Place {
    /// What is going on on the connection that has this place.
    pub(super) fn activity(&self) -> &Arc<Activity> {
        &self.activity
    }

    /// Takes what a connection of HTTP/2 may hold besides, as soon as it is there. It returns whether it came in time.
    pub(super) async fn pay_for_http_2(&self) -> bool {
        let Some(lease) = &self.lease else { return false };
        let bytes = self.places.buffers.http_2_bytes();
        let paid = async {
            while lease.take(bytes).is_err() {
                self.places.make_room_for(Some(self.number), Need::Memory);
                tokio::time::sleep(RETRY).await;
            }
        };
        timeout(HTTP_2_WAIT, paid).await.is_ok()
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        self.places.taken().connections.remove(&self.number);
        if self.lease.take().is_some_and(|lease| lease.held_bytes() > 0) {
            // A request may be waiting for memory.
            self.places.budget.wake_one();
        }
        self.places.freed.notify_one();
    }
}
