//! The engine: the process of a wasm container. It takes a plan and compiled code from the control socket, runs the
//! guest and ends with the guest's exit code. It cannot compile, and knows neither containerd nor OCI specifications.

mod clock;
mod control;
mod deadline;
mod environment;
mod error;
mod exports;
mod files;
mod host;
mod http;
mod link;
mod load;
mod memory;
mod metrics;
mod names;
mod outgoing;
mod prepare;
mod queue;
mod report;
mod role;
mod run;
mod shared;
mod signals;
mod stdio;
mod store;
mod wall;

use std::sync::Arc;

use skiff_protocol::{EXIT_ENGINE, Message, Refusal};

use crate::control::{Control, Replies};
use crate::prepare::{Linked, Loaded};
use crate::report::Reporter;

fn main() {
    let reporter = Arc::default();
    let code = serve(&reporter).unwrap_or_else(|error| {
        reporter.line(&format!("the engine cannot talk to the shim: {error}"));
        EXIT_ENGINE
    });
    reporter.flush();
    std::process::exit(code);
}

/// Serves the control socket until a guest has run or was refused for good, and returns the exit code.
fn serve(reporter: &Arc<Reporter>) -> std::io::Result<i32> {
    wall::hide()?;
    signals::install()?;
    let control = Control::inherit()?;
    loop {
        let Message { plan, code, account, replies, memory_limits } = control.receive()?;
        let replies = Replies::new(replies, reporter);
        if plan.each_signal_stops {
            signals::let_each_stop()?;
        }
        match Loaded::new(plan, &code, &account, memory_limits, reporter) {
            Ok(loaded) => {
                drop((control, code, account));
                return start(loaded, replies);
            }
            Err(incompatible @ Refusal::Incompatible(_)) => replies.refuse(incompatible)?,
            Err(refusal) => {
                replies.refuse(refusal)?;
                return Ok(EXIT_ENGINE);
            }
        }
    }
}

/// Brings a guest from its code to its end, and returns the exit code.
fn start(loaded: Loaded, replies: Replies) -> std::io::Result<i32> {
    let sent = replies.loaded().map_err(|error| Refusal::Host(format!("cannot talk to the shim: {error}")));
    match sent.and_then(|()| loaded.link()).and_then(Linked::prepare) {
        Ok(prepared) => {
            replies.ready()?;
            Ok(prepared.run())
        }
        Err(refusal) => {
            replies.refuse(refusal)?;
            Ok(EXIT_ENGINE)
        }
    }
}
