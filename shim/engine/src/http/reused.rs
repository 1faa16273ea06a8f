//! Instances of WASI 0.3: each serves several requests, at once and one after the other.
//!
//! wasmtime-wasi-http has a handler for this, too. There a request may go to an instance that computes just then, and waits for
//! as long as that takes.

use std::fmt;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use futures_channel::oneshot::{self, Canceled};
use tokio::time::Instant;
use wasmtime::{Error, Result};
use wasmtime_wasi_http::handler::{Request, Response};

use super::attendance::Ticket;
use super::desk::{Desk, Ended, Job};
use super::instances::{Caller, Instance, Instances, MEMORY_WAIT, is_shortage};
use super::worker::{Workplace, work};

/// Passes requests to instances, and makes them.
pub(super) struct Reused {
    instances: Arc<Instances>,
    /// How long an instance may go on once all its responses are complete.
    overtime: Option<Duration>,
    desk: Desk,
}

/// Why there is no instance for a request.
#[derive(Debug)]
pub(super) struct NotMade(pub(super) Error);

impl fmt::Display for NotMade {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str("no instance can be made")
    }
}

impl std::error::Error for NotMade {}

/// An instance that is being started, until that is noted.
struct Starting(Option<Arc<Reused>>);

/// Whoever waits for the response.
struct Asking<'a> {
    desk: &'a Desk,
    responded: oneshot::Receiver<Result<Response>>,
    is_over: bool,
}

impl Reused {
    /// Instances that are made by `instances`.
    pub(super) fn new(instances: Arc<Instances>, overtime: Option<Duration>) -> Arc<Self> {
        let threads = tokio::runtime::Handle::current().metrics().num_workers();
        Arc::new(Self { instances, overtime, desk: Desk::new(threads) })
    }

    /// The response to a request. When this is dropped before, nobody waits for it. `ended` is told if its instance is
    /// ended.
    ///
    /// # Errors
    /// [`NotMade`] if there is no instance, or why the guest did not respond.
    pub(super) async fn respond(
        self: &Arc<Self>,
        request: Request,
        ticket: Arc<Ticket>,
        ended: tokio::sync::oneshot::Sender<Ended>,
    ) -> Result<Response> {
        let (response, responded) = oneshot::channel();
        let asking = Asking { desk: &self.desk, responded, is_over: false };
        self.pass(Job { request, ticket, response, ended, asked: Instant::now() });
        asking.await.unwrap_or_else(|Canceled| Err(Error::msg("its instance has ended without a response")))
    }

    /// Gives a request to an instance.
    fn pass(self: &Arc<Self>, job: Job) {
        if self.desk.pass(job) {
            self.start();
        }
    }

    fn start(self: &Arc<Self>) {
        tokio::spawn(start(Starting(Some(Arc::clone(self)))));
    }

    /// Notes that an instance is started, or that it cannot be, and returns the request for it.
    fn started(self: &Arc<Self>) -> Option<Job> {
        let (job, must_start) = self.desk.started();
        if must_start {
            self.start();
        }
        job
    }
}

/// Makes an instance and has it serve, unless others serve all that wait before it is made.
async fn start(mut starting: Starting) {
    let Some(reused) = starting.0.clone() else { return };
    let made = tokio::select! {
        biased;
        made = make(&reused) => made,
        () = reused.desk.unneeded() => {
            starting.0 = None;
            return;
        }
    };
    starting.0 = None;
    match (made, reused.started()) {
        (Ok(instance), job) => {
            let Reused { instances, overtime, desk } = &*reused;
            let (pass, ending) = (|job| reused.pass(job), instances.ending());
            work(&Workplace { desk, pass: &pass, ending, overtime: *overtime }, instance, job).await;
        }
        (Err(error), Some(job)) => {
            // It may have left just now.
            let _left = job.response.send(Err(NotMade(error).into()));
        }
        (Err(_), None) => {}
    }
}

/// Makes an instance. There is time for that as long as no request has waited for too long.
async fn make(reused: &Reused) -> Result<Instance> {
    loop {
        let latest = || reused.desk.oldest().map(|asked| asked + MEMORY_WAIT);
        match reused.instances.make_in_turn(Caller::Client, latest().unwrap_or_else(Instant::now)).await {
            Err(error) if is_shortage(&error) && latest().is_some_and(|latest| Instant::now() < latest) => {}
            made => return made,
        }
    }
}

impl Drop for Starting {
    /// What was to be started has panicked.
    fn drop(&mut self) {
        if let Some(reused) = self.0.take()
            && let Some(job) = reused.started()
        {
            reused.pass(job);
        }
    }
}

impl Future for Asking<'_> {
    type Output = Result<Result<Response>, Canceled>;

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Self::Output> {
        let polled = Pin::new(&mut self.responded).poll(context);
        self.is_over = polled.is_ready();
        polled
    }
}

impl Drop for Asking<'_> {
    fn drop(&mut self) {
        if !self.is_over {
            self.responded.close();
            self.desk.forget_abandoned();
        }
    }
}
