//! Core modules: `_start`, or a function that the plan names.

use std::sync::Arc;

use skiff_protocol::Refusal;
use tokio::runtime::Runtime;
use wasmtime::{Extern, Instance, InstancePre, Module, Store};

use super::call::Entry;
use super::command::{Command, ended_or_refused, prepare_store, runtime};
use crate::exports::{INITIALIZE, START, check_module, no_function};
use crate::link::link_module;
use crate::role::Role;
use crate::shared::Shared;
use crate::store::State;

/// A core module that is linked. Nothing of it has run.
pub(crate) struct LinkedModule {
    pre: InstancePre<State>,
    runtime: Runtime,
}

impl LinkedModule {
    /// What it is an instance of.
    pub(crate) fn pre(&self) -> &InstancePre<State> {
        &self.pre
    }

    /// Links a core module.
    ///
    /// # Errors
    /// [`Refusal::Guest`] if it imports something that skiff does not provide, or there is no function to run.
    pub(crate) fn new(module: &Module, shared: &Shared) -> Result<Self, Refusal> {
        check_module(module, &shared.plan)?;
        Ok(Self { pre: link_module(module, shared)?, runtime: runtime()? })
    }

    /// Instantiates it.
    ///
    /// # Errors
    /// [`Refusal::Guest`] if its initial memory exceeds the limit.
    pub(crate) fn instantiate(self, shared: Arc<Shared>) -> Result<Command, Refusal> {
        let Self { pre, runtime } = self;
        let mut store = prepare_store(pre.module().engine(), &shared, Role::Module)?;
        let entry = match runtime.block_on(pre.instantiate_async(&mut store)) {
            Ok(instance) => {
                store.data_mut().instance = Some(instance);
                entry(&mut store, &instance, &shared)?
            }
            Err(error) => ended_or_refused(&store, error, &shared)?,
        };
        Ok(Command::new(shared, runtime, store, entry))
    }
}

fn entry(store: &mut Store<State>, instance: &Instance, shared: &Shared) -> Result<Entry, Refusal> {
    let name = shared.plan.function.as_deref().unwrap_or(START);
    let initialize = match shared.plan.function.as_deref() {
        Some(function) if function != INITIALIZE => {
            instance.get_export(&mut *store, INITIALIZE).and_then(Extern::into_func)
        }
        _ => None,
    };
    match instance.get_func(&mut *store, name) {
        Some(function) => Ok(Entry::Module { initialize, function }),
        None => Err(no_function(name, &shared.plan)),
    }
}
