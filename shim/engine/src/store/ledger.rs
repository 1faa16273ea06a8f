//! What is under way in this process: instances, and the requests and calls that they serve. It is looked at while they go on.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use hyper::{Method, Uri};

use crate::memory::budget::Lease;

/// What is under way, by the numbers that it got when it began.
#[derive(Default)]
pub(crate) struct Ledger(Mutex<Known>);

#[derive(Default)]
struct Known {
    latest: u64,
    entries: BTreeMap<u64, Entry>,
}

/// Something that is under way.
#[derive(Clone)]
pub(crate) struct Entry {
    /// What it is.
    pub(crate) what: What,
    /// Since when.
    pub(crate) since: Instant,
}

/// What something is.
#[derive(Clone)]
pub(crate) enum What {
    /// An instance, with what it holds of the budget.
    Instance(Arc<Lease>),
    /// A request of HTTP: its method and path. The query may hold secrets.
    Request(Box<str>),
    /// A call from outside: its function.
    Call(Box<str>),
}

/// The most bytes of a request or of a function's name that are kept.
const TEXT_BYTES_MAX: usize = 200;

impl What {
    /// A request. The bytes of its head, of which its path is a part, are not held on to.
    pub(crate) fn request(method: &Method, uri: &Uri) -> Self {
        let mut text = String::with_capacity(TEXT_BYTES_MAX.min(method.as_str().len() + 1 + uri.path().len()));
        for part in [method.as_str(), " ", uri.path()] {
            text.push_str(&part[..part.floor_char_boundary(TEXT_BYTES_MAX - text.len())]);
        }
        Self::Request(text.into())
    }

    /// A call of the function `name`.
    pub(crate) fn call(name: &str) -> Self {
        Self::Call(name[..name.floor_char_boundary(TEXT_BYTES_MAX)].into())
    }
}

/// Something that is under way until this is dropped.
pub(crate) struct Entered {
    ledger: Arc<Ledger>,
    number: u64,
}

impl Ledger {
    /// Enters something that begins now.
    pub(crate) fn enter(self: &Arc<Self>, what: What) -> Entered {
        let entry = Entry { what, since: Instant::now() };
        let mut known = self.lock();
        known.latest += 1;
        let number = known.latest;
        known.entries.insert(number, entry);
        Entered { ledger: Arc::clone(self), number }
    }

    /// Everything that is under way.
    pub(crate) fn entries(&self) -> Vec<(u64, Entry)> {
        self.lock().entries.iter().map(|(number, entry)| (*number, entry.clone())).collect()
    }

    fn lock(&self) -> MutexGuard<'_, Known> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Entered {
    /// Its number.
    pub(crate) fn number(&self) -> u64 {
        self.number
    }
}

impl Drop for Entered {
    fn drop(&mut self) {
        // What the entry holds is dropped without the lock.
        let entry = self.ledger.lock().entries.remove(&self.number);
        drop(entry);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_has_ended_is_not_under_way_any_more() {
        let ledger = Arc::<Ledger>::default();
        let request = || ledger.enter(What::request(&Method::GET, &Uri::from_static("/a")));
        let (first, second) = (request(), request());
        assert_eq!((first.number(), second.number(), ledger.entries().len()), (1, 2, 2));
        drop(first);
        let third = request();
        assert_eq!(ledger.entries().iter().map(|(number, _)| *number).collect::<Vec<_>>(), [2, 3]);
        drop((second, third));
        assert!(ledger.entries().is_empty());
    }

    #[test]
    fn a_request_is_kept_short_and_without_its_query() {
        let long = format!("/{}", "x".repeat(1000));
        let longest = format!("GET /{}", "x".repeat(195));
        for (uri, expected) in [("/a?token=secret", "GET /a"), (long.as_str(), longest.as_str())] {
            let What::Request(kept) = What::request(&Method::GET, &uri.parse().unwrap()) else { unreachable!() };
            assert_eq!(&*kept, expected);
        }
        let What::Request(kept) = What::request(&"X".repeat(300).parse().unwrap(), &Uri::from_static("/a")) else {
            unreachable!()
        };
        assert_eq!(&*kept, "X".repeat(200));
    }
}
