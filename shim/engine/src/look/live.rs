//! The commands that only the engine of the guest can answer.

use std::fmt::Write as _;
use std::io;
use std::time::{Duration, Instant};

use skiff_protocol::{Figures, bytes_and_mi};

use super::command::Live as Command;
use super::text::shown;
use super::{backtrace, dump, profile};
use crate::answer::Answer;
use crate::live::Live;
use crate::shared::Shared;
use crate::store::ledger::{Entry, What};

/// Answers a command, and returns the exit code.
///
/// # Errors
/// Those of [`Answer`].
pub(super) fn answer(command: &Command, answer: &mut Answer, live: &Live) -> io::Result<u8> {
    let shared = &live.shared;
    match command {
        Command::Ps => answer.output(ps(shared, Instant::now()).as_bytes()).map(|()| 0),
        Command::Memory => answer.output(memory(shared.account.figures(), shared).as_bytes()).map(|()| 0),
        Command::Backtrace(patience) => backtrace::backtrace(*patience, answer, shared),
        Command::Profile(length) => profile::profile(*length, answer, shared),
        Command::CoreDump(_) => dump::dump(answer, shared),
    }
}

/// All that is under way, the oldest first.
fn ps(shared: &Shared, now: Instant) -> String {
    let mut text = String::new();
    for (number, Entry { what, since }) in shared.glass.ledger.entries() {
        let age = age(now.saturating_duration_since(since));
        // Writing to a string cannot fail.
        let _written = match what {
            What::Instance(lease) => {
                writeln!(text, "{number:>6}  {age:>10}  instance  {}", bytes_and_mi(lease.held_bytes()))
            }
            What::Request(request) => {
                writeln!(text, "{number:>6}  {age:>10}  request   {}", shown(request.as_bytes()))
            }
            What::Call(function) => {
                writeln!(text, "{number:>6}  {age:>10}  call      {}", shown(function.as_bytes()))
            }
        };
    }
    text
}

/// How long something has been going on.
fn age(time: Duration) -> String {
    format!("{}.{:03}s", time.as_secs(), time.subsec_millis())
}

/// What the memories take, and what limits them.
fn memory(figures: Figures, shared: &Shared) -> String {
    let Figures { linear_memory_bytes, peak_bytes, refusals, .. } = figures;
    let limit = shared.budget.limit_bytes().map_or("none".to_owned(), bytes_and_mi);
    let mut text = format!(
        "memories, tables and GC heaps: {}\nat most so far: {}\nlimit of the container: {limit}\nrefused growths: {refusals}\n",
        bytes_and_mi(linear_memory_bytes),
        bytes_and_mi(peak_bytes),
    );
    for (number, Entry { what, .. }) in shared.glass.ledger.entries() {
        if let What::Instance(lease) = what {
            let _written = writeln!(text, "instance {number}: {}", bytes_and_mi(lease.held_bytes()));
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_age_has_milliseconds() {
        assert_eq!(age(Duration::from_millis(61_002)), "61.002s");
    }
}
