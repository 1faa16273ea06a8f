//! Calls of one connection that are made one after the other, and what came of them.

use std::cell::Cell;
use std::convert::Infallible;
use std::fmt::Write;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, SyncSender, TryRecvError, sync_channel};
use std::time::{Duration, Instant};

use super::expression::Call;
use super::instance::{Ended, Instance};
use super::request::Form;
use super::text::Text;
use crate::memory::budget::Budget;
use crate::shared::Shared;
use crate::shown::shown;
use crate::store::ledger::What;

/// How many calls one connection makes before others have their turn.
pub(super) const CALLS_MAX: usize = 64;
/// From how much output on no more calls are made before it is written, in bytes.
const OUTPUT_BYTES_FULL: usize = 64 << 10;
/// How long the end of an instance waits until whoever called it last is told and has ended.
const TELLING_TIME: Duration = Duration::from_secs(1);

/// Calls for the live instance.
pub(super) struct Job {
    /// What is called, in order.
    pub(super) calls: Vec<Call>,
    /// How results are written.
    pub(super) form: Form,
    /// Where the results go, with the calls that were not made.
    pub(super) reply: SyncSender<(Done, Vec<Call>)>,
    /// Whether whoever asked has been told.
    pub(super) told: Told,
}

/// Closed once the results are with whoever asked, or whoever asked is gone.
pub(super) struct Told(Receiver<Infallible>);

/// What came of calls.
pub(super) struct Done {
    /// For the stdout of whoever called.
    pub(super) output: Text,
    /// For its stderr.
    pub(super) error: Text,
    /// Its exit code; after anything but 0 no more calls are made.
    pub(super) code: u8,
    /// How many calls were made.
    pub(super) count: usize,
}

impl Job {
    /// Makes the calls, in `instance`, until one fails or `ending` is set, and replies. Returns what ended the instance, if a call did.
    pub(super) async fn run(
        mut self,
        instance: &mut Instance,
        ending: &Cell<bool>,
        shared: &Shared,
    ) -> (Option<Ended>, Told) {
        let mut done = Done::new(&shared.budget);
        let mut end = None;
        for call in &self.calls {
            if ending.get() {
                done.fail(1, "the guest is about to end and takes no more calls");
            }
            let is_full = done.output.as_str().len() >= OUTPUT_BYTES_FULL;
            if done.code != 0 || is_full || self.told.is_over() {
                break;
            }
            end = done.add(call, instance, self.form, shared).await;
            if end.is_some() {
                // Also if it ended itself with 0.
                break;
            }
        }
        let rest = self.calls.split_off(done.count);
        // Whoever is gone needs no results.
        drop(self.reply.try_send((done, rest)));
        (end, self.told)
    }
}

impl Told {
    /// Not yet, and what is dropped then.
    pub(super) fn new() -> (SyncSender<Infallible>, Self) {
        let (telling, told) = sync_channel(1);
        (telling, Self(told))
    }

    fn is_over(&self) -> bool {
        self.0.try_recv() == Err(TryRecvError::Disconnected)
    }

    /// Waits for it, and no longer than a reader takes.
    pub(super) fn wait(self) {
        let _told = self.0.recv_timeout(TELLING_TIME);
    }
}

impl Done {
    /// Nothing yet.
    pub(super) fn new(budget: &Arc<Budget>) -> Self {
        Self { output: Text::new(budget), error: Text::new(budget), code: 0, count: 0 }
    }

    /// Makes one more call, and adds what comes of it. Returns what ended the instance, if the call did.
    pub(super) async fn add(
        &mut self,
        call: &Call,
        instance: &mut Instance,
        form: Form,
        shared: &Shared,
    ) -> Option<Ended> {
        self.count += 1;
        let begun = Instant::now();
        let _under_way = shared.glass.ledger.enter(What::call(&call.name));
        let called = instance.call(call, shared).await;
        let trapped = called.as_ref().is_err_and(|ended| ended.trap.is_some());
        shared.called.add(&call.name, begun.elapsed(), trapped);
        match called {
            Ok(results) => {
                let out = if results.is_error() { &mut self.error } else { &mut self.output };
                self.code = u8::from(results.is_error());
                if let Err(why) = out.whole(|out| results.write(form, out)) {
                    self.fail(1, &format!("the result of `{}` is too long: {why}", shown(call.name.as_bytes())));
                }
                None
            }
            Err(ended) => {
                self.fail(ended.code, &ended.told);
                Some(ended)
            }
        }
    }

    /// Adds a failure.
    pub(super) fn fail(&mut self, code: i32, sentence: &str) {
        // Without room for the sentence the code says that it failed.
        let _written = self.error.whole(|error| writeln!(error, "skiff: {sentence}"));
        self.code = u8::try_from(code).unwrap_or(u8::MAX);
    }
}
