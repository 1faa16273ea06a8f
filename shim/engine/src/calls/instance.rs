//! An instance that is called: made, initialized and called, with what ends a call before its time.

use std::sync::Arc;
use std::time::Duration;

use skiff_protocol::{EXIT_OOM, exit_code_of_proc_exit, exit_code_of_signal};
use tokio::time::timeout;
use wasmtime::component::{self, Val as ComponentValue};
use wasmtime::{Error, Result, Store, Val};
use wasmtime_wasi::I32Exit;

use super::expression::{Arguments, Call};
use super::functions::{Code, Function};
use super::result::Results;
use crate::coredump::Dump;
use crate::exports::INITIALIZE;
use crate::metrics::CountedInstance;
use crate::shared::Shared;
use crate::shown::shown;
use crate::store::{State, yield_at_ticks};
use crate::trap::{Description, describe_trap};

/// How much the results of one call may take on the host's side, in bytes.
const RESULT_BYTES_MAX: u64 = 16 << 20;
/// How little that is under a small memory limit, of which it is a [`RESULT_PART`]th: as much as a guest writes at once.
const RESULT_BYTES_MIN: u64 = 1 << 20;
const RESULT_PART: u64 = 16;

/// An instance whose functions can be called.
pub(super) struct Instance {
    store: Store<State>,
    exports: Exports,
    /// What the results of a call may take.
    result_bytes: u64,
    _counted: CountedInstance,
}

/// Where its functions are.
enum Exports {
    Module(wasmtime::Instance),
    Component(component::Instance),
}

/// A call that ended its instance.
pub(super) struct Ended {
    /// The exit code of whoever called.
    pub(super) code: i32,
    /// What happened, for whoever called and for the container's own log.
    pub(super) told: String,
    /// Whether the instance ended because it was refused memory.
    pub(super) ran_out: bool,
    /// How it trapped, if it did not end itself.
    pub(super) trap: Option<Error>,
    /// What is left of the instance, for a core dump.
    remains: Option<Box<Instance>>,
}

impl Instance {
    /// Makes an instance of `code` in a store of `state`, results of which take at most `result_bytes`. Its own start function runs.
    ///
    /// # Errors
    /// What ended it, or why it cannot be made; with the store, which knows whether memory was refused.
    pub(super) async fn new(
        code: &Code,
        state: State,
        result_bytes: u64,
        shared: &Shared,
    ) -> Result<Self, (Error, Box<Store<State>>)> {
        let mut store = state.into_store(code.engine());
        yield_at_ticks(&mut store);
        set_fuel(&mut store, result_bytes);
        let made = match code {
            Code::Module(pre) => pre.instantiate_async(&mut store).await.map(Exports::Module),
            Code::Component(pre) => pre.instantiate_async(&mut store).await.map(Exports::Component),
        };
        if let Ok(Exports::Module(instance)) = &made {
            store.data_mut().instance = Some(*instance);
        }
        match made {
            Ok(exports) => Ok(Self { store, exports, result_bytes, _counted: CountedInstance::new(shared.account) }),
            Err(error) => Err((error, Box::new(store))),
        }
    }

    /// Calls what initializes a core module, if there is something.
    ///
    /// # Errors
    /// What ended the instance.
    pub(super) async fn initialize(&mut self, shared: &Shared) -> Result<(), Ended> {
        let Exports::Module(instance) = &self.exports else { return Ok(()) };
        let Some(function) = instance.get_func(&mut self.store, INITIALIZE) else { return Ok(()) };
        let called = function.call_async(&mut self.store, &[], &mut []);
        let called = limited(shared, || format!("the call of `{INITIALIZE}`"), called).await?;
        called.map_err(|error| Ended::with(error, &mut self.store, shared))
    }

    /// Makes a call, for at most as long as the guest's limits say.
    ///
    /// # Errors
    /// What ended the call, and the instance with it.
    pub(super) async fn call(&mut self, call: &Call, shared: &Shared) -> Result<Results, Ended> {
        let what = || format!("the call of `{}`", shown(call.name.as_bytes()));
        let called = limited(shared, what, self.evaluate(call)).await?;
        called.map_err(|error| Ended::with(error, &mut self.store, shared))
    }

    async fn evaluate(&mut self, call: &Call) -> Result<Results> {
        let Self { store, exports, result_bytes, .. } = self;
        let gone = || Error::msg(format!("no function `{}`", call.name));
        let count = call.function.results();
        match (exports, &call.arguments, &call.function) {
            (Exports::Module(instance), Arguments::Core(arguments), Function::Core(_)) => {
                let function = instance.get_func(&mut *store, &call.name).ok_or_else(gone)?;
                let mut results = vec![Val::I32(0); count];
                function.call_async(store, arguments, &mut results).await?;
                Ok(Results::Core(results))
            }
            (
                Exports::Component(instance),
                Arguments::Component(arguments),
                Function::Component { index, bytes_per_fuel, .. },
            ) => {
                // It is what the guest may hand over in a call of the host, too.
                set_fuel(store, *result_bytes / bytes_per_fuel);
                let function = instance.get_func(&mut *store, index).ok_or_else(gone)?;
                let mut results = vec![ComponentValue::Bool(false); count];
                function.call_async(store, arguments, &mut results).await?;
                Ok(Results::Component(results))
            }
            // A call is made for the code of its instance.
            (Exports::Module(_) | Exports::Component(_), _, _) => Err(gone()),
        }
    }
}

/// What is taken of the guest's budget for results that may take `result_bytes`: functions of modules return a few numbers.
pub(super) fn result_room(code: &Code, result_bytes: u64) -> u64 {
    match code {
        Code::Module(_) => 0,
        Code::Component(_) => result_bytes,
    }
}

fn set_fuel(store: &mut Store<State>, fuel: u64) {
    store.set_hostcall_fuel(usize::try_from(fuel).unwrap_or(usize::MAX));
}

/// How much the results of each of `count` instances may take under a memory limit.
pub(super) fn result_bytes(limit_bytes: Option<u64>, count: usize) -> u64 {
    let part_bytes = limit_bytes.map_or(RESULT_BYTES_MAX, |limit_bytes| limit_bytes / RESULT_PART);
    (part_bytes.min(RESULT_BYTES_MAX) / count as u64).max(RESULT_BYTES_MIN)
}

/// Lets a guest run for as long as one call may take. `what` it runs is for the sentence if it takes longer.
///
/// # Errors
/// That it took longer.
pub(super) async fn limited<T>(
    shared: &Shared,
    what: impl FnOnce() -> String,
    course: impl Future<Output = T>,
) -> Result<T, Ended> {
    match shared.plan.limits.call_time {
        None => Ok(course.await),
        Some(limit) => timeout(limit, course).await.map_err(|_| Ended::after(limit, &what(), shared)),
    }
}

impl Ended {
    /// What `error` says about the end of an instance in `store`.
    pub(super) fn with(error: Error, store: &mut Store<State>, shared: &Shared) -> Self {
        let module = &shared.plan.module;
        if let Some(exit) = error.downcast_ref::<I32Exit>() {
            let code = exit_code_of_proc_exit(exit.0);
            let told = format!("{module} ended itself with {code} in a call");
            return Self::plain(code, told);
        }
        // Before anything that takes processor time, by which this tells how long ago a refusal was.
        let denied = store.data().limiter.denied_just_now().cloned();
        let Description { code, text: told, .. } = describe_trap(module, &error, &store.data().tail.text());
        let (code, told, ran_out) = match denied {
            None => (code, told, false),
            Some(denied) => (EXIT_OOM, format!("{told}\nskiff: {module} ran out of memory: {denied}"), true),
        };
        Self { code, told, ran_out, trap: Some(error), remains: None }
    }

    /// An end that is told in one line, and is no trap.
    pub(super) fn plain(code: i32, told: String) -> Self {
        Self { code, told, ran_out: false, trap: None, remains: None }
    }

    /// The same end, with the instance that ended.
    pub(super) fn of(self, instance: Instance) -> Self {
        Self { remains: Some(Box::new(instance)), ..self }
    }

    /// Begins to write a core dump of the instance, if it trapped and one is wanted. It waits for another one for `patience`.
    pub(super) fn dump(self, shared: &Arc<Shared>, patience: Duration) -> Option<Dump> {
        Dump::begin(self.remains?.store, self.trap?, shared, patience)
    }

    fn after(limit: Duration, what: &str, shared: &Shared) -> Self {
        let told = format!("{what} of {} took longer than its limit `call-time` of {limit:?}", shared.plan.module);
        Self::plain(exit_code_of_signal(libc::SIGTERM), told)
    }
}
