//! A command's life once its code is linked: a store, a run to its end, and the exit code.

use std::io;
use std::sync::{Arc, PoisonError};

use skiff_protocol::{EXIT_OOM, Refusal};
use tokio::runtime::{Builder, Runtime};
use wasmtime::{Engine, Error, Store};
use wasmtime_wasi::I32Exit;

use super::call::{Entry, Returned, call};
use crate::coredump::Dump;
use crate::error::{cannot_start, is_guests_end};
use crate::memory::denied::Denied;
use crate::report::exit_code;
use crate::role::Role;
use crate::shared::Shared;
use crate::store::State;
use crate::trap::{Description, describe_trap};
use crate::{coredump, deadline, signals};

/// A command that is instantiated and has not run.
pub(crate) struct Command {
    shared: Arc<Shared>,
    runtime: Runtime,
    store: Store<State>,
    entry: Entry,
}

impl Command {
    /// A command that is about to call `entry`.
    pub(super) fn new(shared: Arc<Shared>, runtime: Runtime, store: Store<State>, entry: Entry) -> Self {
        shared.account.add_instance();
        Self { shared, runtime, store, entry }
    }

    /// Runs the guest to its end, and returns the exit code.
    pub(crate) fn run(mut self) -> i32 {
        let Shared { streams, .. } = &*self.shared;
        let result = self.runtime.block_on(call(&mut self.store, self.entry));
        // Before anything is printed: that takes processor time, by which this tells how long ago a refusal was.
        let denied = self.store.data().limiter.denied_just_now().cloned();
        let result = result.map(|Returned { code, text }| {
            // Like a guest's own output, it is lost if nobody reads it.
            drop(streams.print(text.as_bytes()));
            code
        });
        let code = ended(&self.shared, &self.runtime, result, denied.as_ref(), Box::leak(Box::new(self.store)));
        coredump::finish(&self.shared);
        // The process ends here: unmapping the guest and waiting for a thread that reads stdin would only take time.
        std::mem::forget(self.runtime);
        code
    }
}

/// Says why a guest ended that did not do so by itself, and returns the exit code.
fn ended(
    shared: &Arc<Shared>,
    runtime: &Runtime,
    result: Result<i32, Error>,
    denied: Option<&Denied>,
    store: &'static mut Store<State>,
) -> i32 {
    let Shared { plan, account, budget, streams, reporter, .. } = &**shared;
    let module = &plan.module;
    let said = store.data().tail.text();
    let (code, trap) = match result {
        Err(trap) if !trap.is::<I32Exit>() => {
            let described = describe_trap(module, &trap, &said);
            (described.code, Some((trap, described)))
        }
        ended => (exit_code(&ended), None),
    };
    let (code, reason) = match denied.filter(|_| code != 0) {
        Some(denied) if trap.is_some() || streams.said_out_of_memory() => {
            budget.set_ran_out();
            (EXIT_OOM, Some(format!("{module} ran out of memory: {denied}")))
        }
        Some(denied) => (code, Some(format!("{module} ended with {code} after it was refused memory: {denied}"))),
        None => (code, None),
    };
    match (trap, reason) {
        (Some((trap, Description { summary, text, .. })), reason) => {
            let mut trapped = shared.trapped.lock().unwrap_or_else(PoisonError::into_inner);
            *trapped = Some(code);
            account.add_trap();
            // First where nobody has to read it, and nothing takes long.
            reporter.last_words().leave(reason.as_deref().unwrap_or(&summary), &said);
            let told = Dump::begin(store, trap, shared, coredump::TIME).map(|dump| runtime.block_on(dump.told()));
            // From here on somebody has to read.
            drop(trapped);
            told.into_iter().for_each(|told| reporter.line(&told));
            reporter.line(&text);
            reason.into_iter().for_each(|reason| reporter.line(&reason));
        }
        (None, Some(reason)) => reporter.end(&reason, &said),
        (None, None) => {}
    }
    code
}

/// The runtime of a guest that has one instance and no thread of its own. It is made before the wall, because it makes sockets for
/// itself.
pub(crate) fn runtime() -> Result<Runtime, Refusal> {
    Builder::new_current_thread().enable_all().build().map_err(|error| cannot_prepare(&error))
}

/// Makes the store of a command whose code is about to run, and sets what ends it: signals and its run time.
pub(super) fn prepare_store(engine: &Engine, shared: &Shared, role: Role) -> Result<Store<State>, Refusal> {
    // Before Ready: from then on a signal must find the guest's course.
    signals::grant_grace();
    let state = shared.state(role)?;
    if let Some(limit) = shared.plan.limits.run_time {
        let Shared { plan, reporter, trapped, .. } = shared;
        deadline::end_after(limit, &plan.module, reporter, Arc::clone(&state.tail), trapped)
            .map_err(|error| cannot_prepare(&error))?;
    }
    Ok(state.into_store(engine))
}

/// Sorts a failed instantiation: a guest that ended in its own code has run; everything else is a refusal.
pub(super) fn ended_or_refused(store: &Store<State>, error: Error, shared: &Shared) -> Result<Entry, Refusal> {
    match store.data().limiter.denied() {
        _ if is_guests_end(&error) => Ok(Entry::Ended(error)),
        Some(denied) => Err(shared.too_big(denied)),
        None => Err(cannot_start(&shared.plan.module, &error)),
    }
}

fn cannot_prepare(error: &io::Error) -> Refusal {
    Refusal::Host(format!("cannot prepare to run the guest: {error}"))
}
