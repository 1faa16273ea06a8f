//! `skiff profile`: where the guest spends its time, in samples that <https://profiler.firefox.com> shows. A sample is taken while
//! the guest computes: what it waits for in calls of the host is a gap.

use std::io::{self, BufWriter, Write};
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use skiff_linux::memory::heap_bytes;
use skiff_protocol::bytes_and_mi;
use wasmtime::{GuestProfiler, Result, StoreContextMut};

use crate::answer::Answer;
use crate::clock;
use crate::load::Code;
use crate::shared::Shared;
use crate::store::State;

/// How often samples are taken.
const INTERVAL: Duration = Duration::from_millis(1);
/// The most samples. Many instances may compute at once.
const SAMPLES_MAX: u32 = 60_000;
/// What samples and the names of functions take at most, in bytes, kept of the container's memory meanwhile.
const KEPT_BYTES: u64 = 16 << 20;
/// How much the heap may have grown before another sample is taken, in bytes. The rest is for that sample: a stack of 512Ki has fewer than
/// 16,000 calls.
const GROWTH_BYTES: usize = 12 << 20;
/// How much of the profile is sent at once, in bytes.
const PART_BYTES: usize = 32 << 10;

/// What samples are kept in.
struct Samples {
    profiler: Mutex<Option<GuestProfiler>>,
    count: AtomicU32,
    /// What the heap had before there was anything of the profile, in bytes.
    heap_before: usize,
    is_full: AtomicBool,
}

/// Takes samples for `length`, and answers with the profile.
///
/// # Errors
/// Those of [`Answer`].
pub(super) fn profile(length: Duration, answer: &mut Answer, shared: &Shared) -> io::Result<u8> {
    let Ok(_turn) = shared.glass.profiling.try_lock() else {
        return refuse(answer, "another one is under way");
    };
    let (kept, heap_before) = (shared.budget.lease(KEPT_BYTES), heap_bytes());
    let (profiler, _kept) = match (shared.glass.visits.code().map(|code| profiler(code, &shared.plan.module)), kept) {
        (Some(Ok(profiler)), Ok(kept)) => (profiler, kept),
        (_, Err(denied)) => return refuse(answer, &denied.to_string()),
        (Some(Err(error)), _) => return refuse(answer, &error.to_string()),
        (None, _) => return refuse(answer, "there is no guest"),
    };
    let samples = Arc::new(Samples::new(profiler, heap_before));
    let writer = Arc::clone(&samples);
    let visiting = shared.glass.visits.begin(Arc::new(move |store, waits_in| {
        if waits_in.is_none() {
            writer.take(&store);
        }
    }));
    let begun = Instant::now();
    while begun.elapsed() < length && !samples.are_enough() && !answer.is_abandoned() {
        visiting.call_running();
        clock::sleep(INTERVAL);
    }
    drop(visiting);
    if let Some(sentence) = samples.remark(begun.elapsed()) {
        answer.complain(&sentence)?;
    }
    let profiler = samples.lock().take();
    send(profiler, answer)
}

impl Samples {
    fn new(profiler: GuestProfiler, heap_before: usize) -> Self {
        let (count, is_full) = (AtomicU32::new(0), AtomicBool::new(false));
        Self { profiler: Mutex::new(Some(profiler)), count, heap_before, is_full }
    }

    /// Takes a sample of the guest of `store`, unless there are enough.
    fn take(&self, store: &StoreContextMut<'_, State>) {
        let mut profiler = self.lock();
        let Some(profiler) = profiler.as_mut().filter(|_| !self.are_enough()) else { return };
        if heap_bytes().saturating_sub(self.heap_before) >= GROWTH_BYTES {
            self.is_full.store(true, Ordering::Relaxed);
            return;
        }
        // It computes: without this the profiler shows a thread that is idle.
        profiler.sample(store, INTERVAL);
        self.count.fetch_add(1, Ordering::Relaxed);
    }

    fn are_enough(&self) -> bool {
        self.is_full.load(Ordering::Relaxed) || self.count.load(Ordering::Relaxed) >= SAMPLES_MAX
    }

    /// What must be known of the profile besides its samples, which were taken for `time`.
    fn remark(&self, time: Duration) -> Option<String> {
        if self.is_full.load(Ordering::Relaxed) {
            let kept = bytes_and_mi(KEPT_BYTES);
            return Some(format!(
                "the profile ends after {:.1} s: more would take more memory than {kept}",
                time.as_secs_f64()
            ));
        }
        let is_empty = self.count.load(Ordering::Relaxed) == 0;
        is_empty.then(|| "the guest computed nothing meanwhile: there are no samples in the profile".to_owned())
    }

    fn lock(&self) -> MutexGuard<'_, Option<GuestProfiler>> {
        self.profiler.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn profiler(code: &Code, name: &str) -> Result<GuestProfiler> {
    match code {
        Code::Module(module) => {
            let own = module.name().unwrap_or(name).to_owned();
            GuestProfiler::new(module.engine(), name, INTERVAL, [(own, module.clone())])
        }
        Code::Component(component) => {
            GuestProfiler::new_component(component.engine(), name, INTERVAL, component.clone(), [])
        }
    }
}

fn refuse(answer: &mut Answer, why: &str) -> io::Result<u8> {
    answer.complain(&format!("cannot take a profile: {why}"))?;
    Ok(1)
}

/// Sends the profile in parts.
fn send(profiler: Option<GuestProfiler>, answer: &mut Answer) -> io::Result<u8> {
    let mut output = BufWriter::with_capacity(PART_BYTES, Output(answer));
    if let Some(profiler) = profiler {
        profiler.finish(&mut output).map_err(io::Error::other)?;
    }
    output.flush()?;
    Ok(0)
}

/// The stdout of the asking process.
struct Output<'a>(&'a mut Answer);

impl Write for Output<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.output(bytes)?;
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}
