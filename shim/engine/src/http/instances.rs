//! Instances of an HTTP component: how they are made, how many there are at once, and what is reported of their end.

use std::convert::Infallible;
use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::time::Duration;

use skiff_protocol::{Account, Refusal};
use tokio::sync::{Notify, mpsc, watch};
use tokio::time::{Instant, timeout_at};
use wasmtime::{Engine, Error, PoolConcurrencyLimitError, Result, Store};
use wasmtime_wasi::I32Exit;
use wasmtime_wasi_http::handler::{Proxy, ProxyPre};

use super::size::{PROBE_INSTANCES, instances_max};
use crate::error::{cannot_start, engine_failed, is_guests_end};
use crate::memory::budget::{Budget, Lease};
use crate::memory::denied::Denied;
use crate::metrics::CountedInstance;
use crate::report::Reporter;
use crate::role::Role;
use crate::shared::Shared;
use crate::store::{State, yield_at_ticks};
use crate::ticker::{Ticker, Ticking};
use crate::trap::describe_trap;

/// How long a request waits for the memory of others.
pub(super) const MEMORY_WAIT: Duration = Duration::from_secs(10);
/// How soon it tries again if none of them is done: the limit may have been raised.
const MEMORY_RETRY: Duration = Duration::from_millis(250);
/// What an instance leaves behind in the pool for the next one: pages of its stack and of its tables, and the kernel's page tables.
const LEFT_BYTES: u64 = 48 << 10;
/// A fresh instance is kept room for only if it is at most this part of the guest's share.
const RESERVE_PART: u64 = 8;
/// What a request takes beyond a fresh instance: this part of it must be free, too.
const GROWTH_PART: u64 = 8;

/// For whom an instance is made.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Caller {
    /// Anybody.
    Client,
    /// The kubelet, or somebody who says so: a little room is kept for it.
    Probe,
}

/// All instances that there may be at once are in use.
#[derive(Debug)]
struct AllInUse(u32);

impl fmt::Display for AllInUse {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "all {} instances are in use", self.0)
    }
}

impl std::error::Error for AllInUse {}

/// Whether an instance could not be made because others use up all there is.
pub(super) fn is_shortage(error: &Error) -> bool {
    error.is::<Denied>() || error.is::<AllInUse>() || error.is::<PoolConcurrencyLimitError>()
}

/// Makes instances.
pub(super) struct Instances {
    engine: Engine,
    pre: ProxyPre<State>,
    shared: Arc<Shared>,
    module: Arc<str>,
    ticker: Ticker,
    count: Arc<AtomicU32>,
    /// How many of them are being made.
    making: Arc<AtomicU32>,
    /// The most instances that there have been at once.
    most: AtomicU32,
    /// The size of an instance that has just been made.
    fresh_bytes: AtomicU64,
    /// Notified while somebody waits for an instance.
    crowded: Arc<Notify>,
    short_of_memory: Arc<Notify>,
    alive: mpsc::Sender<Infallible>,
    ending: watch::Receiver<bool>,
}

/// An instance. What is dropped with it frees what it held.
// Invariant: fields are dropped in their order: the store first, then what lets others in.
pub(super) struct Instance {
    pub(super) store: Store<State>,
    pub(super) proxy: Proxy,
    pub(super) host: HostSide,
}

/// What the host keeps for an instance besides its store.
// Invariant: fields are dropped in their order, after the store: first the memory and the place are given back, then a
// waiting request is woken.
pub(super) struct HostSide {
    module: Arc<str>,
    reporter: Arc<Reporter>,
    account: Account,
    _counted: CountedInstance,
    _lease: Arc<Lease>,
    _ticking: Ticking,
    _place: Counted,
    _wake: Option<Wake>,
    _alive: mpsc::Sender<Infallible>,
}

/// One of the instances that there are.
struct Counted(Arc<AtomicU32>);

impl Counted {
    fn one_of(count: &Arc<AtomicU32>) -> Self {
        count.fetch_add(1, Ordering::SeqCst);
        Self(Arc::clone(count))
    }
}

impl Drop for Counted {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::SeqCst);
    }
}

/// The room of an instance that served. When it is gone, another instance may be made in its place.
struct Wake(Arc<Budget>);

impl Drop for Wake {
    fn drop(&mut self) {
        self.0.wake_one();
    }
}

impl Instances {
    /// Instances of `pre`. Each holds a clone of `alive`, and goes at once if it is idle while the server is `ending`.
    ///
    /// # Errors
    /// If there is no room for a thread.
    pub(super) fn new(
        engine: &Engine,
        pre: ProxyPre<State>,
        shared: Arc<Shared>,
        alive: mpsc::Sender<Infallible>,
        ending: watch::Receiver<bool>,
    ) -> Result<Self, Refusal> {
        let ticker = Ticker::start(engine.clone()).map_err(|error| engine_failed(&error.into()))?;
        Ok(Self {
            engine: engine.clone(),
            pre,
            module: shared.plan.module.as_str().into(),
            most: AtomicU32::new(0),
            shared,
            ticker,
            count: Arc::default(),
            making: Arc::default(),
            fresh_bytes: AtomicU64::new(0),
            crowded: Arc::default(),
            short_of_memory: Arc::default(),
            alive,
            ending,
        })
    }

    /// Makes one instance and throws it away, so that a component that cannot be instantiated fails at its start.
    ///
    /// # Errors
    /// [`Refusal::Guest`] if it cannot be instantiated.
    pub(super) async fn try_out(&self) -> Result<(), Refusal> {
        match self.make(Caller::Client).await {
            Ok(instance) => {
                self.fresh_bytes.store(instance.host._lease.held_bytes(), Ordering::Relaxed);
                Ok(())
            }
            Err(error) => Err(match error.downcast_ref::<Denied>() {
                Some(denied) => self.shared.too_big(denied),
                None => cannot_start(&self.shared.plan.module, &error),
            }),
        }
    }

    /// What all instances have in common.
    pub(super) fn shared(&self) -> &Shared {
        &self.shared
    }

    /// The component.
    pub(super) fn pre(&self) -> &ProxyPre<State> {
        &self.pre
    }

    /// Becomes true when the server ends.
    pub(super) fn ending(&self) -> watch::Receiver<bool> {
        self.ending.clone()
    }

    /// Notified again and again while a request waits for an instance.
    pub(super) fn crowded(&self) -> &Arc<Notify> {
        &self.crowded
    }

    /// Notified again and again while a request waits for memory.
    pub(super) fn short_of_memory(&self) -> &Arc<Notify> {
        &self.short_of_memory
    }

    /// Whether no instance is alive.
    pub(super) fn is_idle(&self) -> bool {
        self.count.load(Ordering::Relaxed) == 0
    }

    /// Makes an instance. If all of the container's memory or all instances are in use, it waits until another instance is
    /// gone or the limit is raised.
    ///
    /// # Errors
    /// That of [`is_shortage`] if none went before `deadline`, and those of instantiating.
    pub(super) async fn make_in_turn(&self, caller: Caller, deadline: Instant) -> Result<Instance> {
        let mut has_waited = false;
        loop {
            let released = self.shared.budget.released();
            match self.make(caller).await {
                Ok(mut instance) => {
                    instance.host._wake = Some(Wake(Arc::clone(&self.shared.budget)));
                    if has_waited {
                        // What was released may be enough for the next one as well.
                        self.shared.budget.wake_one();
                    }
                    return Ok(instance);
                }
                Err(error) if is_shortage(&error) => {
                    if error.is::<Denied>() {
                        self.short_of_memory.notify_waiters();
                    }
                    self.crowded.notify_waiters();
                    let again = deadline.min(Instant::now() + MEMORY_RETRY);
                    if timeout_at(again, released).await.is_err() && again == deadline {
                        return Err(error);
                    }
                    has_waited = true;
                }
                Err(error) => return Err(error),
            }
        }
    }

    async fn make(&self, caller: Caller) -> Result<Instance> {
        let _making = Counted::one_of(&self.making);
        let place = self.take_place(caller)?;
        let state = self.shared.state(Role::Server).map_err(|refusal| Error::msg(format!("{refusal:?}")))?;
        let host = HostSide {
            module: Arc::clone(&self.module),
            reporter: Arc::clone(&self.shared.reporter),
            account: self.shared.account,
            _counted: CountedInstance::new(self.shared.account),
            _lease: state.limiter.lease(),
            _ticking: self.ticker.tick(),
            _place: place,
            _wake: None,
            _alive: self.alive.clone(),
        };
        let mut store = state.into_store(&self.engine);
        yield_at_ticks(&mut store);
        match self.pre.instantiate_async(&mut store).await {
            Ok(proxy) => Ok(Instance { store, proxy, host }),
            Err(error) => Err(match store.data().limiter.denied() {
                Some(denied) if !is_guests_end(&error) => Error::from(denied.clone()),
                _ => error,
            }),
        }
    }

    /// Keeps from the guest's share what so many instances at once leave behind in a pool, unless there have been as many before.
    fn keep_what_is_left_by(&self, count: u32) {
        let before = self.most.fetch_max(count, Ordering::Relaxed);
        if self.shared.pool_instances.is_some() && count > before {
            self.shared.budget.keep(u64::from(count - before) * LEFT_BYTES);
        }
    }

    /// Takes a place for an instance. Clients leave room for one that is made for a probe.
    fn take_place(&self, caller: Caller) -> Result<Counted> {
        let limit_bytes = self.shared.budget.limit_bytes();
        let usual = instances_max(limit_bytes).min(self.shared.pool_instances.unwrap_or(u32::MAX));
        let most = match caller {
            Caller::Client => usual,
            Caller::Probe => usual + PROBE_INSTANCES,
        };
        let next = |count: u32| (count < most).then_some(count + 1);
        let count = self.count.fetch_update(Ordering::Relaxed, Ordering::Relaxed, next).map_err(|_| AllInUse(most))?;
        let place = Counted(Arc::clone(&self.count));
        self.keep_what_is_left_by(count + 1);
        if caller == Caller::Client && count > 0 {
            let fresh_bytes = self.fresh_bytes.load(Ordering::Relaxed);
            // Those that are being made may not have taken their memory yet.
            let wanted = u64::from(self.making.load(Ordering::SeqCst)) + 1;
            let wanted_bytes = fresh_bytes.saturating_mul(wanted).saturating_add(fresh_bytes / GROWTH_PART);
            self.shared.budget.check_room(wanted_bytes, fresh_bytes.saturating_mul(RESERVE_PART))?;
        }
        Ok(place)
    }
}

impl HostSide {
    /// Reports on stderr how an instance ended before its time.
    pub(super) fn report_end(&self, error: &Error, state: &State) {
        let Self { module, reporter, .. } = self;
        match error.downcast_ref::<I32Exit>() {
            Some(exit) => {
                reporter.line(&format!("{module}: an instance exited with code {} while serving a request", exit.0))
            }
            None => {
                self.account.add_trap();
                reporter.line(&describe_trap(module, error, &state.tail.text()).text);
            }
        }
        if let Some(denied) = state.limiter.denied_just_now() {
            reporter.line(&format!("{module}: an instance ran out of memory: {denied}"));
        }
    }

    /// Reports on stderr that an instance was ended because it went on for too long.
    pub(super) fn report_overtime(&self) {
        self.reporter.line(&format!(
            "{}: ended an instance that was still running after its response, for longer than `request-time`",
            self.module
        ));
    }
}
