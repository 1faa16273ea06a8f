//! The state of a store: what the host keeps for one instance of a guest.

pub(crate) mod ledger;
pub(crate) mod visits;

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};

use skiff_protocol::Limits;
use wasmtime::{Engine, Instance, Store, UpdateDeadline};
use wasmtime_wasi::p1::WasiP1Ctx;
use wasmtime_wasi::{WasiCtxView, WasiView};
use wasmtime_wasi_http::{WasiHttpCtx, WasiHttpCtxView, WasiHttpView};

use self::ledger::{Entered, Ledger, What};
use self::visits::{Visits, Waiting};
use crate::files::listing::Listing;
use crate::files::tree::Tree;
use crate::memory::budget::Budget;
use crate::memory::denied::Denied;
use crate::memory::limiter::Limiter;
use crate::names::resolver::Resolver;
use crate::outgoing::client::Client;
use crate::outgoing::hooks::Outgoing;
use crate::stdio::tail::Tail;
use crate::turn::Turn;

/// What the host keeps for one instance.
pub(crate) struct State {
    /// The WASI context, for modules and components alike.
    pub(crate) wasi: WasiP1Ctx,
    /// The limits, and what they denied.
    pub(crate) limiter: Limiter,
    /// What resolves the guest's paths.
    pub(crate) tree: Tree,
    /// The directories that a guest of WASI 0.1 lists, by its descriptors.
    pub(crate) listings: BTreeMap<i32, Listing>,
    /// What looks up names.
    pub(crate) resolver: Arc<Resolver>,
    /// What it wrote to stderr last.
    pub(crate) tail: Arc<Tail>,
    /// The instance of a core module, once it is made.
    pub(crate) instance: Option<Instance>,
    http: WasiHttpCtx,
    outgoing: Outgoing,
    visits: Arc<Visits<State>>,
    entered: Entered,
}

/// What instances are entered in, and who looks at them.
#[derive(Default)]
pub(crate) struct Glass {
    /// What is under way.
    pub(crate) ledger: Arc<Ledger>,
    /// Who looks.
    pub(crate) visits: Arc<Visits<State>>,
    /// Held while a profile is taken: one at a time.
    pub(crate) profiling: Mutex<()>,
    /// Held while a dump is written: one at a time.
    pub(crate) dumping: Mutex<()>,
    /// Held while the dump of a trap is written.
    pub(crate) keeping: Turn,
}

impl State {
    /// The state of a new instance that draws on `budget`.
    ///
    /// # Errors
    /// If the budget has no room for a stack that is larger than usual.
    pub(crate) fn new(
        wasi: WasiP1Ctx,
        tree: Tree,
        budget: &Arc<Budget>,
        limits: &Limits,
        resolver: &Arc<Resolver>,
        client: &Arc<Client>,
        glass: &Glass,
    ) -> Result<Self, Denied> {
        let limiter = Limiter::new(budget, limits);
        let usual_bytes = Limits::default().stack_bytes;
        limiter.reserve(limits.stack_bytes.saturating_sub(usual_bytes) as u64)?;
        let outgoing = Outgoing(Arc::clone(client));
        let (resolver, http) = (Arc::clone(resolver), WasiHttpCtx::new());
        let entered = glass.ledger.enter(What::Instance(limiter.lease()));
        let (visits, listings) = (Arc::clone(&glass.visits), BTreeMap::new());
        let (instance, tail) = (None, Arc::default());
        Ok(Self { wasi, limiter, tree, listings, resolver, tail, instance, http, outgoing, visits, entered })
    }

    /// Makes a store of this state, with its limits in force. When the epoch advances its guest is looked at, and goes on.
    pub(crate) fn into_store(self, engine: &Engine) -> Store<Self> {
        let visits = Arc::clone(&self.visits);
        let mut store = Store::new(engine, self);
        store.limiter(|state| &mut state.limiter);
        store.epoch_deadline_callback(visits.attend(|| UpdateDeadline::Continue(1)));
        store.set_epoch_deadline(1);
        store
    }

    /// The guest as it is about to wait in this call of the host.
    pub(crate) fn waiting(&self, call: &'static str) -> Waiting<Self> {
        Waiting::begin(&self.visits, call)
    }

    /// The number of the instance among all that is under way in this process.
    pub(crate) fn number(&self) -> u64 {
        self.entered.number()
    }
}

/// From now on the guest of `store` also yields to others whenever the epoch advances.
pub(crate) fn yield_at_ticks(store: &mut Store<State>) {
    // It is what makes all calls asynchronous, so that they can yield.
    store.epoch_deadline_async_yield_and_update(1);
    let visits = Arc::clone(&store.data().visits);
    store.epoch_deadline_callback(visits.attend(|| UpdateDeadline::Yield(1)));
    store.set_epoch_deadline(1);
}

impl WasiView for State {
    fn ctx(&mut self) -> WasiCtxView<'_> {
        self.wasi.ctx()
    }
}

impl WasiHttpView for State {
    fn http(&mut self) -> WasiHttpCtxView<'_> {
        WasiHttpCtxView { ctx: &mut self.http, table: self.wasi.ctx().table, hooks: &mut self.outgoing }
    }
}
