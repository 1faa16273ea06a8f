//! How many requests are under way at once. A few turns are kept for probes, so that a busy server is not taken for a
//! dead one.

use std::sync::Arc;

use hyper::Request;
use hyper::header::USER_AGENT;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use super::instances::Caller;
use super::size::PROBE_REQUESTS;

/// What the kubelet's probes call themselves. Anybody can, so only a little is kept for them.
const PROBE_AGENT: &[u8] = b"kube-probe/";

/// Who sent a request, as far as it says so.
pub(super) fn caller<T>(request: &Request<T>) -> Caller {
    let agent = request.headers().get(USER_AGENT);
    if agent.is_some_and(|agent| agent.as_bytes().starts_with(PROBE_AGENT)) { Caller::Probe } else { Caller::Client }
}

/// The turns of requests.
pub(super) struct Turns {
    all: Arc<Semaphore>,
    for_probes: Arc<Semaphore>,
    most: usize,
}

/// One of them. It is free again when this is dropped. The semaphores are never closed, so there is always a permit.
pub(super) struct Turn {
    _permit: Option<OwnedSemaphorePermit>,
}

impl Turns {
    /// `most` turns at once, and a few for probes.
    pub(super) fn new(most: usize) -> Self {
        let most = most.min(Semaphore::MAX_PERMITS);
        Self { all: Arc::new(Semaphore::new(most)), for_probes: Arc::new(Semaphore::new(PROBE_REQUESTS)), most }
    }

    /// Waits for a turn.
    pub(super) async fn take(&self, caller: Caller) -> Turn {
        let usual = Arc::clone(&self.all).acquire_owned();
        let permit = match caller {
            Caller::Client => usual.await,
            Caller::Probe => tokio::select! {
                biased;
                permit = usual => permit,
                permit = Arc::clone(&self.for_probes).acquire_owned() => permit,
            },
        };
        Turn { _permit: permit.ok() }
    }

    /// Whether all turns are free.
    pub(super) fn are_free(&self) -> bool {
        self.all.available_permits() == self.most && self.for_probes.available_permits() == PROBE_REQUESTS
    }
}

#[cfg(test)]
mod tests {
    use std::task::{Context, Waker};

    use super::*;

    #[test]
    fn a_probe_says_so() {
        for (agent, expected) in [
            (Some("kube-probe/1.36"), Caller::Probe),
            (Some("curl kube-probe/1.36"), Caller::Client),
            (Some("kube-probe"), Caller::Client),
            (None, Caller::Client),
        ] {
            let request = Request::builder();
            let request = agent.into_iter().fold(request, |request, agent| request.header(USER_AGENT, agent));
            assert_eq!(caller(&request.body(()).unwrap()), expected, "{agent:?}");
        }
    }

    #[test]
    fn a_few_probes_find_a_turn_when_all_are_taken() {
        let turns = Turns::new(1);
        let take = |caller| {
            let mut taking = Box::pin(turns.take(caller));
            match taking.as_mut().poll(&mut Context::from_waker(Waker::noop())) {
                std::task::Poll::Ready(turn) => Some(turn),
                std::task::Poll::Pending => None,
            }
        };
        let client = take(Caller::Client);
        assert!(client.is_some() && take(Caller::Client).is_none());
        let probes: Vec<_> = (0..PROBE_REQUESTS).map(|_| take(Caller::Probe).unwrap()).collect();
        assert!(take(Caller::Probe).is_none());
        drop(client);
        let probe = take(Caller::Probe);
        assert!(probe.is_some() && !turns.are_free());
        drop((probes, probe));
        assert!(turns.are_free());
    }
}
