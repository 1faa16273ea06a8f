//! Calls that one connection asks for: read, made in the live instance or in fresh ones, and their results sent.

use std::convert::Infallible;
use std::io;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, SyncSender, sync_channel};
use std::thread::Builder;
use std::time::Duration;

use skiff_protocol::{EXIT_OOM, FRAME_BYTES_MAX};
use tokio::sync::watch;

use super::expression::{Call, EXPRESSION_BYTES_MAX, Room, read, too_long};
use super::functions::Functions;
use super::instance::{result_bytes, result_room};
use super::job::{CALLS_MAX, Done, Job, Told};
use super::queue::Queue;
use super::reactor::fresh;
use super::request::{Form, Request, Which};
use super::service::Calls;
use crate::answer::Answer;
use crate::role::Role;

/// The exit code of a question that makes no sense.
const EXIT_USAGE: u8 = 2;
/// The exit code if calls cannot be made at all.
const EXIT_FAILED: u8 = 1;
/// How often it is looked whether whoever waits for a call is still there.
const LOOK: Duration = Duration::from_millis(100);
/// How much output waits for more while there is more input, in bytes.
const OUTPUT_BYTES_WAITING: usize = 32 << 10;
const STACK_BYTES: usize = 256 << 10;

/// Calls what `args` say, and ends the asking process.
///
/// # Errors
/// Those of [`Answer`].
pub(super) fn invoke(args: &[String], mut answer: Answer, calls: &Calls) -> io::Result<()> {
    let request = match Request::parse(args) {
        Ok(request) => request,
        Err(sentence) => {
            answer.complain(&sentence)?;
            return answer.end(EXIT_USAGE);
        }
    };
    let Request { expressions, form, which } = request;
    let (functions, output) = (calls.functions(), String::new());
    let mut caller = Caller { calls, functions, form, which, output, answer, telling: None };
    let code = match expressions.as_slice() {
        [] => caller.evaluate_input()?,
        some => caller.evaluate(some.iter().map(String::as_bytes))?,
    };
    caller.flush()?;
    caller.answer.end(code)
}

/// One connection's calls.
struct Caller<'a> {
    calls: &'a Calls,
    functions: &'a Functions,
    form: Form,
    which: Which,
    /// Results that have not been sent.
    output: String,
    answer: Answer,
    /// Open until the results of the last job are sent; dropped after what sends them.
    telling: Option<SyncSender<Infallible>>,
}

impl Caller<'_> {
    /// Evaluates the lines of the input; without any, lists what can be called.
    fn evaluate_input(&mut self) -> io::Result<u8> {
        let (mut input, mut is_empty, mut room) = (Vec::new(), true, None);
        loop {
            let has_more = self.answer.input(&mut input)?;
            is_empty &= input.is_empty();
            // The last line may end without a line feed.
            let end = match has_more {
                true => input.iter().rposition(|byte| *byte == b'\n').map_or(0, |at| at + 1),
                false => input.len(),
            };
            let lines: Vec<u8> = input.drain(..end).collect();
            let code =
                self.evaluate(lines.split(|byte| *byte == b'\n').filter(|line| !line.trim_ascii().is_empty()))?;
            if code != 0 {
                return Ok(code);
            }
            if !has_more {
                break;
            }
            if input.len() > EXPRESSION_BYTES_MAX {
                self.answer.complain(&too_long())?;
                return Ok(EXIT_USAGE);
            }
            if input.len() > FRAME_BYTES_MAX && room.is_none() {
                // The line so far, and a copy of all of it.
                let bytes = 2 * u64::try_from(EXPRESSION_BYTES_MAX).unwrap_or(u64::MAX);
                match self.calls.shared.budget.lease(bytes) {
                    Ok(lease) => room = Some(lease),
                    Err(denied) => {
                        self.answer.complain(&format!("an expression is too long: {denied}"))?;
                        return Ok(EXIT_USAGE);
                    }
                }
            }
            if !self.answer.has_input() {
                self.flush()?;
            }
        }
        if is_empty {
            self.output.push_str(&self.functions.list());
        }
        Ok(0)
    }

    /// Evaluates expressions in their order until one fails, and returns the exit code.
    fn evaluate<'text>(&mut self, texts: impl Iterator<Item = &'text [u8]>) -> io::Result<u8> {
        let mut texts = texts.peekable();
        while texts.peek().is_some() {
            let (mut calls, mut wrong) = (Vec::new(), None);
            let mut room = Room::new(&self.calls.shared.budget);
            for text in texts.by_ref().take(CALLS_MAX) {
                match read(text, self.functions, &mut room) {
                    Ok(call) => calls.push(call),
                    Err(sentence) => {
                        wrong = Some(sentence);
                        break;
                    }
                }
            }
            let code = self.make(calls)?;
            if code != 0 {
                return Ok(code);
            }
            if let Some(sentence) = wrong {
                self.flush()?;
                self.answer.complain(&sentence)?;
                return Ok(EXIT_USAGE);
            }
        }
        Ok(0)
    }

    /// Makes calls in their order until one fails, and returns the exit code.
    fn make(&mut self, calls: Vec<Call>) -> io::Result<u8> {
        let (parallel, repeat) = match self.which {
            Which::Live => match &self.calls.queue {
                Some(queue) => return self.make_live(queue, calls),
                None => (1, 1),
            },
            Which::Fresh { parallel, repeat } => (parallel, repeat),
        };
        for call in &calls {
            let code = self.make_fresh(call, parallel, repeat)?;
            if code != 0 {
                return Ok(code);
            }
        }
        Ok(0)
    }

    fn make_live(&mut self, queue: &Queue, mut calls: Vec<Call>) -> io::Result<u8> {
        while !calls.is_empty() {
            let (reply, done) = sync_channel(1);
            let length = calls.len();
            let (telling, told) = Told::new();
            self.telling = Some(telling);
            let _place = queue.push(Job { calls, form: self.form, reply, told });
            let Some((done, rest)) = self.wait(&done)? else {
                self.flush()?;
                self.answer.complain("the guest has ended")?;
                return Ok(EXIT_FAILED);
            };
            calls = rest;
            let made = done.count;
            let code = self.take(done)?;
            if code != 0 || made == length {
                return Ok(code);
            }
        }
        Ok(0)
    }

    /// Waits for what comes of calls; `None` if nothing does.
    ///
    /// # Errors
    /// `BrokenPipe` if nobody wants it any more.
    fn wait<T>(&self, done: &Receiver<T>) -> io::Result<Option<T>> {
        loop {
            match done.recv_timeout(LOOK) {
                Ok(done) => return Ok(Some(done)),
                Err(RecvTimeoutError::Disconnected) => return Ok(None),
                Err(RecvTimeoutError::Timeout) if self.answer.is_abandoned() => {
                    return Err(io::ErrorKind::BrokenPipe.into());
                }
                Err(RecvTimeoutError::Timeout) => {}
            }
        }
    }

    /// Makes one call `repeat` times, each in an instance of its own, on `parallel` threads. The first failure, and an end of whoever
    /// asked, end them all.
    fn make_fresh(&mut self, call: &Call, parallel: usize, repeat: usize) -> io::Result<u8> {
        let _ticking = self.calls.tick()?;
        let runtime = self.calls.runtime()?;
        let (calls, form, threads) = (self.calls, self.form, parallel.min(repeat));
        let (runtime, next) = (&runtime, &AtomicUsize::new(0));
        std::thread::scope(|scope| {
            // Dropped before the threads are waited for.
            let (_wanted, unwanted) = watch::channel(());
            let (reply, done) = sync_channel(threads);
            for _ in 0..threads {
                let (reply, mut unwanted) = (reply.clone(), unwanted.clone());
                let thread = Builder::new().name("call".to_owned()).stack_size(STACK_BYTES);
                thread.spawn_scoped(scope, move || {
                    while next.fetch_add(1, Ordering::Relaxed) < repeat {
                        let made = runtime.block_on(async {
                            tokio::select! {
                                made = call_once(call, calls, form, threads) => Some(made),
                                _ = unwanted.changed() => None,
                            }
                        });
                        if made.is_none_or(|made| reply.send(made).is_err()) {
                            return;
                        }
                    }
                })?;
            }
            drop(reply);
            while let Some(done) = self.wait(&done)? {
                let code = self.take(done)?;
                if code != 0 {
                    return Ok(code);
                }
            }
            Ok(0)
        })
    }

    /// Takes what came of calls, and sends it once it is much or there is an error.
    fn take(&mut self, done: Done) -> io::Result<u8> {
        let output = done.output.as_str();
        if self.output.len() + output.len() < OUTPUT_BYTES_WAITING && done.code == 0 {
            self.output.push_str(output);
            return Ok(0);
        }
        self.flush()?;
        if !output.is_empty() {
            self.answer.output(output.as_bytes())?;
        }
        if !done.error.as_str().is_empty() {
            self.answer.error(done.error.as_str().as_bytes())?;
        }
        Ok(done.code)
    }

    fn flush(&mut self) -> io::Result<()> {
        match self.output.as_str() {
            "" => Ok(()),
            some => self.answer.output(some.as_bytes()),
        }?;
        self.output.clear();
        Ok(())
    }
}

/// Makes a call in an instance of its own, one of `count` at once.
async fn call_once(call: &Call, calls: &Calls, form: Form, count: usize) -> Done {
    let shared = &calls.shared;
    let mut done = Done::new(&shared.budget);
    let result_bytes = result_bytes(shared.budget.limit_bytes(), count);
    let _lease = match shared.budget.lease(result_room(&calls.code, result_bytes)) {
        Ok(lease) => lease,
        Err(denied) => {
            done.fail(EXIT_OOM, &format!("there is no room for the results of a call: {denied}"));
            return done;
        }
    };
    let ended = match fresh(calls, Role::Server, result_bytes).await {
        Ok(mut instance) => {
            let ended = done.add(call, &mut instance, form, shared).await;
            ended.map(|ended| ended.of(instance))
        }
        Err(ended) => {
            done.fail(ended.code, &ended.told);
            Some(ended)
        }
    };
    if let Some(ended) = ended.filter(|ended| ended.trap.is_some()) {
        shared.account.add_trap();
        // Whoever called does not wait for it, and instances that trap one after the other do not wait for a volume.
        drop(ended.dump(shared, Duration::ZERO));
    }
    done
}
