//! The longest run time of a command.

use std::io;
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::Builder;
use std::time::Duration;

use skiff_linux::process::exit_now;
use skiff_protocol::exit_code_of_signal;

use crate::clock;
use crate::report::Reporter;
use crate::stdio::tail::Tail;

const STACK_BYTES: usize = 64 << 10;
/// How long a guest that has trapped may take to say why: nobody may read it.
const TELLING: Duration = Duration::from_millis(250);

/// Ends the process after `limit` with the exit code of SIGTERM, wherever the guest is then: in its own code or in a call
/// of the host that does not return. A guest that has `trapped` keeps its exit code, and the time for its core dump.
///
/// # Errors
/// If there is no room for a thread.
pub(crate) fn end_after(
    limit: Duration,
    module: &str,
    reporter: &Arc<Reporter>,
    tail: Arc<Tail>,
    trapped: &Arc<Mutex<Option<i32>>>,
) -> io::Result<()> {
    let sentence = format!("{module} ran longer than its limit `run-time` of {limit:?}");
    let (reporter, trapped) = (Arc::clone(reporter), Arc::clone(trapped));
    Builder::new().name("run-time".to_owned()).stack_size(STACK_BYTES).spawn(move || {
        clock::sleep(limit);
        // Held until the process ends: a guest that traps now waits for that.
        let trapped = trapped.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(code) = *trapped {
            clock::sleep(TELLING);
            exit_now(code);
        }
        // Nobody may read stderr, and the file is read in any case.
        reporter.last_words().leave(&sentence, &tail.text());
        reporter.last_line(&sentence);
        exit_now(exit_code_of_signal(libc::SIGTERM))
    })?;
    Ok(())
}
