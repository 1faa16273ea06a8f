//! An instance at work on several requests. It takes another one only while it could begin with it at once: a guest that
//! computes, or a call of the host that has the store to itself, keeps all requests of its instance waiting.

use std::future::{pending, poll_fn};
use std::pin::{Pin, pin};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll};
use std::time::Duration;

use futures_util::StreamExt;
use futures_util::stream::FuturesUnordered;
use tokio::sync::{oneshot, watch};
use tokio::time::{Instant, Sleep, sleep};
use wasmtime::component::{Accessor, Func};
use wasmtime::{AsContextMut, Result};
use wasmtime_wasi_http::WasiHttpView;
use wasmtime_wasi_http::handler::{Prepared, Proxy};

use super::attendance::{Attendance, Attended};
use super::desk::{Desk, Ended, Job, Mailbox};
use super::instances::Instance;
use super::limit::{after, poll_until};
use crate::store::State;

/// How many requests an instance serves, and how many of them at once.
const REQUESTS_MAX: usize = 128;
const CONCURRENT_REQUESTS_MAX: usize = 16;
/// For how long an instance begins with one request after the other before others have their turn.
const TURN: Duration = Duration::from_millis(10);
/// How long an instance without a request is kept.
const IDLE: Duration = Duration::from_secs(1);

/// Where instances work.
pub(super) struct Workplace<'a> {
    pub(super) desk: &'a Desk,
    /// Gives a request to another instance.
    pub(super) pass: &'a (dyn Fn(Job) + Send + Sync),
    /// Becomes true when the server ends.
    pub(super) ending: watch::Receiver<bool>,
    /// How long an instance may go on once all its responses are complete.
    pub(super) overtime: Option<Duration>,
}

/// What the host keeps of an instance and its requests besides the store.
struct Worker {
    mailbox: Arc<Mailbox>,
    attendance: Arc<Attendance>,
    /// Whom to tell if the instance is ended.
    told: Mutex<Vec<oneshot::Sender<Ended>>>,
    seen: Mutex<Seen>,
}

/// What was seen when the instance was last asked.
#[derive(Clone, Copy, Default)]
struct Seen {
    /// It could be asked: nothing has the store to itself.
    is_open: bool,
    /// It may begin with a request before what else it does has come to a rest.
    may_begin: bool,
    /// How many requests are under way, and how many more it may take.
    under_way: usize,
    room: usize,
    idle_since: Option<Instant>,
}

impl Seen {
    /// From now on it is as it was before a look.
    fn ask(&mut self) {
        (self.is_open, self.may_begin) = (false, true);
    }
}

/// Why the host ends an instance.
#[derive(Clone, Copy, Debug)]
enum Because {
    /// It is not needed any more.
    Idle,
    /// Nobody waits for its requests any more.
    Abandoned,
    /// It goes on for too long after its responses.
    Overtime,
}

/// Gives back what an instance was given too late.
struct Leaving<'a>(&'a Workplace<'a>, &'a Arc<Mailbox>);

impl Drop for Leaving<'_> {
    fn drop(&mut self) {
        self.0.desk.withdraw(self.1).into_iter().for_each(self.0.pass);
    }
}

/// Serves requests in `instance`, beginning with `first`, until it is done or has to end.
pub(super) async fn work(place: &Workplace<'_>, instance: Instance, first: Option<Job>) {
    let worker = Worker {
        mailbox: Arc::new(Mailbox::with(first)),
        attendance: Arc::default(),
        told: Mutex::default(),
        seen: Mutex::default(),
    };
    let Instance { mut store, proxy, host } = instance;
    let _leaving = Leaving(place, &worker.mailbox);
    let ended = {
        let mut running = pin!(store.run_concurrent(async |accessor| worker.serve(accessor, &proxy).await));
        let mut expiration = Expiration::new(place);
        poll_fn(|context| worker.look(place, running.as_mut(), &mut expiration, context)).await
    };
    match &ended {
        Ok(Because::Idle) => {}
        Ok(Because::Abandoned) => worker.fail(),
        Ok(Because::Overtime) => {
            worker.fail();
            host.report_overtime();
        }
        Err(error) => {
            worker.attendance.fail();
            host.report_end(error, store.data());
            worker.fail();
        }
    }
    // Invariant: `host` is dropped after the store.
    drop(store);
    drop(host);
}

impl Worker {
    /// Lets the instance go on, and decides whether it ends or takes another request.
    fn look(
        &self,
        place: &Workplace<'_>,
        mut running: Pin<&mut impl Future<Output = Result<Result<()>>>>,
        expiration: &mut Expiration,
        context: &mut Context<'_>,
    ) -> Poll<Result<Because>> {
        let (begun, mut has_looked) = (Instant::now(), false);
        let seen = loop {
            self.seen().ask();
            if let Poll::Ready(result) = running.as_mut().poll(context) {
                return Poll::Ready(result.flatten().map(|()| Because::Idle));
            }
            let seen = *self.seen();
            // A look is over when the guest begins to compute. The next one is not.
            let is_at_rest = seen.idle_since.is_some() || (has_looked && seen.may_begin);
            let is_done = is_at_rest && (seen.room == 0 || self.mailbox.is_empty());
            if !seen.is_open || is_done || begun.elapsed() >= TURN {
                break seen;
            }
            has_looked = true;
        };
        if let Poll::Ready(because) = expiration.poll(&self.attendance, seen.idle_since, context) {
            return Poll::Ready(Ok(because));
        }
        if !seen.is_open || seen.room == 0 {
            place.desk.withdraw(&self.mailbox).into_iter().for_each(place.pass);
        } else if place.desk.offer(&self.mailbox, seen.under_way, seen.room, context.waker()) {
            context.waker().wake_by_ref();
        }
        Poll::Pending
    }

    /// Serves what arrives until no more may, from within the store.
    async fn serve(&self, accessor: &Accessor<State>, proxy: &Proxy) -> Result<()> {
        let (function, mut served, mut requests) = (function(proxy), 0, FuturesUnordered::new());
        poll_fn(|context| {
            loop {
                while let Poll::Ready(Some(done)) = requests.poll_next_unpin(context) {
                    if let Err(error) = done {
                        return Poll::Ready(Err(error));
                    }
                }
                let is_ready = accessor.poll_ready_for_concurrent_call(function, context).is_ready();
                let is_idle = requests.is_empty() && accessor.poll_no_interesting_tasks(context).is_ready();
                let may_stay = is_ready && served < REQUESTS_MAX && !self.attendance.has_abandoned();
                let room = CONCURRENT_REQUESTS_MAX.saturating_sub(requests.len()).min(REQUESTS_MAX - served);
                let room = if may_stay { room } else { 0 };
                let may_begin = self.saw(requests.len(), room, is_idle) && room > 0;
                let Some(job) = may_begin.then(|| self.mailbox.take()).flatten() else {
                    return if is_idle && !may_stay { Poll::Ready(Ok(())) } else { Poll::Pending };
                };
                served += 1;
                match self.begin(job, accessor, proxy) {
                    Ok(prepared) => requests.push(Box::pin(prepared.run(accessor, pending()))),
                    Err(error) => return Poll::Ready(Err(error)),
                }
            }
        })
        .await
    }

    fn begin<'a>(&self, job: Job, accessor: &Accessor<State>, proxy: &'a Proxy) -> Result<Prepared<'a, State>> {
        let Job { request, ticket, response, ended, .. } = job;
        self.seen().may_begin = false;
        let prepared = accessor
            .with(|mut store| Prepared::new(store.as_context_mut(), proxy, request, WasiHttpView::http, response))?;
        ticket.serve(&self.attendance);
        let mut told = self.told.lock().unwrap_or_else(PoisonError::into_inner);
        if told.len() == told.capacity() {
            told.retain(|request| !request.is_closed());
        }
        told.push(ended);
        Ok(prepared)
    }

    /// Notes how the instance is, and returns whether it may begin with a request.
    fn saw(&self, under_way: usize, room: usize, is_idle: bool) -> bool {
        let mut seen = self.seen();
        let idle_since = is_idle.then(|| seen.idle_since.unwrap_or_else(Instant::now));
        *seen = Seen { is_open: true, under_way, room, idle_since, ..*seen };
        seen.may_begin
    }

    /// Notes that the instance ended before its time. Whoever waits for it is told.
    fn fail(&self) {
        // Before the store is dropped, which ends the bodies of responses.
        self.attendance.fail();
        for request in self.told.lock().unwrap_or_else(PoisonError::into_inner).drain(..) {
            // A request that already has its answer is not waiting.
            drop(request.send(Ended));
        }
    }

    fn seen(&self) -> MutexGuard<'_, Seen> {
        self.seen.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The function that serves a request.
fn function(proxy: &Proxy) -> Func {
    match proxy {
        Proxy::P2(guest) => *guest.wasi_http_incoming_handler().func_handle().func(),
        Proxy::P3(guest) => *guest.wasi_http_handler().func_handle().func(),
    }
}

/// Ends an instance that nobody waits for. It is asked even while the guest spins, so it ends that, too.
struct Expiration {
    timer: Pin<Box<Sleep>>,
    ending: Pin<Box<dyn Future<Output = ()> + Send>>,
    overtime: Option<Duration>,
}

impl Expiration {
    fn new(place: &Workplace<'_>) -> Self {
        let mut ending = place.ending.clone();
        let ending = Box::pin(async move {
            // Without a sender the server has ended.
            drop(ending.wait_for(|ending| *ending).await);
        });
        Self { timer: Box::pin(sleep(IDLE)), ending, overtime: place.overtime }
    }

    fn poll(
        &mut self,
        attendance: &Attendance,
        idle_since: Option<Instant>,
        context: &mut Context<'_>,
    ) -> Poll<Because> {
        if let Some(since) = idle_since {
            if self.ending.as_mut().poll(context).is_ready() {
                return Poll::Ready(Because::Idle);
            }
            return poll_until(&mut self.timer, context, after(since, IDLE)).map(|()| Because::Idle);
        }
        match (attendance.poll(context), self.overtime) {
            (Attended::Abandoned, _) => Poll::Ready(Because::Abandoned),
            (Attended::Complete(Some(since)), Some(limit)) => {
                poll_until(&mut self.timer, context, after(since, limit)).map(|()| Because::Overtime)
            }
            (Attended::Yes | Attended::Complete(_), _) => Poll::Pending,
        }
    }
}
