//! What an engine process does that was made for an exec and runs no code: it says why there is nothing to run, has functions of the
//! container's guest called, or looks at the container.
//!
//! It is behind the wall like every engine: what it asks may have been taken over by its guest.

use std::fs::File;
use std::io::{self, IsTerminal};
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::sync::Arc;

use skiff_protocol::{Account, EXIT_ENGINE, EXIT_NOT_FOUND, EnginePlan, MemoryLimit, Question, Refusal};

use crate::calls::ask::{Input, ask};
use crate::control::Replies;
use crate::look::{self, Before, Local};
use crate::report::Reporter;
use crate::role::Role;
use crate::shared::Shared;
use crate::stdio::target::Target;
use crate::stdio::write::{NamedOutput, Whole};
use crate::wall;
use crate::wall::view::View;

/// The exit code of a question without an answer.
const EXIT_UNANSWERED: i32 = 1;

/// Says why there is nothing to run.
///
/// # Errors
/// If the shim is gone.
pub(crate) fn refuse(sentence: &str, replies: Replies, reporter: &Reporter) -> io::Result<i32> {
    replies.loaded()?;
    replies.ready()?;
    reporter.line(sentence);
    Ok(EXIT_NOT_FOUND)
}

/// Has functions of the guest called: `args` are the arguments behind `invoke`.
///
/// # Errors
/// If the shim is gone.
pub(crate) fn invoke(args: Vec<String>, calls: Option<File>, replies: Replies, reporter: &Reporter) -> io::Result<i32> {
    replies.loaded()?;
    if let Err(sentence) = wall::raise(&View { directories: &[], files: &[] }) {
        replies.refuse(Refusal::Host(sentence))?;
        return Ok(EXIT_ENGINE);
    }
    replies.ready()?;
    // Whoever types is shown what can be called.
    let input = if io::stdin().is_terminal() { Input::None } else { Input::Stdin };
    Ok(answered(calls, &Question::Invoke(args), input, NamedOutput::answer(Box::new(Whole(Target::Stdout))), reporter))
}

/// What a look is taken with.
pub(crate) struct Looking {
    /// Whose view of files and environment is shown.
    pub(crate) plan: EnginePlan,
    /// Where what the guest uses is kept.
    pub(crate) account: File,
    /// The memory limits of the container.
    pub(crate) memory_limits: Vec<MemoryLimit>,
    /// The connection to the guest's engine, if it runs.
    pub(crate) calls: Option<File>,
}

/// Looks at the container: `args` are the arguments behind `skiff`.
///
/// # Errors
/// If the shim is gone.
pub(crate) fn look(args: Vec<String>, looking: Looking, replies: Replies, reporter: &Arc<Reporter>) -> io::Result<i32> {
    replies.loaded()?;
    let calls = looking.calls.as_ref().map(File::try_clone).transpose()?;
    let before = Before::of(&looking.plan);
    let shared = match prepare(looking, reporter) {
        Ok(shared) => shared,
        Err(refusal) => {
            replies.refuse(refusal)?;
            return Ok(EXIT_ENGINE);
        }
    };
    replies.ready()?;
    Ok(match look::local(&args, &shared, &before, Box::new(Whole(Target::Stdout))) {
        Local::Done(code) => i32::from(code),
        Local::Ask(output) => answered(calls, &Question::Look(args), Input::None, output, reporter),
    })
}

/// Opens the container's directories, and raises the wall around them.
fn prepare(looking: Looking, reporter: &Arc<Reporter>) -> Result<Shared, Refusal> {
    let Looking { plan, account, memory_limits, .. } = looking;
    let account = Account::keep_in(&account)
        .and_then(|account| account.in_place(plan.place))
        .map_err(|error| Refusal::Host(format!("cannot map the account of the guest's memory: {error}")))?;
    let mut shared = Shared::new(plan, memory_limits, account, reporter);
    shared.open_directories(Role::Component)?;
    shared.raise_wall()?;
    Ok(shared)
}

/// Asks the guest's engine, and returns the exit code. What goes wrong is told on stderr.
fn answered(calls: Option<File>, question: &Question, input: Input, output: NamedOutput, reporter: &Reporter) -> i32 {
    let Some(calls) = calls else {
        reporter.line("the guest of this container does not run: there is nobody to ask");
        return EXIT_UNANSWERED;
    };
    ask(UnixStream::from(OwnedFd::from(calls)), question, input, output).unwrap_or_else(|sentence| {
        reporter.line(&sentence);
        EXIT_UNANSWERED
    })
}
