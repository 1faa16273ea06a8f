//! What calls into a guest need of it.

use std::io;
use std::sync::{Arc, Mutex, OnceLock, PoisonError};

use tokio::runtime::{Builder, Runtime};

use super::functions::{Code, Functions};
use super::queue::{Jobs, Queue};
use crate::shared::Shared;
use crate::ticker::{Ticker, Ticking};

/// How many threads wait at most for files of instances that are made for calls.
const FILE_THREADS: usize = 8;
const STACK_BYTES: usize = 256 << 10;

/// What is called, and how.
pub(crate) struct Calls {
    /// What all instances have in common.
    pub(super) shared: Arc<Shared>,
    /// What instances are made of.
    pub(super) code: Code,
    /// Where calls wait for the live instance, if there is one.
    pub(super) queue: Option<Arc<Queue>>,
    functions: OnceLock<Functions>,
    ticker: Mutex<Option<Ticker>>,
    runtime: Mutex<Option<Arc<Runtime>>>,
}

impl Calls {
    /// Calls in fresh instances of `code`.
    pub(crate) fn of_fresh(code: Code, shared: &Arc<Shared>) -> Self {
        Self::new(code, shared, None)
    }

    /// Calls in the live instance that takes the jobs, and in fresh instances of `code` where that is asked for.
    pub(crate) fn of_live(code: Code, shared: &Arc<Shared>) -> (Self, Jobs) {
        let (queue, jobs) = Queue::new();
        (Self::new(code, shared, Some(queue)), jobs)
    }

    fn new(code: Code, shared: &Arc<Shared>, queue: Option<Arc<Queue>>) -> Self {
        let (functions, ticker, runtime) = (OnceLock::new(), Mutex::default(), Mutex::default());
        Self { shared: Arc::clone(shared), code, queue, functions, ticker, runtime }
    }

    /// What can be called.
    pub(super) fn functions(&self) -> &Functions {
        self.functions.get_or_init(|| Functions::of(&self.code))
    }

    /// Makes the epoch advance until the returned value is dropped, so that a guest that takes too long can be ended.
    ///
    /// # Errors
    /// If there is no room for a thread.
    pub(super) fn tick(&self) -> io::Result<Ticking> {
        let mut ticker = self.ticker.lock().unwrap_or_else(PoisonError::into_inner);
        match &mut *ticker {
            Some(ticker) => Ok(ticker.tick()),
            none => Ok(none.insert(Ticker::start(self.code.engine().clone())?).tick()),
        }
    }

    /// What fresh instances wait with. It is one for all of them and lasts, because the streams that they share stay with it.
    ///
    /// # Errors
    /// If there is no room for a thread.
    pub(super) fn runtime(&self) -> io::Result<Arc<Runtime>> {
        let mut runtime = self.runtime.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(runtime) = &*runtime {
            return Ok(Arc::clone(runtime));
        }
        // The guests run on the threads that call; its own one only waits.
        let new = Builder::new_multi_thread()
            .worker_threads(1)
            .max_blocking_threads(FILE_THREADS)
            .thread_stack_size(STACK_BYTES)
            .enable_all()
            .build()?;
        Ok(Arc::clone(runtime.insert(Arc::new(new))))
    }
}
