//! What the engine counts of its guest besides memory, in the account: instances, traps, requests and calls.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use hyper::{Request, StatusCode};
use skiff_protocol::{Account, FUNCTION_NAME_BYTES_MAX, FUNCTIONS_MAX, OTHER_FUNCTIONS};

use crate::store::ledger::{Entered, Ledger, What};

/// An instance that is alive, counted until this is dropped.
pub(crate) struct CountedInstance(Account);

impl CountedInstance {
    /// Counts an instance.
    pub(crate) fn new(account: Account) -> Self {
        account.add_instance();
        Self(account)
    }
}

impl Drop for CountedInstance {
    fn drop(&mut self) {
        self.0.remove_instance();
    }
}

/// A request, counted when this is dropped: with the last byte of its response, or when its client is gone.
pub(crate) struct CountedRequest {
    account: Account,
    begun: Instant,
    status: Option<StatusCode>,
    _entered: Entered,
}

impl CountedRequest {
    /// A request that begins now and has no response yet.
    pub(crate) fn begin<B>(account: Account, ledger: &Arc<Ledger>, request: &Request<B>) -> Self {
        let entered = ledger.enter(What::request(request.method(), request.uri()));
        Self { account, begun: Instant::now(), status: None, _entered: entered }
    }

    /// Notes the code of its response.
    pub(crate) fn responds(&mut self, status: StatusCode) {
        self.status = Some(status);
    }
}

impl Drop for CountedRequest {
    fn drop(&mut self) {
        self.account.add_request(self.status.map(|status| status.as_u16()), self.begun.elapsed());
    }
}

/// The functions that have been called, each with a slot in the account.
pub(crate) struct CountedCalls {
    account: Account,
    names: Mutex<Vec<String>>,
}

impl CountedCalls {
    /// No calls so far.
    pub(crate) fn new(account: Account) -> Self {
        Self { account, names: Mutex::default() }
    }

    /// Counts a call.
    pub(crate) fn add(&self, function: &str, duration: Duration, trapped: bool) {
        self.account.add_call(self.slot(function), duration, trapped);
    }

    /// The slot of a function. The first functions that are called have one of their own.
    fn slot(&self, function: &str) -> usize {
        let mut names = self.names.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(slot) = names.iter().position(|name| name == function) {
            return slot;
        }
        let (slot, name) = match names.len() {
            slot if slot < FUNCTIONS_MAX && function.len() <= FUNCTION_NAME_BYTES_MAX => {
                names.push(function.to_owned());
                (slot, function)
            }
            _ => (FUNCTIONS_MAX, OTHER_FUNCTIONS),
        };
        self.account.name_function(slot, name);
        slot
    }
}

#[cfg(test)]
mod tests {
    use skiff_protocol::{Activity, called_functions};

    use super::*;

    #[test]
    fn a_request_is_counted_once_whatever_becomes_of_it() {
        let file = Account::create().unwrap();
        let account = Account::keep_in(&file).unwrap();
        let ledger = Arc::default();
        let begin = || CountedRequest::begin(account, &ledger, &Request::new(()));
        let mut answered = begin();
        answered.responds(StatusCode::NOT_FOUND);
        drop((answered, begin()));
        assert!(ledger.entries().is_empty());
        let instance = CountedInstance::new(account);
        let activity = Activity::read(&file).unwrap();
        assert_eq!((activity.requests, activity.instances), ([1, 0, 0, 0, 1, 0], 1));
        assert_eq!(activity.durations.iter().sum::<u64>(), 2);
        drop(instance);
        assert_eq!(Activity::read(&file).unwrap().instances, 0);
    }

    #[test]
    fn the_first_functions_that_are_called_are_counted_by_name() {
        let file = Account::create().unwrap();
        let calls = CountedCalls::new(Account::keep_in(&file).unwrap());
        calls.add(&"x".repeat(FUNCTION_NAME_BYTES_MAX + 1), Duration::ZERO, false);
        for number in 0..FUNCTIONS_MAX + 10 {
            calls.add(&format!("f{number}"), Duration::ZERO, false);
        }
        calls.add("f0", Duration::ZERO, true);
        let called = called_functions(&file).unwrap();
        assert_eq!(called.len(), FUNCTIONS_MAX + 1);
        assert_eq!((called["f0"].calls, called["f0"].traps, called["f1"].calls), (2, 1, 1));
        assert_eq!(called[OTHER_FUNCTIONS].calls, 11);
    }
}
