//! The engine: the process of a wasm container. It takes a plan and compiled code from the control socket, runs the
//! guest and ends with the guest's exit code. It cannot compile, and knows neither containerd nor OCI specs.

mod command;
mod control;
mod deadline;
mod directories;
mod http;
mod limits;
mod linker;
mod load;
mod mounts;
mod names;
mod outgoing;
mod queue;
mod report;
mod server_output;
mod signals;
mod stdio;
mod store;
mod wall;
mod wasi;

use skiff_protocol::{EXIT_ENGINE, Message, Refusal};

use crate::control::{Control, Replies};
use crate::load::Loaded;

/// A guest that is instantiated and waits to run.
enum Prepared {
    Command(Box<command::Command>),
    Server(Box<http::Server>),
}

/// A guest whose code is mapped and linked. Nothing of it has run.
enum Linked {
    Module(Box<command::LinkedModule>),
    Component(Box<command::LinkedComponent>),
    Server(Box<http::LinkedServer>),
}

fn main() {
    let code = run().unwrap_or_else(|error| {
        report::line(&format!("the engine cannot talk to the shim: {error}"));
        EXIT_ENGINE
    });
    report::flush();
    std::process::exit(code);
}

/// Serves the control socket until a guest has run or was refused for good; answers the exit code.
fn run() -> std::io::Result<i32> {
    wall::hide()?;
    signals::install();
    let control = Control::inherit()?;
    loop {
        let Message { plan, code, account, replies, memory_limits } = control.receive()?;
        let replies = Replies::through(replies);
        match Loaded::of(plan, &code, &account, memory_limits) {
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

/// Brings a guest from its code to its end; answers the exit code.
fn start(loaded: Loaded, replies: Replies) -> std::io::Result<i32> {
    let told = replies.loaded().map_err(|error| Refusal::Host(format!("cannot talk to the shim: {error}")));
    match told.and_then(|()| loaded.link()).and_then(Linked::prepare) {
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

impl Linked {
    /// Raises the wall and instantiates.
    // Invariant: no instruction of a guest runs on this side of the wall.
    fn prepare(mut self) -> Result<Prepared, Refusal> {
        let context = match &mut self {
            Self::Module(module) => module.context_mut(),
            Self::Component(component) => component.context_mut(),
            Self::Server(server) => server.context_mut(),
        };
        context.raise_wall()?;
        match self {
            Self::Module(module) => module.instantiate().map(|command| Prepared::Command(Box::new(command))),
            Self::Component(component) => component.instantiate().map(|command| Prepared::Command(Box::new(command))),
            Self::Server(server) => server.prepare().map(|server| Prepared::Server(Box::new(server))),
        }
    }
}

impl Prepared {
    fn run(self) -> i32 {
        match self {
            Self::Command(command) => command.run(),
            Self::Server(server) => server.run(),
        }
    }
}
