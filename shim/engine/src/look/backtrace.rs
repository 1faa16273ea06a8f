//! `skiff backtrace`: where the guest is now. It stands still for as long as its stack is walked, which takes microseconds.

use std::collections::BTreeMap;
use std::io;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use wasmtime::WasmBacktrace;

use crate::answer::Answer;
use crate::exports::has_http_handler;
use crate::load::Code;
use crate::shared::Shared;
use crate::store::ledger::What;
use crate::trap::describe_calls;

/// How often guests are asked where they are, until one answers.
const ROUND: Duration = Duration::from_millis(10);
/// How many rounds are waited for other guests once one has answered.
const OTHERS_ROUNDS: u32 = 3;
/// How many guests are shown.
const GUESTS_MAX: usize = 64;

/// Where guests were found, by the numbers of their instances.
#[derive(Default)]
struct Found {
    backtraces: Mutex<BTreeMap<u64, Seen>>,
    changed: Condvar,
}

/// Where one guest was found.
struct Seen {
    /// As text: what wasmtime keeps of a deep stack is far longer.
    calls: String,
    /// When it was found, since it was asked for.
    after: Duration,
    /// How long it stood still.
    stood: Duration,
    /// The call of the host that it waits in.
    waits_in: Option<&'static str>,
}

/// Shows where each guest is that computes or waits, once it is somewhere within `patience` where that can be seen.
///
/// # Errors
/// Those of [`Answer`].
pub(super) fn backtrace(patience: Duration, answer: &mut Answer, shared: &Shared) -> io::Result<u8> {
    let found = Arc::<Found>::default();
    let (begun, writer) = (Instant::now(), Arc::clone(&found));
    let visiting = shared.glass.visits.begin(Arc::new(move |store, waits_in| {
        let seen = Instant::now();
        let number = store.data().number();
        if !writer.lacks(number) {
            return;
        }
        let calls = describe_calls(&WasmBacktrace::force_capture(&store));
        writer.add(number, Seen { calls, after: seen.duration_since(begun), stood: seen.elapsed(), waits_in });
    }));
    let (mut left, mut is_first) = (OTHERS_ROUNDS, true);
    while begun.elapsed() < patience && left > 0 && !answer.is_abandoned() {
        visiting.call();
        let is_any = found.wait(ROUND, &mut is_first);
        left = if is_any { left - 1 } else { OTHERS_ROUNDS };
    }
    drop(visiting);
    let backtraces = std::mem::take(&mut *found.lock());
    if backtraces.is_empty() {
        answer.complain(&why_none(patience, shared))?;
        return Ok(1);
    }
    for (number, seen) in backtraces {
        answer.output(describe(number, &seen).as_bytes())?;
    }
    Ok(0)
}

/// Why no guest was found for so long.
fn why_none(patience: Duration, shared: &Shared) -> String {
    let seconds = patience.as_secs();
    let idle = match shared.glass.visits.code() {
        Some(Code::Component(component)) if shared.plan.function.is_none() && has_http_handler(component) => {
            !shared.glass.ledger.entries().iter().any(|(_, entry)| matches!(entry.what, What::Request(..)))
        }
        _ => false,
    };
    let what = if idle {
        format!("no request is under way, and none was computed within {seconds} s")
    } else {
        format!(
            "the guest waits in a call of the host that does not show where (it writes output, uses a file, or waits as WASI 0.3 does), and did \
             not come back from it within {seconds} s"
        )
    };
    format!("{what}: wait longer with `skiff backtrace SECONDS`")
}

impl Found {
    /// Whether a guest is to be found: once, and not too many.
    fn lacks(&self, number: u64) -> bool {
        let backtraces = self.lock();
        backtraces.len() < GUESTS_MAX && !backtraces.contains_key(&number)
    }

    /// Notes where a guest is.
    fn add(&self, number: u64, seen: Seen) {
        self.lock().insert(number, seen);
        self.changed.notify_all();
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<u64, Seen>> {
        self.backtraces.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Waits for `time`, or until the first guest is found. Returns whether one is.
    fn wait(&self, time: Duration, is_first: &mut bool) -> bool {
        let backtraces = self.lock();
        let is_waiting = |known: &mut BTreeMap<u64, Seen>| known.is_empty() || !*is_first;
        let waited = self.changed.wait_timeout_while(backtraces, time, is_waiting);
        let (backtraces, _) = waited.unwrap_or_else(PoisonError::into_inner);
        let is_any = !backtraces.is_empty();
        *is_first = !is_any;
        is_any
    }
}

fn describe(number: u64, Seen { calls, after, stood, waits_in }: &Seen) -> String {
    let waits = waits_in.map_or_else(String::new, |call| format!(", waits in `{call}`"));
    format!(
        "instance {number}, {:.1} ms after it was asked for, within {:.3} ms{waits}:\n{calls}",
        after.as_secs_f64() * 1e3,
        stood.as_secs_f64() * 1e3
    )
}
