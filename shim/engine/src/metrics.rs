//! What the engine counts of its guest besides memory, in the account: instances, traps and requests.

use std::time::Instant;

use hyper::StatusCode;
use skiff_protocol::Account;

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
}

impl CountedRequest {
    /// A request that begins now and has no response yet.
    pub(crate) fn begin(account: Account) -> Self {
        Self { account, begun: Instant::now(), status: None }
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

#[cfg(test)]
mod tests {
    use skiff_protocol::Activity;

    use super::*;

    #[test]
    fn a_request_is_counted_once_whatever_becomes_of_it() {
        let file = Account::create().unwrap();
        let account = Account::keep_in(&file).unwrap();
        let mut answered = CountedRequest::begin(account);
        answered.responds(StatusCode::NOT_FOUND);
        drop((answered, CountedRequest::begin(account)));
        let instance = CountedInstance::new(account);
        let activity = Activity::read(&file).unwrap();
        assert_eq!((activity.requests, activity.instances), ([1, 0, 0, 0, 1, 0], 1));
        assert_eq!(activity.durations.iter().sum::<u64>(), 2);
        drop(instance);
        assert_eq!(Activity::read(&file).unwrap().instances, 0);
    }
}
