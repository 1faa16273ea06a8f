//! The calls that wait for the live instance. Whoever goes away takes theirs along, so that nothing is kept for nobody.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::Notify;

use super::job::Job;

/// Where jobs wait for their turn, at most one of each connection.
#[derive(Default)]
pub(super) struct Queue {
    line: Mutex<Line>,
    added: Notify,
}

#[derive(Default)]
struct Line {
    /// In their order, by number.
    jobs: VecDeque<(u64, Job)>,
    next_number: u64,
    /// Set when nobody takes jobs any more.
    is_closed: bool,
}

/// A job's place in the queue. Dropped, it takes the job back unless its turn has come.
pub(super) struct Place<'a> {
    queue: &'a Queue,
    number: u64,
}

/// The jobs of a queue, for whoever makes the calls.
pub(crate) struct Jobs(Arc<Queue>);

impl Queue {
    /// An empty queue, and its other end.
    pub(super) fn new() -> (Arc<Self>, Jobs) {
        let queue = Arc::<Self>::default();
        (Arc::clone(&queue), Jobs(queue))
    }

    /// Adds a job. One that nobody will take is dropped.
    pub(super) fn push(&self, job: Job) -> Place<'_> {
        let mut line = self.lock();
        let number = line.next_number;
        line.next_number += 1;
        if !line.is_closed {
            line.jobs.push_back((number, job));
        }
        drop(line);
        self.added.notify_one();
        Place { queue: self, number }
    }

    fn lock(&self) -> MutexGuard<'_, Line> {
        self.line.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Place<'_> {
    fn drop(&mut self) {
        let mut line = self.queue.lock();
        let at = line.jobs.iter().position(|(number, _)| *number == self.number);
        let gone = at.and_then(|at| line.jobs.remove(at));
        drop(line);
        drop(gone);
    }
}

impl Jobs {
    /// The next job, as soon as there is one.
    pub(super) async fn next(&mut self) -> Job {
        loop {
            let first = self.0.lock().jobs.pop_front();
            match first {
                Some((_, job)) => return job,
                None => self.0.added.notified().await,
            }
        }
    }
}

impl Drop for Jobs {
    fn drop(&mut self) {
        let mut line = self.0.lock();
        line.is_closed = true;
        let rest = std::mem::take(&mut line.jobs);
        drop(line);
        drop(rest);
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc::{Receiver, TryRecvError, sync_channel};

    use super::super::expression::Call;
    use super::super::job::{Done, Told};
    use super::super::request::Form;
    use super::*;

    type Answers = Receiver<(Done, Vec<Call>)>;

    /// A job, and where it is heard that it is gone.
    fn job() -> (Job, Answers) {
        let ((reply, answers), (_, told)) = (sync_channel(1), Told::new());
        (Job { calls: Vec::new(), form: Form::Wave, reply, told }, answers)
    }

    fn is_gone(answers: &Answers) -> bool {
        matches!(answers.try_recv(), Err(TryRecvError::Disconnected))
    }

    #[test]
    fn whoever_goes_takes_the_job_along() {
        let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
        let (queue, mut jobs) = Queue::new();
        let [(first, first_end), (second, second_end), (third, third_end)] = [job(), job(), job()];
        let places = [queue.push(first), queue.push(second), queue.push(third)];
        let [first, second, _third] = places;
        drop(second);
        assert!(is_gone(&second_end));
        let taken = runtime.block_on(jobs.next());
        drop(first);
        assert!(!is_gone(&first_end), "it has its turn");
        drop(taken);
        assert!(is_gone(&first_end) && !is_gone(&third_end));
        drop(runtime.block_on(jobs.next()));
        assert!(is_gone(&third_end));
    }

    #[test]
    fn nothing_waits_where_nobody_takes_jobs() {
        let (queue, jobs) = Queue::new();
        let [(before, before_end), (after, after_end)] = [job(), job()];
        let _before = queue.push(before);
        drop(jobs);
        let _after = queue.push(after);
        assert!(is_gone(&before_end) && is_gone(&after_end));
    }
}
