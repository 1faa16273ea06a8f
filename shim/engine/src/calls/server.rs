//! The answering side of the call socket: a thread that accepts connections, and one for each of them.
//!
//! A connection that finds all places in use waits for one, and others behind it in the socket's queue, so that a hundred execs at once
//! all get their turn. Whoever has a place and neither says nor takes anything gives way.

use std::io;
use std::os::unix::net::UnixListener;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::Builder;
use std::time::{Duration, Instant};

use skiff_protocol::Question;

use super::invoke::invoke;
use super::service::Calls;
use crate::answer::{Answer, Line};
use crate::live::Live;
use crate::{clock, look};

/// How many questions are answered at once.
const CONNECTIONS_MAX: usize = 64;
const ACCEPTING_STACK_BYTES: usize = 64 << 10;
const ANSWERING_STACK_BYTES: usize = 256 << 10;
/// How long to wait if a connection cannot be accepted because descriptors or memory ran out.
const PAUSE: Duration = Duration::from_millis(20);
/// How long nothing happens on a connection before it gives way to one that has no place.
const SILENCE: Duration = Duration::from_secs(5);
/// How often it is looked for such a connection.
const LOOK: Duration = Duration::from_millis(200);

/// The places of connections.
#[derive(Default)]
struct Places {
    taken: Mutex<Vec<Arc<Line>>>,
    left: Condvar,
}

/// A connection's place, until this is dropped.
struct Place {
    places: Arc<Places>,
    line: Arc<Line>,
}

/// Answers whoever connects to `listener`, as long as the process lives.
///
/// # Errors
/// If there is no room for a thread.
pub(crate) fn serve(listener: UnixListener, live: Live, calls: Arc<Calls>) -> io::Result<()> {
    listener.set_nonblocking(false)?;
    let thread = Builder::new().name("calls".to_owned()).stack_size(ACCEPTING_STACK_BYTES);
    thread.spawn(move || {
        let places = Arc::default();
        loop {
            match listener.accept().and_then(|(stream, _)| Line::new(stream)) {
                Ok(line) => answer_apart(Places::take(&places, line), live.clone(), Arc::clone(&calls)),
                Err(_) => clock::sleep(PAUSE),
            }
        }
    })?;
    Ok(())
}

/// Answers on a thread of its own. Without room for one the connection is closed, which its other side takes for what it is.
fn answer_apart(place: Place, live: Live, calls: Arc<Calls>) {
    let thread = Builder::new().name("call".to_owned()).stack_size(ANSWERING_STACK_BYTES);
    let spawned = thread.spawn(move || {
        // Whoever is gone hears nothing of it.
        drop(answer(Answer::new(Arc::clone(&place.line)), &live, &calls));
    });
    drop(spawned);
}

fn answer(mut answer: Answer, live: &Live, calls: &Calls) -> io::Result<()> {
    match answer.question()? {
        Question::Invoke(args) => invoke(&args, answer, calls),
        Question::Look(args) => {
            let code = look::live(&args, &mut answer, live)?;
            answer.end(code)
        }
    }
}

impl Places {
    /// Takes a place for a connection, as soon as there is one.
    fn take(places: &Arc<Self>, line: Arc<Line>) -> Place {
        let mut taken = places.lock();
        while taken.len() >= CONNECTIONS_MAX {
            if let Some(silent) = longest_silent(&taken, Instant::now()) {
                silent.end();
            }
            let waited = places.left.wait_timeout(taken, LOOK);
            (taken, _) = waited.unwrap_or_else(PoisonError::into_inner);
        }
        taken.push(Arc::clone(&line));
        Place { places: Arc::clone(places), line }
    }

    fn lock(&self) -> MutexGuard<'_, Vec<Arc<Line>>> {
        self.taken.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The connection on which nothing has happened for longest, if that is long enough.
fn longest_silent(lines: &[Arc<Line>], now: Instant) -> Option<&Arc<Line>> {
    let waiting = lines.iter().filter_map(|line| Some((line.waiting_since()?, line)));
    let (since, line) = waiting.min_by_key(|(since, _)| *since)?;
    (now.duration_since(since) >= SILENCE).then_some(line)
}

impl Drop for Place {
    fn drop(&mut self) {
        self.places.lock().retain(|line| !Arc::ptr_eq(line, &self.line));
        self.places.left.notify_one();
    }
}
