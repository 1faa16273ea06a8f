//! The thread that advances the epoch while instances run, so that a guest that spins yields to the others. It sleeps
//! while no instance runs.

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread::{Builder, Thread};
use std::time::Duration;

use wasmtime::Engine;

/// How long a guest may keep a thread to itself.
const TICK: Duration = Duration::from_millis(10);

/// The ticking thread, and how many instances want it to tick.
pub(crate) struct Ticker {
    thread: Thread,
    wanted: Arc<Wanted>,
}

#[derive(Default)]
struct Wanted {
    count: AtomicUsize,
    asleep: AtomicBool,
}

/// Keeps the epoch advancing while it lives.
pub(crate) struct Ticking(Arc<Wanted>);

impl Ticker {
    /// Starts the thread.
    ///
    /// # Errors
    /// If there is no room for a thread.
    pub(crate) fn start(engine: Engine) -> io::Result<Self> {
        let wanted = Arc::new(Wanted::default());
        let watched = Arc::clone(&wanted);
        let thread = Builder::new().name("epoch".to_owned()).spawn(move || tick(&engine, &watched))?.thread().clone();
        Ok(Self { thread, wanted })
    }

    /// Makes the epoch advance until the returned value is dropped.
    pub(crate) fn tick(&self) -> Ticking {
        self.wanted.count.fetch_add(1, Ordering::SeqCst);
        if self.wanted.asleep.swap(false, Ordering::SeqCst) {
            self.thread.unpark();
        }
        Ticking(Arc::clone(&self.wanted))
    }
}

impl Drop for Ticking {
    fn drop(&mut self) {
        self.0.count.fetch_sub(1, Ordering::SeqCst);
    }
}

fn tick(engine: &Engine, wanted: &Wanted) -> ! {
    loop {
        if wanted.count.load(Ordering::SeqCst) > 0 {
            std::thread::park_timeout(TICK);
            engine.increment_epoch();
            continue;
        }
        // Invariant: whoever counts up after this line sees `asleep` and wakes the thread; the second look sees whoever
        // counted up before it.
        wanted.asleep.store(true, Ordering::SeqCst);
        if wanted.count.load(Ordering::SeqCst) == 0 {
            std::thread::park();
        }
        wanted.asleep.store(false, Ordering::SeqCst);
    }
}
