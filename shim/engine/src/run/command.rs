//! A command's life once its code is linked: a store, a run to its end, and the exit code.

use std::io;
use std::sync::Arc;

use skiff_protocol::{Account, EXIT_OOM, Refusal};
use tokio::runtime::{Builder, Runtime};
use wasmtime::{Engine, Error, Store};
use wasmtime_wasi::I32Exit;

use super::call::{Entry, Returned, call};
use crate::error::{cannot_start, is_guests_end};
use crate::memory::budget::Budget;
use crate::report::Reporter;
use crate::role::Role;
use crate::shared::Shared;
use crate::stdio::streams::Streams;
use crate::store::State;
use crate::{deadline, signals};

/// A command that is instantiated and has not run.
pub(crate) struct Command {
    module: String,
    account: Account,
    budget: Arc<Budget>,
    streams: Arc<Streams>,
    reporter: Arc<Reporter>,
    runtime: Runtime,
    store: Store<State>,
    entry: Entry,
}

impl Command {
    /// A command that is about to call `entry`.
    pub(super) fn new(shared: Shared, runtime: Runtime, store: Store<State>, entry: Entry) -> Self {
        let Shared { account, plan, budget, streams, reporter, .. } = shared;
        account.add_instance();
        Self { module: plan.module, account, budget, streams, reporter, runtime, store, entry }
    }

    /// Runs the guest to its end, and returns the exit code.
    pub(crate) fn run(mut self) -> i32 {
        let result = self.runtime.block_on(call(&mut self.store, self.entry));
        let trapped = result.as_ref().is_err_and(|error| !error.is::<I32Exit>());
        if trapped {
            self.account.add_trap();
        }
        let result = result.map(|Returned { code, text }| {
            // Like a guest's own output, it is lost if nobody reads it.
            drop(self.streams.print(text.as_bytes()));
            code
        });
        let code = self.reporter.exit_code(&self.module, result);
        let code = match self.store.data().limiter.denied_just_now().filter(|_| code != 0) {
            Some(denied) if trapped || self.streams.said_out_of_memory() => {
                self.reporter.line(&format!("{} ran out of memory: {denied}", self.module));
                self.budget.set_ran_out();
                EXIT_OOM
            }
            Some(denied) => {
                let module = &self.module;
                self.reporter.line(&format!("{module} ended with {code} after it was refused memory: {denied}"));
                code
            }
            None => code,
        };
        // The process ends here: unmapping the guest and waiting for a thread that reads stdin would only take time.
        std::mem::forget(self.store);
        std::mem::forget(self.runtime);
        code
    }
}

/// The runtime of a command, which has no thread of its own. It is made before the wall, because it makes sockets for
/// itself.
pub(super) fn runtime() -> Result<Runtime, Refusal> {
    Builder::new_current_thread().enable_all().build().map_err(|error| cannot_prepare(&error))
}

/// Makes the store of a command whose code is about to run, and sets what ends it: signals and its run time.
pub(super) fn prepare_store(engine: &Engine, shared: &Shared, role: Role) -> Result<Store<State>, Refusal> {
    // Before Ready: from then on a signal must find the guest's course.
    signals::grant_grace();
    if let Some(limit) = shared.plan.limits.run_time {
        deadline::end_after(limit, &shared.plan.module, &shared.reporter).map_err(|error| cannot_prepare(&error))?;
    }
    Ok(shared.state(role)?.into_store(engine))
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
