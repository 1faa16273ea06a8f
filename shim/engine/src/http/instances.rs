//! Instances of an HTTP component: how they are made, how many requests each serves, and what is reported of its end.

use std::convert::Infallible;
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use skiff_protocol::{Account, Refusal};
use tokio::sync::{mpsc, oneshot, watch};
use tokio::time::{sleep, timeout_at};
use wasmtime::component::GuestTaskId;
use wasmtime::{Engine, Error, PoolConcurrencyLimitError, Result, Store, StoreContextMut};
use wasmtime_wasi::I32Exit;
use wasmtime_wasi_http::WasiHttpView;
use wasmtime_wasi_http::handler::{HandlerState, Instance, Proxy, ProxyPre, ShouldAccept, WorkerState};

use super::expiration::Expiration;
use super::ticker::{Ticker, Ticking};
use crate::error::{cannot_start, engine_failed, is_guests_end};
use crate::memory::budget::{Budget, Lease};
use crate::memory::denied::Denied;
use crate::metrics::CountedInstance;
use crate::report::Reporter;
use crate::role::Role;
use crate::shared::Shared;
use crate::store::State;

/// An instance of WASI 0.2 serves one request; one of 0.3 is made for more, several at once.
const P3_REQUESTS_MAX: usize = 128;
const P3_CONCURRENT_REQUESTS_MAX: usize = 16;
/// How long a request waits for the memory of others.
const MEMORY_WAIT: Duration = Duration::from_secs(10);
/// How soon it tries again if none of them is done: the limit may have been raised.
const MEMORY_RETRY: Duration = Duration::from_millis(250);

/// Sent to a request whose instance was ended. The reason is already reported.
pub(super) struct Ended;

/// What goes with a request: whom to notify if its instance is ended.
pub(super) type RequestData = oneshot::Sender<Ended>;

/// Whether an instance could not be made because others use up all there is.
pub(super) fn is_shortage(error: &Error) -> bool {
    error.is::<Denied>() || error.is::<PoolConcurrencyLimitError>()
}

/// Makes instances.
pub(super) struct Instances {
    engine: Engine,
    pre: ProxyPre<State>,
    shared: Shared,
    ticker: Ticker,
    alive: mpsc::Sender<Infallible>,
    ending: watch::Receiver<bool>,
}

impl Instances {
    /// Instances of `pre`. Each holds a clone of `alive`, and goes at once if it is idle while the server is `ending`.
    ///
    /// # Errors
    /// If there is no room for a thread.
    pub(super) fn new(
        engine: &Engine,
        pre: ProxyPre<State>,
        shared: Shared,
        alive: mpsc::Sender<Infallible>,
        ending: watch::Receiver<bool>,
    ) -> Result<Self, Refusal> {
        let ticker = Ticker::start(engine.clone()).map_err(|error| engine_failed(&error.into()))?;
        Ok(Self { engine: engine.clone(), pre, shared, ticker, alive, ending })
    }

    /// Makes one instance and throws it away, so that a component that cannot be instantiated fails at its start.
    ///
    /// # Errors
    /// [`Refusal::Guest`] if it cannot be instantiated.
    pub(super) async fn try_out(&self) -> Result<(), Refusal> {
        self.make().await.map(drop).map_err(|error| match error.downcast_ref::<Denied>() {
            Some(denied) => self.shared.too_big(denied),
            None => cannot_start(&self.shared.plan.module, &error),
        })
    }

    /// What all instances have in common.
    pub(super) fn shared(&self) -> &Shared {
        &self.shared
    }

    /// Whether no instance is alive.
    pub(super) fn is_idle(&self) -> bool {
        self.ticker.wanted() == 0
    }

    async fn make(&self) -> Result<(Store<State>, Proxy, Worker)> {
        let state = self.shared.state(Role::Server).map_err(|refusal| Error::msg(format!("{refusal:?}")))?;
        let worker = Worker {
            module: self.shared.plan.module.clone(),
            reporter: Arc::clone(&self.shared.reporter),
            limits: RequestLimits::of(&self.pre),
            request_time: self.shared.plan.limits.request_time,
            timed_out: Arc::default(),
            requests: Mutex::new(Vec::new()),
            _alive: self.alive.clone(),
            _ticking: self.ticker.tick(),
            account: self.shared.account,
            _counted: CountedInstance::new(self.shared.account),
            _lease: state.limiter.lease(),
            room: None,
        };
        let mut store = state.into_store(&self.engine);
        store.epoch_deadline_async_yield_and_update(1);
        store.set_epoch_deadline(1);
        match self.pre.instantiate_async(&mut store).await {
            Ok(proxy) => Ok((store, proxy, worker)),
            Err(error) => Err(match store.data().limiter.denied() {
                Some(denied) if !is_guests_end(&error) => Error::from(denied.clone()),
                _ => error,
            }),
        }
    }
}

impl HandlerState for Instances {
    type StoreData = State;
    type WorkerExpiration = Expiration;
    type WorkerState = Worker;

    /// Makes an instance. If all of the container's memory is in use, it waits until another instance is gone or the limit
    /// is raised.
    async fn instantiate(&self) -> Result<Instance<State, Expiration, Worker>> {
        let deadline = tokio::time::Instant::now() + MEMORY_WAIT;
        let mut has_waited = false;
        loop {
            let released = self.shared.budget.released();
            match self.make().await {
                Ok((store, proxy, mut state)) => {
                    state.room = Some(Room(Arc::clone(&self.shared.budget)));
                    if has_waited {
                        // What was released may be enough for the next one as well.
                        self.shared.budget.wake_one();
                    }
                    let expiration = Expiration::new(state.request_time, &state.timed_out, self.ending.clone());
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

/// The memory of an instance that served. When it is gone, another instance may be made in its place.
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
// Invariant: fields are dropped in their order, after the store: first the memory is given back, then a waiting request is
// woken.
pub(super) struct Worker {
    module: String,
    reporter: Arc<Reporter>,
    limits: RequestLimits,
    request_time: Option<Duration>,
    timed_out: Arc<AtomicBool>,
    requests: Mutex<Vec<RequestData>>,
    account: Account,
    _counted: CountedInstance,
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
                self.reporter.line(&format!(
                    "{}: ended an instance that was still running after its request's time limit",
                    self.module
                ));
            } else {
                self.report_end(&error, store.data().limiter.denied_just_now());
            }
            for request in requests {
                // A request that already has its answer is not waiting.
                drop(request.send(Ended));
            }
        }
        drop(store);
    }
}

impl Worker {
    /// Reports on stderr how an instance ended before its time.
    fn report_end(&self, error: &Error, denied: Option<&Denied>) {
        let Self { module, reporter, .. } = self;
        match error.downcast_ref::<I32Exit>() {
            Some(exit) => {
                reporter.line(&format!("{module}: an instance exited with code {} while serving a request", exit.0))
            }
            None => {
                self.account.add_trap();
                reporter.trap(module, error);
            }
        }
        if let Some(denied) = denied {
            reporter.line(&format!("{module}: an instance ran out of memory: {denied}"));
        }
    }
}
