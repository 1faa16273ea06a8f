//! How many connections there are. At the most, the longest idle one gives way to a new one, whichever host it leads to:
//! no instance can keep others from connecting with connections that it does not use.

use std::collections::HashMap;
use std::pin::pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use tokio::sync::{Notify, oneshot};
use tokio::time::timeout;

use super::room::{RETRY, WAIT};
use crate::memory::budget::{Budget, Lease};

/// The most connections, and the fewest.
const CONNECTIONS_MAX: u64 = 1024;
const CONNECTIONS_MIN: u64 = 16;
/// For each of this many bytes of the memory limit there may be a connection.
const LIMIT_BYTES_EACH: u64 = 1 << 20;
/// What an idle connection costs: its task, its buffers and the kernel's socket.
const IDLE_BYTES: u64 = 32 << 10;
/// A connection that was idle for less than this may just be about to be used.
const IDLE_MIN: Duration = Duration::from_secs(1);

/// The connections of the container.
pub(super) struct Seats {
    budget: Arc<Budget>,
    open: Mutex<Open>,
    freed: Notify,
}

#[derive(Default)]
struct Open {
    last: u64,
    seats: HashMap<u64, Seat>,
}

struct Seat {
    requests: usize,
    /// Requests share the connection: it speaks HTTP/2.
    is_shared: bool,
    served: u64,
    idle_since: Instant,
    close: Option<oneshot::Sender<()>>,
}

/// The seat of one connection, for as long as it is open.
pub(super) struct Taken {
    /// Until the connection is made it is in use.
    connecting: Option<InUse>,
    pass: Pass,
    lease: Option<Lease>,
}

/// Identifies a seat. It keeps nothing open.
#[derive(Clone)]
pub(super) struct Pass {
    seats: Arc<Seats>,
    number: u64,
}

/// A request that uses a connection. If it is dropped before its end, the connection closes, unless others share it:
/// hyper would first send what is left of the request, to a server that may never read it.
pub(super) struct InUse {
    pass: Pass,
    /// Whether the connection has served a request before this one.
    pub(super) is_reused: bool,
    is_finished: bool,
}

impl Seats {
    /// No connections yet.
    pub(super) fn new(budget: Arc<Budget>) -> Arc<Self> {
        Arc::new(Self { budget, open: Mutex::default(), freed: Notify::new() })
    }

    /// Takes a seat for a new connection, and what is told when the connection must close. It waits if all are in use.
    /// `None` if it has waited for long.
    pub(super) async fn take(self: &Arc<Self>) -> Option<(Taken, oneshot::Receiver<()>)> {
        timeout(WAIT, async {
            loop {
                let mut freed = pin!(self.freed.notified());
                freed.as_mut().enable();
                if let Some(taken) = self.try_take() {
                    return taken;
                }
                // Without a notification: a connection has become idle, or the limit was raised.
                let _freed = timeout(RETRY, freed).await;
            }
        })
        .await
        .ok()
    }

    fn try_take(self: &Arc<Self>) -> Option<(Taken, oneshot::Receiver<()>)> {
        let seats_max = seats_max(self.budget.limit_bytes());
        let mut open = self.open();
        if open.seats.len() >= seats_max {
            open.close_longest_idle(Instant::now());
            return None;
        }
        open.last += 1;
        let number = open.last;
        let (close, closed) = oneshot::channel();
        let seat = Seat { requests: 1, is_shared: false, served: 0, idle_since: Instant::now(), close: Some(close) };
        open.seats.insert(number, seat);
        drop(open);
        let lease = self.budget.lease(IDLE_BYTES).ok();
        let pass = Pass { seats: Arc::clone(self), number };
        let connecting = InUse { pass: pass.clone(), is_reused: false, is_finished: true };
        Some((Taken { connecting: Some(connecting), pass, lease }, closed))
    }

    fn open(&self) -> MutexGuard<'_, Open> {
        self.open.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Open {
    fn close_longest_idle(&mut self, now: Instant) {
        let is_idle = |seat: &&mut Seat| {
            seat.requests == 0 && seat.close.is_some() && now.saturating_duration_since(seat.idle_since) >= IDLE_MIN
        };
        if let Some(seat) = self.seats.values_mut().filter(is_idle).min_by_key(|seat| seat.idle_since) {
            seat.close();
        }
    }
}

impl Seat {
    /// Has the connection close.
    fn close(&mut self) {
        if let Some(close) = self.close.take() {
            // A connection that is gone has closed already.
            let _sent = close.send(());
        }
    }
}

impl Taken {
    /// Notes that the connection is made, and whether requests share it. Until one uses it, it is idle.
    pub(super) fn connected(&mut self, is_shared: bool) {
        if let Some(seat) = self.pass.seats.open().seats.get_mut(&self.pass.number) {
            seat.is_shared = is_shared;
        }
        self.connecting = None;
    }

    /// What identifies the seat.
    pub(super) fn pass(&self) -> Pass {
        self.pass.clone()
    }

    /// Whether the connection may be kept for later requests: the budget pays for it.
    pub(super) fn may_stay(&self) -> bool {
        self.lease.is_some()
    }
}

impl Drop for Taken {
    fn drop(&mut self) {
        self.pass.seats.open().seats.remove(&self.pass.number);
        self.pass.seats.freed.notify_one();
    }
}

impl Pass {
    /// Notes that a request uses the connection, unless it is gone.
    pub(super) fn begin(&self) -> Option<InUse> {
        let mut open = self.seats.open();
        let seat = open.seats.get_mut(&self.number)?;
        seat.requests += 1;
        seat.served += 1;
        Some(InUse { is_reused: seat.served > 1, pass: self.clone(), is_finished: false })
    }
}

impl InUse {
    /// Whether this is about the connection that `pass` identifies.
    pub(super) fn is_of(&self, pass: &Pass) -> bool {
        self.pass.number == pass.number
    }

    /// Notes that the request has its whole response.
    pub(super) fn finish(mut self) {
        self.is_finished = true;
    }
}

impl Drop for InUse {
    fn drop(&mut self) {
        if let Some(seat) = self.pass.seats.open().seats.get_mut(&self.pass.number) {
            seat.requests = seat.requests.saturating_sub(1);
            seat.idle_since = Instant::now();
            if !self.is_finished && !seat.is_shared && seat.requests == 0 {
                seat.close();
            }
        }
    }
}

/// The most connections under a memory limit.
fn seats_max(limit_bytes: Option<u64>) -> usize {
    let seats = limit_bytes.map_or(CONNECTIONS_MAX, |bytes| bytes / LIMIT_BYTES_EACH);
    usize::try_from(seats.clamp(CONNECTIONS_MIN, CONNECTIONS_MAX)).unwrap_or(usize::MAX)
}

#[cfg(test)]
mod tests {
    use skiff_protocol::Account;

    use super::*;

    const MIB: u64 = 1 << 20;

    #[test]
    fn connections_follow_the_memory_limit() {
        for (limit_bytes, expected) in
            [(None, 1024), (Some(0), 16), (Some(16 * MIB), 16), (Some(256 * MIB), 256), (Some(u64::MAX), 1024)]
        {
            assert_eq!(seats_max(limit_bytes), expected, "under {limit_bytes:?}");
        }
    }

    #[test]
    fn a_connection_that_is_being_made_does_not_give_way() {
        let account = Account::keep_in(&Account::create().unwrap()).unwrap();
        let seats = Seats::new(Budget::new(Vec::new(), Some(16 * MIB), account));
        let later = Instant::now() + Duration::from_secs(100);
        let mut taken: Vec<_> = (0..CONNECTIONS_MIN).map(|_| seats.try_take().unwrap()).collect();
        assert!(seats.try_take().is_none());
        seats.open().close_longest_idle(later);
        assert!(taken.iter_mut().all(|(_, close)| close.try_recv().is_err()));
        taken[3].0.connected(false);
        seats.open().close_longest_idle(later);
        assert!(taken[3].1.try_recv().is_ok());
        drop(taken);
        assert!(seats.try_take().is_some());
    }

    #[test]
    fn a_connection_closes_when_its_request_is_abandoned_unless_others_share_it() {
        let account = Account::keep_in(&Account::create().unwrap()).unwrap();
        let seats = Seats::new(Budget::new(Vec::new(), Some(16 * MIB), account));
        for (is_shared, is_finished, expected) in
            [(false, false, true), (false, true, false), (true, false, false), (true, true, false)]
        {
            let (mut taken, mut close) = seats.try_take().unwrap();
            taken.connected(is_shared);
            assert!(close.try_recv().is_err());
            let in_use = taken.pass().begin().unwrap();
            if is_finished {
                in_use.finish()
            } else {
                drop(in_use)
            }
            assert_eq!(close.try_recv().is_ok(), expected, "{is_shared} {is_finished}");
        }
    }

    #[test]
    fn the_longest_idle_connection_gives_way() {
        let now = Instant::now() + Duration::from_secs(100);
        let mut open = Open::default();
        let mut closed = Vec::new();
        for (number, (requests, idle_s)) in [(1, 90), (0, 50), (0, 60), (0, 0)].into_iter().enumerate() {
            let (close, told) = oneshot::channel();
            let idle_since = now - Duration::from_secs(idle_s);
            let seat = Seat { requests, is_shared: false, served: 1, idle_since, close: Some(close) };
            open.seats.insert(number as u64, seat);
            closed.push(told);
        }
        let told = |closed: &mut Vec<oneshot::Receiver<()>>| -> Vec<bool> {
            closed.iter_mut().map(|told| told.try_recv().is_ok()).collect()
        };
        open.close_longest_idle(now);
        assert_eq!(told(&mut closed), [false, false, true, false]);
        open.close_longest_idle(now);
        assert_eq!(told(&mut closed), [false, true, false, false]);
        open.close_longest_idle(now);
        assert_eq!(told(&mut closed), [false; 4], "the others are in use, or may be about to be");
    }
}
