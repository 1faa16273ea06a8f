//! What is going on on one connection: whether it is idle, whom it waits for, and when its time is over. It decides; it
//! neither reads nor writes.

use std::sync::{Mutex, PoisonError};
use std::task::Waker;
use std::time::Duration;

use skiff_protocol::Limits;
use tokio::time::Instant;

use super::limit::after;

/// With this a connection of HTTP/2 begins.
const HTTP_2_PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
/// For how long a client must have taken or sent nothing before it gives way to another.
pub(super) const STALLED_MIN: Duration = Duration::from_secs(10);
/// No patience is shorter: it would end what goes on.
const PATIENCE_MIN: Duration = Duration::from_millis(10);

/// How long a connection may wait for its client.
#[derive(Clone, Copy, Debug)]
pub(super) struct Patience {
    /// For the rest of a request's head.
    pub(super) head: Duration,
    /// For a request, for more of a request's body, and until some of a response is taken.
    pub(super) idle: Duration,
}

impl Patience {
    /// That of a pod.
    pub(super) fn of(limits: &Limits) -> Self {
        Self { head: limits.header_time.max(PATIENCE_MIN), idle: limits.idle_time.max(PATIENCE_MIN) }
    }
}

/// Where a connection stands, and since when.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Standing {
    /// No request is under way.
    Idle(Instant),
    /// Nothing has come yet, or a part of a request's head.
    Head(Instant),
    /// Its client has taken nothing of what is there for it.
    Stalled(Instant),
    /// The guest works on a request.
    Busy,
    /// All is said, and the client has yet to take the end of it.
    Leaving,
}

impl Standing {
    /// When the connection is to be closed.
    fn deadline(self, patience: Patience) -> Instant {
        let (since, limit) = match self {
            Self::Head(since) => (since, patience.head),
            Self::Idle(since) | Self::Stalled(since) => (since, patience.idle),
            Self::Busy | Self::Leaving => (Instant::now(), patience.idle),
        };
        after(since, limit)
    }

    /// The rank of a connection that may give way to a new one: the smallest goes first.
    pub(super) fn rank(self, now: Instant) -> Option<(bool, Instant)> {
        match self {
            Self::Idle(since) | Self::Head(since) => Some((false, since)),
            Self::Stalled(since) => (now.duration_since(since) >= STALLED_MIN).then_some((true, since)),
            Self::Busy | Self::Leaving => None,
        }
    }
}

/// What is going on on one connection.
pub(super) struct Activity(Mutex<Known>);

struct Known {
    requests: usize,
    /// How many of the requests wait for the guest, not for the client.
    awaiting_guest: usize,
    /// How much of HTTP/2's preface has come, as long as nothing else has.
    preface: Option<usize>,
    is_in_head: bool,
    /// Whether the client has yet to take what was written.
    is_blocked: bool,
    /// The last change, or the last progress.
    since: Instant,
    must_give_way: bool,
    is_leaving: bool,
    waker: Option<Waker>,
}

impl Activity {
    /// That of a connection which begins now.
    pub(super) fn new() -> Self {
        Self(Mutex::new(Known {
            requests: 0,
            awaiting_guest: 0,
            preface: Some(0),
            is_in_head: true,
            is_blocked: false,
            since: Instant::now(),
            must_give_way: false,
            is_leaving: false,
            waker: None,
        }))
    }

    /// Where the connection stands.
    pub(super) fn standing(&self) -> Standing {
        self.with(|known| known.standing())
    }

    /// Bytes have come.
    pub(super) fn read(&self, bytes: &[u8]) {
        self.with(|known| {
            if let Some(come) = known.preface.filter(|come| *come < HTTP_2_PREFACE.len()) {
                let end = HTTP_2_PREFACE.len().min(come + bytes.len());
                let is_preface = HTTP_2_PREFACE.get(come..end) == bytes.get(..end - come);
                known.preface = is_preface.then_some(end);
                if end == HTTP_2_PREFACE.len() && is_preface {
                    known.is_in_head = false;
                    known.since = Instant::now();
                }
            }
            // The frames of HTTP/2 are not only those of requests.
            if known.preface.is_none() && known.requests == 0 && !known.is_in_head {
                known.is_in_head = true;
                known.since = Instant::now();
            }
        });
    }

    /// The client has taken something, or it cannot take more.
    pub(super) fn written(&self, is_blocked: bool) {
        self.with(|known| {
            // HTTP/2 writes without a request, too: that alone is no progress.
            let is_progress = known.preface.is_none() && !is_blocked;
            if is_progress || known.is_blocked != is_blocked {
                known.is_blocked = is_blocked;
                known.since = Instant::now();
            }
        });
    }

    /// A request has come.
    pub(super) fn begin_request(&self) {
        self.with(|known| {
            known.requests += 1;
            known.is_in_head = false;
        });
    }

    /// A response is sent, or nobody is there for it any more.
    pub(super) fn end_request(&self) {
        self.with(|known| {
            known.requests -= 1;
            known.since = Instant::now();
        });
    }

    /// A request waits for the guest from now on, or no longer.
    pub(super) fn await_guest(&self, awaits: bool) {
        self.with(|known| {
            if awaits {
                known.awaiting_guest += 1;
            } else {
                known.awaiting_guest -= 1;
                known.since = Instant::now();
            }
        });
    }

    /// Nothing more is read or written.
    pub(super) fn leave(&self) {
        self.with(|known| known.is_leaving = true);
    }

    /// Asks the connection to end if it is still idle when it looks.
    pub(super) fn ask_to_give_way(&self) {
        let waker = self.with(|known| {
            known.must_give_way = true;
            known.waker.take()
        });
        if let Some(waker) = waker {
            waker.wake();
        }
    }

    /// When the connection is to be closed; `None` for at once. `waker` is woken if it is to give way to another.
    pub(super) fn deadline(&self, patience: Patience, waker: &Waker) -> Option<Instant> {
        self.with(|known| {
            let standing = known.standing();
            if std::mem::take(&mut known.must_give_way) && standing.rank(Instant::now()).is_some() {
                return None;
            }
            if !known.waker.as_ref().is_some_and(|known| known.will_wake(waker)) {
                known.waker = Some(waker.clone());
            }
            Some(standing.deadline(patience))
        })
    }

    fn with<T>(&self, act: impl FnOnce(&mut Known) -> T) -> T {
        act(&mut self.0.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

impl Known {
    fn standing(&self) -> Standing {
        match self.requests {
            _ if self.is_leaving => Standing::Leaving,
            0 if self.is_blocked => Standing::Stalled(self.since),
            0 if self.is_in_head => Standing::Head(self.since),
            0 => Standing::Idle(self.since),
            _ if self.awaiting_guest == 0 => Standing::Stalled(self.since),
            _ => Standing::Busy,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::limit::NEVER;
    use super::*;

    /// Something that happens to a connection.
    type Step<'a> = &'a dyn Fn(&Activity);

    #[test]
    fn a_connection_is_idle_unless_a_request_or_a_part_of_one_is_there() {
        let begin = |activity: &Activity| {
            activity.begin_request();
            activity.await_guest(true);
        };
        let send = |activity: &Activity| activity.await_guest(false);
        let end = |activity: &Activity| activity.end_request();
        let read: fn(&Activity) = |activity| activity.read(b"GET / HT");
        let preface: fn(&Activity) = |activity| HTTP_2_PREFACE.chunks(5).for_each(|part| activity.read(part));
        let almost: fn(&Activity) = |activity| activity.read(b"PRI * HTTP/1");
        let blocked: fn(&Activity) = |activity| activity.written(true);
        let written: fn(&Activity) = |activity| activity.written(false);
        let cases: [(&[Step<'_>], &str); 15] = [
            (&[], "Head"),
            (&[&read], "Head"),
            (&[&read, &begin], "Busy"),
            (&[&read, &begin, &send], "Stalled"),
            (&[&read, &begin, &send, &written, &end], "Idle"),
            (&[&read, &begin, &send, &end, &blocked], "Stalled"),
            (&[&read, &begin, &send, &end, &blocked, &written], "Idle"),
            (&[&read, &begin, &send, &end, &read], "Head"),
            (&[&almost], "Head"),
            (&[&preface], "Idle"),
            (&[&preface, &read], "Idle"),
            (&[&preface, &blocked], "Stalled"),
            (&[&preface, &begin, &send, &end, &blocked, &written], "Idle"),
            (&[&preface, &begin, &begin, &send], "Busy"),
            (&[&preface, &begin, &begin, &send, &send], "Stalled"),
        ];
        for (number, (steps, expected)) in cases.into_iter().enumerate() {
            let activity = Activity::new();
            steps.iter().for_each(|step| step(&activity));
            let standing = format!("{:?}", activity.standing());
            assert!(standing.starts_with(expected), "{number}: {standing} instead of {expected}");
        }
    }

    #[test]
    fn the_longest_idle_gives_way_and_a_busy_one_never() {
        let now = Instant::now();
        let ago = |seconds| now.checked_sub(Duration::from_secs(seconds)).unwrap();
        let mut all = [
            Standing::Busy,
            Standing::Stalled(ago(5)),
            Standing::Stalled(ago(99)),
            Standing::Head(ago(3)),
            Standing::Idle(ago(4)),
            Standing::Idle(ago(2)),
        ];
        all.sort_by_key(|standing| standing.rank(now).map_or((true, None), |rank| (false, Some(rank))));
        assert_eq!(
            all[..4],
            [Standing::Idle(ago(4)), Standing::Head(ago(3)), Standing::Idle(ago(2)), Standing::Stalled(ago(99))]
        );
        assert!(all[4..].iter().all(|standing| standing.rank(now).is_none()), "{all:?}");
    }

    #[test]
    fn a_connection_that_got_a_request_does_not_give_way() {
        let patience = Patience::of(&Limits::default());
        let (idle, busy) = (Activity::new(), Activity::new());
        busy.begin_request();
        busy.await_guest(true);
        for (activity, stays) in [(idle, false), (busy, true)] {
            assert!(activity.deadline(patience, Waker::noop()).is_some());
            activity.ask_to_give_way();
            assert_eq!(activity.deadline(patience, Waker::noop()).is_some(), stays);
        }
    }

    #[test]
    fn no_patience_is_too_long() {
        let forever = Patience { head: Duration::MAX, idle: Duration::MAX };
        for standing in [Standing::Idle(Instant::now()), Standing::Head(Instant::now()), Standing::Busy] {
            assert!(standing.deadline(forever) > Instant::now() + NEVER / 2);
        }
    }
}
