//! The longest run time of a command.

use std::io;
use std::sync::Arc;
use std::thread::Builder;
use std::time::Duration;

use skiff_linux::process::exit_now;
use skiff_protocol::exit_code_of_signal;

use crate::clock;
use crate::report::Reporter;

const STACK_BYTES: usize = 64 << 10;

/// Ends the process after `limit` with the exit code of SIGTERM, wherever the guest is then: in its own code or in a call
/// of the host that does not return.
///
/// # Errors
/// If there is no room for a thread.
pub(crate) fn end_after(limit: Duration, module: &str, reporter: &Arc<Reporter>) -> io::Result<()> {
    let sentence = format!("{module} ran longer than its limit `run-time` of {limit:?}");
    let reporter = Arc::clone(reporter);
    Builder::new().name("run-time".to_owned()).stack_size(STACK_BYTES).spawn(move || {
        clock::sleep(limit);
        reporter.last_line(&sentence);
        exit_now(exit_code_of_signal(libc::SIGTERM))
    })?;
    Ok(())
}
