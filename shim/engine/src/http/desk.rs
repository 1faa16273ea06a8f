//! Where requests meet instances that serve several. A request goes to an instance that can begin with it as soon as it is asked;
//! if there is none, one is started, and the request waits for whichever comes first.
//!
//! An instance that is given several requests begins with one after the other. When the guest computes meanwhile, the others are
//! given to other instances.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::Waker;

use futures_channel::oneshot;
use tokio::sync::Notify;
use tokio::time::Instant;
use wasmtime::Result;
use wasmtime_wasi_http::handler::{Request, Response};

use super::attendance::Ticket;

/// A request, and who waits for it.
pub(super) struct Job {
    pub(super) request: Request,
    pub(super) ticket: Arc<Ticket>,
    pub(super) response: oneshot::Sender<Result<Response>>,
    /// Whom to tell if its instance is ended.
    pub(super) ended: tokio::sync::oneshot::Sender<Ended>,
    pub(super) asked: Instant,
}

/// Sent to a request whose instance was ended. The reason is already reported.
pub(super) struct Ended;

/// What an instance is given next.
pub(super) struct Mailbox(Mutex<Mail>);

#[derive(Default)]
struct Mail {
    jobs: VecDeque<Job>,
    /// Wakes the instance. It is there exactly while the instance is open for requests.
    waker: Option<Waker>,
    /// How many requests there may be here at once.
    room: usize,
    /// How many requests the instance serves.
    under_way: usize,
    /// It has begun with a request since it was asked last.
    is_busy: bool,
}

/// Requests that wait, and instances that are open for some.
// Invariant: as many instances are being started as requests wait, up to `threads`.
pub(super) struct Desk {
    lines: Mutex<Lines>,
    /// How many instances can be at work at once.
    threads: usize,
    /// Notified when more are being started than requests wait.
    unneeded: Notify,
}

#[derive(Default)]
struct Lines {
    waiting: VecDeque<Job>,
    /// The one that was opened last is the last.
    open: Vec<Arc<Mailbox>>,
    starting: usize,
}

impl Mailbox {
    /// The mailbox of an instance that begins with `first`.
    pub(super) fn with(first: Option<Job>) -> Self {
        Self(Mutex::new(Mail { jobs: first.into_iter().collect(), ..Mail::default() }))
    }

    /// The next one that somebody still waits for.
    pub(super) fn take(&self) -> Option<Job> {
        let mut mail = self.lock();
        let job = next(&mut mail.jobs)?;
        mail.room = mail.room.saturating_sub(1);
        mail.under_way += 1;
        mail.is_busy = true;
        Some(job)
    }

    pub(super) fn is_empty(&self) -> bool {
        self.lock().jobs.is_empty()
    }

    /// How many requests come before the next one, and how many are under way, unless there is no room for another one.
    fn load(&self) -> Option<(usize, usize)> {
        let mail = self.lock();
        (mail.jobs.len() < mail.room).then(|| (mail.jobs.len() + usize::from(mail.is_busy), mail.under_way))
    }

    /// Wakes the instance unless it will look here anyway.
    fn put(&self, job: Job) {
        let mut mail = self.lock();
        mail.jobs.push_back(job);
        if let (Some(waker), 1, false) = (&mail.waker, mail.jobs.len(), mail.is_busy) {
            waker.wake_by_ref();
        }
    }

    fn lock(&self) -> MutexGuard<'_, Mail> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Job {
    fn is_waited_for(&self) -> bool {
        !self.response.is_canceled()
    }
}

impl Desk {
    /// A desk for instances of which so many can be at work at once.
    pub(super) fn new(threads: usize) -> Self {
        Self { lines: Mutex::default(), threads, unneeded: Notify::new() }
    }

    /// Gives a request to an open instance, or lets it wait. Returns whether the caller must start an instance.
    #[must_use]
    pub(super) fn pass(&self, job: Job) -> bool {
        let mut lines = self.lock();
        let can_more_work = lines.open.len() + lines.starting < self.threads;
        match lines.least_busy() {
            Some((0, mailbox)) => mailbox.put(job),
            Some((_, mailbox)) if !can_more_work => mailbox.put(job),
            _ => {
                // It may have been given back.
                let place = lines.waiting.partition_point(|other| other.asked <= job.asked);
                lines.waiting.insert(place, job);
            }
        }
        self.must_start(&mut lines)
    }

    /// Notes that the instance of `mailbox` can begin with so many requests besides those under way. Returns whether there are any
    /// for it; otherwise it is woken by `waker` when one comes.
    pub(super) fn offer(&self, mailbox: &Arc<Mailbox>, under_way: usize, room: usize, waker: &Waker) -> bool {
        let mut lines = self.lock();
        let mut mail = mailbox.lock();
        (mail.room, mail.under_way, mail.is_busy) = (room, under_way, false);
        match &mut mail.waker {
            Some(known) => known.clone_from(waker),
            none => {
                *none = Some(waker.clone());
                lines.open.push(Arc::clone(mailbox));
            }
        }
        // Instances that are being started leave others their part.
        while mail.jobs.len() < room
            && (mail.jobs.is_empty() || lines.waiting.len() > lines.starting)
            && let Some(job) = self.next(&mut lines)
        {
            mail.jobs.push_back(job);
        }
        !mail.jobs.is_empty()
    }

    /// Notes that the instance of `mailbox` cannot begin with a request, and returns those that it was given meanwhile.
    pub(super) fn withdraw(&self, mailbox: &Arc<Mailbox>) -> VecDeque<Job> {
        let is_open = |mail: &Mail| mail.waker.is_some();
        // Only the instance itself becomes open.
        if is_open(&mailbox.lock()) {
            self.lock().open.retain(|open| !Arc::ptr_eq(open, mailbox));
        }
        std::mem::take(&mut *mailbox.lock()).jobs
    }

    /// Since when the request waits that has waited longest.
    pub(super) fn oldest(&self) -> Option<Instant> {
        self.lock().waiting.front().map(|job| job.asked)
    }

    /// Notes that one is started, or that it cannot be. Returns the request that has waited longest, and whether the caller must
    /// start another instance.
    pub(super) fn started(&self) -> (Option<Job>, bool) {
        let mut lines = self.lock();
        lines.starting -= 1;
        (self.next(&mut lines), self.must_start(&mut lines))
    }

    /// Waits until one that is being started is not needed any more, and counts it as such.
    pub(super) async fn unneeded(&self) {
        loop {
            self.unneeded.notified().await;
            let mut lines = self.lock();
            if lines.starting > lines.waiting.len() {
                lines.starting -= 1;
                return;
            }
        }
    }

    /// Forgets requests that nobody waits for any more.
    pub(super) fn forget_abandoned(&self) {
        let mut lines = self.lock();
        lines.waiting.retain(Job::is_waited_for);
        self.tell_unneeded(&lines);
    }

    fn next(&self, lines: &mut Lines) -> Option<Job> {
        let next = next(&mut lines.waiting);
        self.tell_unneeded(lines);
        next
    }

    /// Counts one more that is being started, if that is needed.
    fn must_start(&self, lines: &mut Lines) -> bool {
        let must_start = lines.starting < lines.waiting.len().min(self.threads);
        lines.starting += usize::from(must_start);
        must_start
    }

    fn tell_unneeded(&self, lines: &Lines) {
        if lines.starting > lines.waiting.len() {
            self.unneeded.notify_one();
        }
    }

    fn lock(&self) -> MutexGuard<'_, Lines> {
        self.lines.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Lines {
    /// The open instance at which fewest requests come before the next one, and how many. Of several it is one that serves fewest,
    /// and the one that was opened last, so that others have nothing to do and end.
    fn least_busy(&self) -> Option<(usize, &Arc<Mailbox>)> {
        let loads = self.open.iter().rev().filter_map(|mailbox| Some((mailbox.load()?, mailbox)));
        loads.min_by_key(|(load, _)| *load).map(|((before, _), mailbox)| (before, mailbox))
    }
}

/// The first one that somebody still waits for.
fn next(jobs: &mut VecDeque<Job>) -> Option<Job> {
    std::iter::from_fn(|| jobs.pop_front()).find(Job::is_waited_for)
}

#[cfg(test)]
mod tests {
    use http_body_util::{BodyExt, Empty};

    use super::*;

    type Responded = oneshot::Receiver<Result<Response>>;

    /// A request for this path, and who waits for it.
    fn job(path: &str) -> (Job, Responded) {
        let (response, responded) = oneshot::channel();
        let body = Empty::new().map_err(|never| match never {}).boxed_unsync();
        let request = hyper::Request::get(path).body(body).unwrap();
        let ended = tokio::sync::oneshot::channel().0;
        (Job { request, ticket: Arc::default(), response, ended, asked: Instant::now() }, responded)
    }

    fn path(job: Option<Job>) -> Option<String> {
        job.map(|job| job.request.uri().path().to_owned())
    }

    /// Passes requests for these paths, and says for which of them an instance must be started.
    fn pass(desk: &Desk, paths: &[&str]) -> (Vec<bool>, Vec<Responded>) {
        let passed = paths.iter().map(|path| job(path)).map(|(job, responded)| (desk.pass(job), responded));
        passed.unzip()
    }

    fn open(desk: &Desk) -> Arc<Mailbox> {
        let mailbox = Arc::new(Mailbox::with(None));
        for _ in 0..2 {
            assert!(!desk.offer(&mailbox, 0, 2, Waker::noop()));
        }
        mailbox
    }

    #[test]
    fn requests_are_spread_over_open_instances() {
        let desk = Desk::new(2);
        let mailboxes = [open(&desk), open(&desk)];
        let (started, _responded) = pass(&desk, &["/1", "/2", "/3", "/4", "/5"]);
        assert_eq!(started, [false, false, false, false, true]);
        let taken = |mailbox: usize| path(mailboxes[mailbox].take());
        assert_eq!([1, 1, 1, 0, 0].map(taken).map(Option::unwrap_or_default), ["/1", "/3", "", "/2", "/4"]);
        assert!(desk.offer(&mailboxes[0], 0, 2, Waker::noop()));
        assert_eq!(taken(0).as_deref(), Some("/5"));
    }

    #[test]
    fn an_instance_that_serves_others_comes_after_one_that_does_not() {
        let desk = Desk::new(2);
        let mailboxes = [open(&desk), open(&desk)];
        let (_, _responded) = pass(&desk, &["/1"]);
        assert_eq!(path(mailboxes[1].take()).as_deref(), Some("/1"));
        let (_, _responded) = pass(&desk, &["/2"]);
        assert_eq!(path(mailboxes[0].take()).as_deref(), Some("/2"));
        assert!(!desk.offer(&mailboxes[0], 0, 2, Waker::noop()), "it is done");
        assert!(!desk.offer(&mailboxes[1], 1, 1, Waker::noop()), "it waits for something");
        let (started, _responded) = pass(&desk, &["/3", "/4", "/5"]);
        assert_eq!(started, [false; 3]);
        let taken = [0, 0, 1, 1].map(|mailbox: usize| path(mailboxes[mailbox].take()).unwrap_or_default());
        assert_eq!(taken, ["/3", "/5", "/4", ""]);
        let (alone, waits) = (Desk::new(2), Arc::new(Mailbox::with(None)));
        assert!(!alone.offer(&waits, 1, 2, Waker::noop()));
        let (started, _responded) = pass(&alone, &["/6", "/7"]);
        assert_eq!(started, [false, true], "an instance that waits for something can begin at once");
    }

    #[test]
    fn an_instance_that_computes_gives_back_what_it_was_given() {
        let desk = Desk::new(1);
        let mailbox = Arc::new(Mailbox::with(None));
        assert!(desk.withdraw(&mailbox).is_empty());
        let mailbox = open(&desk);
        assert!(desk.withdraw(&mailbox).is_empty());
        let (started, _responded) = pass(&desk, &["/1"]);
        assert_eq!(started, [true], "it is not open any more");
        let (first, must_start) = desk.started();
        assert_eq!((path(first).as_deref(), must_start), (Some("/1"), false));
        let mailbox = open(&desk);
        let (started, _responded) = pass(&desk, &["/2", "/3"]);
        assert_eq!(started, [false, false]);
        let given_back = desk.withdraw(&mailbox).into_iter().map(|job| path(Some(job)));
        assert_eq!(given_back.collect::<Option<Vec<_>>>().unwrap(), ["/2", "/3"]);
    }

    #[test]
    fn as_many_instances_are_started_as_can_be_at_work() {
        let desk = Desk::new(2);
        let (started, responded) = pass(&desk, &["/1", "/2", "/3", "/4"]);
        assert_eq!(started, [true, true, false, false]);
        let started = [(); 2].map(|()| desk.started()).map(|(job, must_start)| (path(job).unwrap(), must_start));
        assert_eq!(started, [("/1".to_owned(), true), ("/2".to_owned(), true)]);
        drop(responded);
        desk.forget_abandoned();
        assert!(matches!(desk.started(), (None, false)), "nobody waits");
        let mailbox = open(&desk);
        let (started, _responded) = pass(&desk, &["/5", "/6"]);
        assert_eq!(started, [false, false], "another one is being started");
        assert_eq!(path(mailbox.take()).as_deref(), Some("/5"));
    }

    #[tokio::test]
    async fn an_instance_is_not_started_for_a_request_that_another_serves_or_that_is_abandoned() {
        let desk = Desk::new(2);
        let mailbox = Arc::new(Mailbox::with(None));
        let (first, _responded) = job("/1");
        let (second, responded) = job("/2");
        assert!(desk.pass(first) && desk.pass(second));
        assert!(desk.oldest().is_some());
        assert!(desk.offer(&mailbox, 0, 1, Waker::noop()));
        desk.unneeded().await;
        drop(responded);
        desk.forget_abandoned();
        desk.unneeded().await;
        assert!(desk.oldest().is_none());
        assert_eq!(path(mailbox.take()).as_deref(), Some("/1"));
        assert!(desk.withdraw(&mailbox).is_empty());
        let (third, responded) = job("/3");
        assert!(desk.pass(third));
        drop(responded);
        assert!(desk.started().0.is_none(), "nobody waits for it");
    }
}
