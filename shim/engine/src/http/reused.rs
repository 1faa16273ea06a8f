//! Instances of WASI 0.3: each serves several requests, at once and one after the other.

use std::future::pending;
use std::pin::Pin;
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::task::{Context, Poll};
use std::time::Duration;

use tokio::sync::oneshot;
use tokio::time::{Sleep, sleep};
use wasmtime::component::GuestTaskId;
use wasmtime::{Result, Store, StoreContextMut};
use wasmtime_wasi_http::WasiHttpView;
use wasmtime_wasi_http::handler::{HandlerState, Instance, ShouldAccept, WorkerExpiration, WorkerState, WorkerStatus};

use super::attendance::{Attendance, Attended, Ticket};
use super::instances::{self, Caller, HostSide, Instances};
use super::limit::{after, poll_until};
use super::queued::Queued;
use crate::store::State;

/// How many requests an instance serves, and how many of them at once.
const REQUESTS_MAX: usize = 128;
const CONCURRENT_REQUESTS_MAX: usize = 16;
/// How long an instance without a request is kept.
const IDLE: Duration = Duration::from_secs(1);

/// Makes instances that serve several requests.
pub(super) struct Reused {
    /// Where they come from.
    pub(super) instances: Arc<Instances>,
    /// How long an instance may go on once all its responses are complete.
    pub(super) overtime: Option<Duration>,
}

/// Sent to a request whose instance was ended. The reason is already reported.
pub(super) struct Ended;

/// What goes with a request.
pub(super) struct RequestData {
    /// Who waits for it.
    pub(super) ticket: Arc<Ticket>,
    /// Whom to notify if its instance is ended.
    pub(super) ended: oneshot::Sender<Ended>,
    /// What it holds until it is served.
    pub(super) queued: Queued,
}

impl HandlerState for Reused {
    type StoreData = State;
    type WorkerExpiration = Expiration;
    type WorkerState = Worker;

    async fn instantiate(&self) -> Result<Instance<State, Expiration, Worker>> {
        let instances::Instance { store, proxy, host } = self.instances.make_in_turn(Caller::Client).await?;
        let state =
            Worker { requests: Mutex::default(), attendance: Arc::default(), ended_because: Arc::default(), host };
        let mut ending = self.instances.ending();
        let expiration = Expiration {
            timer: Box::pin(sleep(IDLE)),
            ending: Box::pin(async move {
                // Without a sender the server has ended.
                drop(ending.wait_for(|ending| *ending).await);
            }),
            overtime: self.overtime,
            attendance: Arc::clone(&state.attendance),
            because: Arc::clone(&state.ended_because),
        };
        Ok(Instance { store, proxy, view: WasiHttpView::http, expiration, state })
    }
}

/// Why the host ends an instance.
#[derive(Clone, Copy, Debug)]
enum Because {
    /// Nobody waits for its requests any more.
    Abandoned,
    /// It goes on for too long after its responses.
    Overtime,
}

/// Ends an instance that nobody waits for. It is asked even while the guest spins, so it ends that, too.
pub(super) struct Expiration {
    timer: Pin<Box<Sleep>>,
    ending: Pin<Box<dyn Future<Output = ()> + Send + Sync>>,
    overtime: Option<Duration>,
    attendance: Arc<Attendance>,
    because: Arc<OnceLock<Because>>,
}

impl Expiration {
    fn end(&self, because: Because) -> Poll<()> {
        self.because.get_or_init(|| because);
        Poll::Ready(())
    }
}

impl WorkerExpiration for Expiration {
    fn poll(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        status: WorkerStatus,
        start: std::time::Instant,
    ) -> Poll<()> {
        match (status, self.attendance.poll(context)) {
            (WorkerStatus::Idle, _) => {
                if self.ending.as_mut().poll(context).is_ready() {
                    return Poll::Ready(());
                }
                poll_until(&mut self.timer, context, after(start.into(), IDLE))
            }
            (WorkerStatus::Requests | WorkerStatus::PostReturn, Attended::Abandoned) => self.end(Because::Abandoned),
            (WorkerStatus::Requests | WorkerStatus::PostReturn, Attended::Complete(Some(since))) => {
                let Some(limit) = self.overtime else { return Poll::Pending };
                match poll_until(&mut self.timer, context, after(since, limit)) {
                    Poll::Ready(()) => self.end(Because::Overtime),
                    Poll::Pending => Poll::Pending,
                }
            }
            (WorkerStatus::Requests | WorkerStatus::PostReturn, Attended::Yes | Attended::Complete(None)) => {
                Poll::Pending
            }
        }
    }
}

/// What the host keeps for an instance besides its store.
// Invariant: `host` is dropped after the store, which `WorkerState::drop` gets.
pub(super) struct Worker {
    requests: Mutex<Vec<oneshot::Sender<Ended>>>,
    attendance: Arc<Attendance>,
    ended_because: Arc<OnceLock<Because>>,
    host: HostSide,
}

impl WorkerState for Worker {
    type StoreData = State;
    type RequestData = RequestData;

    fn should_accept_request(&self, concurrent_count: usize, total_count: usize) -> ShouldAccept {
        if total_count >= REQUESTS_MAX || self.attendance.has_abandoned() {
            ShouldAccept::Never
        } else if concurrent_count >= CONCURRENT_REQUESTS_MAX {
            ShouldAccept::No
        } else {
            ShouldAccept::Yes
        }
    }

    fn on_request_start(
        &self,
        _: StoreContextMut<'_, State>,
        RequestData { ticket, ended, queued }: RequestData,
        _: GuestTaskId,
    ) -> Pin<Box<dyn Future<Output = ()> + Send + Sync>> {
        ticket.serve(&self.attendance);
        drop(queued);
        let mut requests = self.requests.lock().unwrap_or_else(PoisonError::into_inner);
        if requests.len() == requests.capacity() {
            requests.retain(|request| !request.is_closed());
        }
        requests.push(ended);
        // Whoever waits for the response also limits its time.
        Box::pin(pending())
    }

    fn drop(&self, store: Store<State>, result: Result<()>) {
        let requests = std::mem::take(&mut *self.requests.lock().unwrap_or_else(PoisonError::into_inner));
        if let Err(error) = result {
            // Before the store is dropped, which ends the bodies of responses.
            self.attendance.fail();
            match self.ended_because.get() {
                Some(Because::Abandoned) => {}
                Some(Because::Overtime) => self.host.report_overtime(),
                None => self.host.report_end(&error, store.data().limiter.denied_just_now()),
            }
            for request in requests {
                // A request that already has its answer is not waiting.
                drop(request.send(Ended));
            }
        }
        drop(store);
    }
}
