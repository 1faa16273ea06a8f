//! Waiting for time to pass: the longest run time of a command, and the pace of its output.

use std::io;
use std::thread::Builder;
use std::time::Duration;

use skiff_protocol::exit_code_of_signal;

use crate::{report, signals};

const STACK_BYTES: usize = 64 << 10;

/// Ends the process after `limit` with the code of SIGTERM, wherever the guest is then: in its own code or in a call of
/// the host that does not return.
///
/// # Errors
/// When there is no room for a thread.
pub(crate) fn end_after(limit: Duration, module: &str) -> io::Result<()> {
    let told = format!("{module} ran longer than its limit `run-time` of {limit:?}");
    Builder::new().name("run-time".to_owned()).stack_size(STACK_BYTES).spawn(move || {
        pass(limit);
        report::last_line(&told);
        signals::exit_now(exit_code_of_signal(libc::SIGTERM));
    })?;
    Ok(())
}

/// Lets time pass on this thread.
#[expect(clippy::disallowed_methods, reason = "it is the time itself that is waited for")]
pub(crate) fn pass(time: Duration) {
    std::thread::sleep(time);
}
