//! Components that run once: `wasi:cli/run` of 0.2 or 0.3, or a function that the plan names.

use std::sync::Arc;

use skiff_protocol::{EnginePlan, Refusal};
use tokio::runtime::Runtime;
use wasmtime::component::{Component, InstancePre};
use wasmtime::{Error, Result, Store};
use wasmtime_wasi::{p2, p3};

use super::call::Entry;
use super::command::{Command, ended_or_refused, prepare_store, runtime};
use crate::exports::{check_component, nothing_to_run};
use crate::link::link_component;
use crate::role::Role;
use crate::shared::Shared;
use crate::store::State;

/// A component that is linked. Nothing of it has run.
pub(crate) struct LinkedComponent {
    pre: InstancePre<State>,
    entrance: Entrance,
    runtime: Runtime,
}

/// What of a component will be called.
enum Entrance {
    P2(p2::bindings::CommandPre<State>),
    P3(p3::bindings::CommandPre<State>),
    Function(String),
}

impl LinkedComponent {
    /// What it is an instance of.
    pub(crate) fn pre(&self) -> &InstancePre<State> {
        &self.pre
    }

    /// Links a component, and finds out what of it will be called.
    ///
    /// # Errors
    /// [`Refusal::Guest`] if it imports something that skiff does not provide, or exports nothing to run.
    pub(crate) fn new(component: &Component, shared: &Shared) -> Result<Self, Refusal> {
        let pre = link_component(component, shared)?;
        let entrance = Entrance::find(&pre, &shared.plan)?;
        Ok(Self { pre, entrance, runtime: runtime()? })
    }

    /// Instantiates it.
    ///
    /// # Errors
    /// [`Refusal::Guest`] if its initial memory exceeds the limit.
    pub(crate) fn instantiate(self, shared: Arc<Shared>) -> Result<Command, Refusal> {
        let Self { pre, entrance, runtime } = self;
        let mut store = prepare_store(pre.engine(), &shared, Role::Component)?;
        let entry = match runtime.block_on(entrance.instantiate(&pre, &mut store)) {
            Ok(entry) => entry,
            Err(error) => ended_or_refused(&store, error, &shared)?,
        };
        Ok(Command::new(shared, runtime, store, entry))
    }
}

impl Entrance {
    fn find(pre: &InstancePre<State>, plan: &EnginePlan) -> Result<Self, Refusal> {
        if let Some(name) = &plan.function {
            return check_component(pre.component(), name, plan).map(|()| Self::Function(name.clone()));
        }
        if let Ok(command) = p3::bindings::CommandPre::new(pre.clone()) {
            return Ok(Self::P3(command));
        }
        p2::bindings::CommandPre::new(pre.clone()).map(Self::P2).map_err(|_| nothing_to_run(plan))
    }

    async fn instantiate(self, pre: &InstancePre<State>, store: &mut Store<State>) -> Result<Entry> {
        Ok(match self {
            Self::P2(command) => Entry::P2(command.instantiate_async(store).await?),
            Self::P3(command) => Entry::P3(command.instantiate_async(store).await?),
            Self::Function(name) => {
                let instance = pre.instantiate_async(&mut *store).await?;
                let function = instance.get_func(&mut *store, &name);
                Entry::Function(function.ok_or_else(|| Error::msg(format!("no function `{name}`")))?)
            }
        })
    }
}
