//! The state of a store: what the host keeps for one instance of a guest.

use std::collections::BTreeMap;
use std::sync::Arc;

use skiff_protocol::Limits;
use wasmtime::{Engine, Store};
use wasmtime_wasi::p1::WasiP1Ctx;
use wasmtime_wasi::{WasiCtxView, WasiView};
use wasmtime_wasi_http::{WasiHttpCtx, WasiHttpCtxView, WasiHttpView};

use crate::files::listing::Listing;
use crate::files::tree::Tree;
use crate::memory::budget::Budget;
use crate::memory::denied::Denied;
use crate::memory::limiter::Limiter;
use crate::names::resolver::Resolver;
use crate::outgoing::client::Client;
use crate::outgoing::hooks::Outgoing;

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
    http: WasiHttpCtx,
    outgoing: Outgoing,
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
    ) -> Result<Self, Denied> {
        let limiter = Limiter::new(budget, limits);
        let usual_bytes = Limits::default().stack_bytes;
        limiter.reserve(limits.stack_bytes.saturating_sub(usual_bytes) as u64)?;
        let outgoing = Outgoing(Arc::clone(client));
        let (resolver, http) = (Arc::clone(resolver), WasiHttpCtx::new());
        Ok(Self { wasi, limiter, tree, listings: BTreeMap::new(), resolver, http, outgoing })
    }

    /// Makes a store of this state, with its limits in force and its epoch deadline out of reach.
    pub(crate) fn into_store(self, engine: &Engine) -> Store<Self> {
        let mut store = Store::new(engine, self);
        store.limiter(|state| &mut state.limiter);
        store.set_epoch_deadline(u64::MAX / 2);
        store
    }
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
