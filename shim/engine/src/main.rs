//! The engine: the process of a wasm container. It takes a plan and compiled code from the control socket, runs the
//! guest and ends with the guest's exit code. It cannot compile, and knows neither containerd nor OCI specifications. Executed under
//! another name, its program is the first stage of a container's process instead.

mod answer;
mod calls;
mod clock;
mod control;
mod coredump;
mod deadline;
mod environment;
mod errand;
mod error;
mod exports;
mod files;
mod host;
mod http;
mod lastwords;
mod link;
mod live;
mod load;
mod look;
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
mod shown;
mod signals;
mod stdio;
mod store;
mod ticker;
mod trap;
mod turn;
mod wall;

use std::fs::File;
use std::sync::Arc;

use skiff_protocol::{EXIT_ENGINE, Message, Refusal, Task};

use crate::control::{Control, Replies};
use crate::errand::Looking;
use crate::http::pool::open_page_map;
use crate::prepare::Loaded;
use crate::report::Reporter;

fn main() {
    if skiff_stage::is_asked_for() {
        std::process::exit(skiff_stage::run());
    }
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
    // What is left open by accident is closed before anything is opened.
    let control = Control::inherit()?;
    open_page_map();
    wall::hide()?;
    signals::install()?;
    loop {
        let Message { mut plan, code, calls, account, replies, memory_limits } = control.receive()?;
        let replies = Replies::new(replies, reporter);
        if plan.each_signal_stops {
            signals::let_each_stop()?;
        }
        match std::mem::take(&mut plan.task) {
            Task::Run => {}
            Task::Refuse(sentence) => {
                drop(control);
                return errand::refuse(&sentence, replies, reporter);
            }
            Task::Invoke(args) => {
                drop(control);
                return errand::invoke(args, calls, replies, reporter);
            }
            Task::Look(args) => {
                drop(control);
                return errand::look(args, Looking { plan, account, memory_limits, calls }, replies, reporter);
            }
        }
        let Some(code) = code else {
            return refuse(Refusal::Host("the shim has sent no code".into()), &replies, control);
        };
        match Loaded::new(plan, &code, &account, memory_limits, reporter) {
            Ok(loaded) => {
                drop((code, account));
                return start(loaded, calls, replies, control);
            }
            Err(incompatible @ Refusal::Incompatible(_)) => replies.refuse(incompatible)?,
            Err(refusal) => return refuse(refusal, &replies, control),
        }
    }
}

/// Says why the guest does not run, and returns the exit code once the shim has heard it: a container that has ended cannot be started,
/// and so nobody would hear why.
fn refuse(refusal: Refusal, replies: &Replies, control: Control) -> std::io::Result<i32> {
    replies.refuse(refusal)?;
    // The shim closes its end.
    let _heard = control.wait_to_run();
    Ok(EXIT_ENGINE)
}

/// Brings a guest from its code to its end, and returns the exit code.
fn start(loaded: Loaded, calls: Option<File>, replies: Replies, control: Control) -> std::io::Result<i32> {
    let sent = replies.loaded().map_err(|error| Refusal::Host(format!("cannot talk to the shim: {error}")));
    let linked = match sent.and_then(|()| loaded.link()) {
        Ok(linked) => linked,
        Err(refusal) => return refuse(refusal, &replies, control),
    };
    control.wait_to_run()?;
    match linked.prepare(calls) {
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
