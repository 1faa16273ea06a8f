//! Instances of an HTTP component: how they are made, how many requests each serves, and when it goes.

use std::convert::Infallible;
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context as TaskContext, Poll};
use std::time::{Duration, Instant};

use skiff_protocol::Refusal;
use tokio::sync::{mpsc, oneshot, watch};
use tokio::time::{Sleep, sleep, timeout_at};
use wasmtime::component::GuestTaskId;
use wasmtime::{Engine, Error, PoolConcurrencyLimitError, Result, Store, StoreContextMut};
use wasmtime_wasi::I32Exit;
use wasmtime_wasi_http::WasiHttpView;
use wasmtime_wasi_http::handler::{
    HandlerState, Instance, Proxy, ProxyPre, ShouldAccept, WorkerExpiration, WorkerState, WorkerStatus,
};

use crate::http::ticker::{Ticker, Ticking};
use crate::load::of_engine;
use crate::report;
use crate::stdio::Writer;
use crate::store::{Budget, Denied, Lease, State};
use crate::wasi::Context;

/// An instance of WASI 0.2 serves one request; one of 0.3 is made for more, several at once.
const P3_REQUESTS_MAX: usize = 128;
const P3_CONCURRENT_REQUESTS_MAX: usize = 16;
/// How long an instance without a request is kept.
const IDLE: Duration = Duration::from_secs(1);
/// Longer than any process lives.
const NEVER: Duration = Duration::from_secs(30 * 365 * 86_400);
/// How long an instance over the time of a request may take to yield.
const YIELD_GRACE: Duration = Duration::from_millis(50);
/// How long a request waits for the memory of others.
const MEMORY_WAIT: Duration = Duration::from_secs(10);
/// How soon it tries again when none of them is done: the limit may have been raised.
const MEMORY_RETRY: Duration = Duration::from_millis(250);

/// Said of a request whose instance was ended: why is told already.
pub(super) struct Ended;

/// What goes with a request: whom to tell when its instance is ended.
pub(super) type RequestData = oneshot::Sender<Ended>;

/// Whether an instance could not be made because others take all there is.
pub(super) fn is_shortage(error: &Error) -> bool {
    error.is::<Denied>() || error.is::<PoolConcurrencyLimitError>()
}

/// Makes instances.
pub(super) struct Instances {
    engine: Engine,
    pre: ProxyPre<State>,
    context: Context,
    ticker: Ticker,
    alive: mpsc::Sender<Infallible>,
    ending: watch::Receiver<bool>,
}

impl Instances {
    /// Instances of `pre`. Each holds a clone of `alive`, and goes at once when it is idle and the server is ending.
    ///
    /// # Errors
    /// When there is no room for a thread.
    pub(super) fn new(
        engine: &Engine,
        pre: ProxyPre<State>,
        context: Context,
        alive: mpsc::Sender<Infallible>,
        ending: watch::Receiver<bool>,
    ) -> Result<Self, Refusal> {
        let ticker = Ticker::start(engine.clone()).map_err(|error| of_engine(&error.into()))?;
        Ok(Self { engine: engine.clone(), pre, context, ticker, alive, ending })
    }

    /// Makes one instance and throws it away, so that a component that cannot be instantiated is told at its start.
    ///
    /// # Errors
    /// [`Refusal::Guest`] when it cannot.
    pub(super) async fn try_out(&self) -> Result<(), Refusal> {
        let module = &self.context.plan.module;
        self.make().await.map(drop).map_err(|error| match error.downcast_ref::<Denied>() {
            Some(denied) => self.context.too_big(denied),
            None => Refusal::Guest(format!("cannot start `{module}`: {}", report::sentence(&error))),
        })
    }

    /// Whether no instance is alive.
    pub(super) fn is_idle(&self) -> bool {
        self.ticker.wanted() == 0
    }

    async fn make(&self) -> Result<(Store<State>, Proxy, Worker)> {
        let state = self.context.state(Writer::Server).map_err(|refusal| Error::msg(format!("{refusal:?}")))?;
        let worker = Worker {
            module: self.context.plan.module.clone(),
            limits: RequestLimits::of(&self.pre),
            request_time: self.context.plan.limits.request_time,
            timed_out: Arc::default(),
            requests: Mutex::new(Vec::new()),
            _alive: self.alive.clone(),
            _ticking: self.ticker.tick(),
            _lease: state.limiter.lease(),
            room: None,
        };
        let mut store = state.into_store(&self.engine);
        store.epoch_deadline_async_yield_and_update(1);
        store.set_epoch_deadline(1);
        match self.pre.instantiate_async(&mut store).await {
            Ok(proxy) => Ok((store, proxy, worker)),
            Err(error) => Err(match store.data().limiter.denied() {
                Some(denied) if !report::is_of_guest(&error) => Error::from(denied.clone()),
                _ => error,
            }),
        }
    }
}

impl HandlerState for Instances {
    type StoreData = State;
    type WorkerExpiration = Expiration;
    type WorkerState = Worker;

    /// Makes an instance; where the container's memory is all in use, as soon as another instance is gone or the limit was
    /// raised.
    async fn instantiate(&self) -> Result<Instance<State, Expiration, Worker>> {
        let deadline = tokio::time::Instant::now() + MEMORY_WAIT;
        let mut has_waited = false;
        loop {
            let released = self.context.budget.released();
            match self.make().await {
                Ok((store, proxy, mut state)) => {
                    state.room = Some(Room(Arc::clone(&self.context.budget)));
                    if has_waited {
                        // What was released may be enough for the next one, too.
                        self.context.budget.wake_one();
                    }
                    let expiration = Expiration::new(&state, self.ending.clone());
                    return Ok(Instance { store, proxy, view: WasiHttpView::http, expiration, state });
                }
                Err(error) if is_shortage(&error) => {
                    let again = deadline.min(tokio::time::Instant::now() + MEMORY_RETRY);
                    if timeout_at(again, released).await.is_err() && again == deadline {
                        return Err(error);
                    }
                    has_waited = true;
                }
                Err(error) => return Err(error),
            }
        }
    }
}

/// The memory of an instance that served: when it is gone, another one may be made in its place.
struct Room(Arc<Budget>);

impl Drop for Room {
    fn drop(&mut self) {
        self.0.wake_one();
    }
}

/// How many requests an instance serves.
#[derive(Clone, Copy)]
struct RequestLimits {
    requests: usize,
    concurrent_requests: usize,
}

impl RequestLimits {
    fn of(pre: &ProxyPre<State>) -> Self {
        match pre {
            ProxyPre::P2(_) => Self { requests: 1, concurrent_requests: 1 },
            ProxyPre::P3(_) => Self { requests: P3_REQUESTS_MAX, concurrent_requests: P3_CONCURRENT_REQUESTS_MAX },
        }
    }
}

/// What the host keeps for an instance besides its store.
// Invariant: fields are dropped in their order, after the store: first the memory is given back.
pub(super) struct Worker {
    module: String,
    limits: RequestLimits,
    request_time: Option<Duration>,
    timed_out: Arc<AtomicBool>,
    requests: Mutex<Vec<RequestData>>,
    _lease: Arc<Lease>,
    room: Option<Room>,
    _ticking: Ticking,
    _alive: mpsc::Sender<Infallible>,
}

impl WorkerState for Worker {
    type StoreData = State;
    type RequestData = RequestData;

    fn should_accept_request(&self, concurrent_count: usize, total_count: usize) -> ShouldAccept {
        if total_count >= self.limits.requests {
            ShouldAccept::Never
        } else if concurrent_count >= self.limits.concurrent_requests {
            ShouldAccept::No
        } else {
            ShouldAccept::Yes
        }
    }

    fn on_request_start(
        &self,
        _: StoreContextMut<'_, State>,
        request: RequestData,
        _: GuestTaskId,
    ) -> Pin<Box<dyn Future<Output = ()> + Send + Sync>> {
        let mut requests = self.requests.lock().unwrap_or_else(PoisonError::into_inner);
        if requests.len() == requests.capacity() {
            requests.retain(|request| !request.is_closed());
        }
        requests.push(request);
        match self.request_time {
            Some(limit) => Box::pin(sleep(limit)),
            None => Box::pin(std::future::pending()),
        }
    }

    fn drop(&self, store: Store<State>, result: Result<()>) {
        let requests = std::mem::take(&mut *self.requests.lock().unwrap_or_else(PoisonError::into_inner));
        if let Err(error) = result {
            if self.timed_out.load(Ordering::Relaxed) {
                report::line(&format!("{}: an instance was ended that went on after its request's time", self.module));
            } else {
                tell_end(&self.module, &error, store.data().limiter.denied_just_now());
            }
            for request in requests {
                // A request that is answered already is not waiting.
                drop(request.send(Ended));
            }
        }
        drop(store);
    }
}

/// Tells on stderr how an instance ended before its time.
fn tell_end(module: &str, error: &Error, denied: Option<&Denied>) {
    match error.downcast_ref::<I32Exit>() {
        Some(exit) => report::line(&format!("{module}: an instance exited with code {} while it served", exit.0)),
        None => report::trap(module, error),
    }
    if let Some(denied) = denied {
        report::line(&format!("{module}: an instance ran out of memory: {denied}"));
    }
}

/// Ends an instance that has been idle for a while, is idle while the server ends, or is over the time of a request and
/// does not come to itself: the handler ends only requests whose instance yields to it.
pub(super) struct Expiration {
    timer: Pin<Box<Sleep>>,
    ending: Pin<Box<dyn Future<Output = ()> + Send + Sync>>,
    request_time: Option<Duration>,
    timed_out: Arc<AtomicBool>,
}

impl Expiration {
    fn new(worker: &Worker, mut ending: watch::Receiver<bool>) -> Self {
        Self {
            timer: Box::pin(sleep(IDLE)),
            ending: Box::pin(async move {
                // Without a sender the server has ended.
                drop(ending.wait_for(|ending| *ending).await);
            }),
            request_time: worker.request_time,
            timed_out: Arc::clone(&worker.timed_out),
        }
    }

    /// Waits until `deadline`. Most deadlines move before they come: the timer is set anew only when it has run out, or
    /// would run out too late.
    fn poll_until(&mut self, context: &mut TaskContext<'_>, deadline: tokio::time::Instant) -> Poll<()> {
        if self.timer.deadline() > deadline {
            self.timer.as_mut().reset(deadline);
        }
        while self.timer.as_mut().poll(context).is_ready() {
            if self.timer.deadline() >= deadline {
                return Poll::Ready(());
            }
            self.timer.as_mut().reset(deadline);
        }
        Poll::Pending
    }
}

/// When an instance has gone on for too long after `start`. A time that no clock can show never comes.
fn deadline(start: Instant, limit: Duration) -> tokio::time::Instant {
    start.checked_add(limit.saturating_add(YIELD_GRACE)).unwrap_or(start + NEVER).into()
}

impl WorkerExpiration for Expiration {
    fn poll(mut self: Pin<&mut Self>, context: &mut TaskContext<'_>, status: WorkerStatus, start: Instant) -> Poll<()> {
        match (status, self.request_time) {
            (WorkerStatus::Idle, _) => {
                if self.ending.as_mut().poll(context).is_ready() {
                    return Poll::Ready(());
                }
                self.poll_until(context, (start + IDLE).into())
            }
            (WorkerStatus::Requests | WorkerStatus::PostReturn, Some(limit)) => {
                let expired = self.poll_until(context, deadline(start, limit));
                self.timed_out.store(expired.is_ready(), Ordering::Relaxed);
                expired
            }
            (WorkerStatus::Requests | WorkerStatus::PostReturn, None) => Poll::Pending,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_limit_is_too_long_for_a_deadline() {
        let start = Instant::now();
        for (limit, expected) in
            [(Duration::ZERO, YIELD_GRACE), (Duration::from_secs(u64::MAX), NEVER), (Duration::MAX, NEVER)]
        {
            assert_eq!(deadline(start, limit).into_std() - start, expected, "{limit:?}");
        }
    }
}
