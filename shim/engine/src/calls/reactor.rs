//! Reactors: guests that do nothing by themselves. One instance is made, initialized and kept, and answers calls until a signal. Its
//! state lives between the calls, which are made one after the other on the main thread.

use std::cell::Cell;
use std::pin::pin;
use std::sync::Arc;

use skiff_protocol::{EXIT_ENGINE, OnTrap, Refusal};
use tokio::net::unix::pipe::Receiver;
use tokio::runtime::{Builder, Runtime};
use wasmtime::{Error, Store};

use super::functions::Code;
use super::instance::{Ended, Instance, limited, result_bytes, result_room};
use super::job::Told;
use super::queue::Jobs;
use super::service::Calls;
use crate::coredump;
use crate::error::{cannot_start, engine_failed, is_guests_end};
use crate::role::Role;
use crate::shared::Shared;
use crate::signals;
use crate::store::State;

/// How many threads wait at most for files of the instance. A call that is ended may leave one behind.
const FILE_THREADS: usize = 8;

/// A guest that is linked as a reactor. Nothing of it has run.
pub(crate) struct LinkedReactor {
    code: Code,
    runtime: Runtime,
}

/// A reactor that has an instance.
pub(crate) struct Reactor {
    runtime: Runtime,
    service: Service,
    /// The instance, or what ended it in its own start function.
    first: Result<Instance, Ended>,
}

impl LinkedReactor {
    /// A reactor of linked code.
    ///
    /// # Errors
    /// [`Refusal::Host`] if the kernel has no room for a runtime.
    pub(crate) fn new(code: Code) -> Result<Self, Refusal> {
        // Before the wall, because it makes sockets for itself.
        let runtime = Builder::new_current_thread().max_blocking_threads(FILE_THREADS).enable_all().build();
        Ok(Self { code, runtime: runtime.map_err(|error| engine_failed(&error.into()))? })
    }

    /// What it is an instance of.
    pub(crate) fn code(&self) -> &Code {
        &self.code
    }

    /// Instantiates it.
    ///
    /// # Errors
    /// [`Refusal::Guest`] if no instance can be made.
    pub(crate) fn instantiate(self, calls: Arc<Calls>, jobs: Jobs) -> Result<Reactor, Refusal> {
        let Self { runtime, .. } = self;
        let failed = |error: std::io::Error| engine_failed(&error.into());
        // The main thread waits for nobody who reads the log.
        calls.shared.reporter.write_by_queue().map_err(failed)?;
        let Calls { shared, code, .. } = &*calls;
        let result_bytes = result_bytes(shared.budget.limit_bytes(), 1);
        shared.budget.keep(result_room(code, result_bytes));
        let ticking = calls.tick().map_err(failed)?;
        let first = runtime.block_on(instance(&calls, Role::Service, result_bytes))?;
        drop(ticking);
        // Before Ready: from then on a signal must find the reactor's course.
        let entered = runtime.enter();
        let terminated = signals::notify().and_then(Receiver::from_owned_fd).map_err(failed)?;
        drop(entered);
        Ok(Reactor { runtime, service: Service { calls, terminated, jobs, result_bytes }, first })
    }
}

impl Reactor {
    /// Answers calls until a signal or an end of the instance, and returns the exit code.
    pub(crate) fn run(self) -> i32 {
        let Self { runtime, service, first } = self;
        let shared = Arc::clone(&service.calls.shared);
        let ended = runtime.block_on(service.serve(first));
        coredump::finish(&shared);
        // The process ends here: waiting for a thread that reads stdin would only take time.
        std::mem::forget(runtime);
        ended
    }
}

struct Service {
    calls: Arc<Calls>,
    /// Readable after the first signal.
    terminated: Receiver,
    jobs: Jobs,
    /// What the results of a call may take: as much is kept.
    result_bytes: u64,
}

impl Service {
    async fn serve(mut self, first: Result<Instance, Ended>) -> i32 {
        let calls = Arc::clone(&self.calls);
        let mut first = Some(first);
        loop {
            let made = async {
                let _ticking = calls.tick();
                match first.take() {
                    Some(first) => initialize(first, &calls.shared).await,
                    None => fresh(&calls, Role::Service, self.result_bytes).await,
                }
            };
            let made = tokio::select! {
                biased;
                _ = self.terminated.readable() => return 0,
                made = made => made,
            };
            let instance = match made {
                Ok(instance) => instance,
                Err(ended) => return self.end(ended).await,
            };
            match (self.answer(instance).await, calls.shared.plan.on_trap) {
                (None, _) => return 0,
                (Some(ended), OnTrap::Exit) => return self.end(ended).await,
                (Some(ended), OnTrap::Restart) => self.report(ended).await,
            }
        }
    }

    /// Answers calls until one of them ends the instance, or until a signal and the end of the call that is under way then.
    async fn answer(&mut self, mut instance: Instance) -> Option<Ended> {
        let mut last: Option<Told> = None;
        let ended = loop {
            let job = tokio::select! {
                biased;
                _ = self.terminated.readable() => break None,
                job = self.jobs.next() => job,
            };
            let _ticking = self.calls.tick();
            let ending = Cell::new(false);
            let (ended, told) = {
                let mut working = pin!(job.run(&mut instance, &ending, &self.calls.shared));
                tokio::select! {
                    biased;
                    _ = self.terminated.readable() => {
                        ending.set(true);
                        working.await
                    }
                    ended = &mut working => ended,
                }
            };
            last = Some(told);
            if let Some(ended) = ended {
                break Some(ended.of(instance));
            }
        };
        // The process may end now, and with it the answer.
        last.into_iter().for_each(Told::wait);
        ended
    }

    /// Reports an end that is the container's, and returns its exit code.
    async fn end(&self, ended: Ended) -> i32 {
        let sentence = ended.told.lines().last().unwrap_or_default();
        let last_words = self.calls.shared.reporter.last_words();
        last_words.leave(sentence.strip_prefix("skiff: ").unwrap_or(sentence), "");
        let code = ended.code;
        self.report(ended).await;
        code
    }

    /// Reports an end in the container's own log, after its core dump. Calls wait for it in their queue, as for the next instance;
    /// a signal does not.
    async fn report(&self, mut ended: Ended) {
        let shared = &self.calls.shared;
        if ended.trap.is_some() {
            shared.account.add_trap();
        }
        if ended.ran_out {
            shared.budget.set_ran_out();
        }
        let told = std::mem::take(&mut ended.told);
        if let Some(dump) = ended.dump(shared, coredump::TIME) {
            tokio::select! {
                biased;
                told = dump.told() => shared.reporter.line(&told),
                _ = self.terminated.readable() => {}
            }
        }
        shared.reporter.line(&told);
    }
}

/// An instance that can be called in this role, and results of which take at most `result_bytes`.
///
/// # Errors
/// What ended it before, or why it cannot be made.
pub(super) async fn fresh(calls: &Calls, role: Role, result_bytes: u64) -> Result<Instance, Ended> {
    let made = instance(calls, role, result_bytes).await.unwrap_or_else(|refusal| match refusal {
        Refusal::Guest(told) | Refusal::Host(told) | Refusal::Incompatible(told) => {
            Err(Ended::plain(EXIT_ENGINE, told))
        }
    });
    initialize(made, &calls.shared).await
}

/// An instance whose own start function has run, or what ended it there.
async fn instance(calls: &Calls, role: Role, result_bytes: u64) -> Result<Result<Instance, Ended>, Refusal> {
    let Calls { shared, code, .. } = calls;
    let made = Instance::new(code, shared.state(role)?, result_bytes, shared);
    match limited(shared, || "the start".to_owned(), made).await {
        Ok(Ok(instance)) => Ok(Ok(instance)),
        Ok(Err((error, mut store))) => ended_or_refused(error, &mut store, shared).map(Err),
        Err(ended) => Ok(Err(ended)),
    }
}

async fn initialize(made: Result<Instance, Ended>, shared: &Shared) -> Result<Instance, Ended> {
    let mut instance = made?;
    match instance.initialize(shared).await {
        Ok(()) => Ok(instance),
        Err(ended) => Err(ended.of(instance)),
    }
}

fn ended_or_refused(error: Error, store: &mut Store<State>, shared: &Shared) -> Result<Ended, Refusal> {
    match store.data().limiter.denied() {
        _ if is_guests_end(&error) => Ok(Ended::with(error, store, shared)),
        Some(denied) => Err(shared.too_big(denied)),
        None => Err(cannot_start(&shared.plan.module, &error)),
    }
}
