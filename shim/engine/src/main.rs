//! The engine: the process of a wasm container. It takes a plan and compiled code from the control socket, runs the
//! guest and ends with the guest's exit code. It cannot compile, and knows neither containerd nor OCI specs.

mod command;
mod control;
mod deadline;
mod http;
mod limits;
mod load;
mod report;
mod signals;
mod stdio;
mod store;
mod wasi;

use skiff_plan::{Account, EXIT_ENGINE, Message, Refusal};
use wasmtime::Engine;

use crate::control::Control;
use crate::load::{Guest, of_engine};

/// A guest that is instantiated and waits to run.
enum Prepared {
    Command(Box<command::Command>),
    Server(Box<http::Server>),
}

fn main() {
    let code = run().unwrap_or_else(|error| {
        report::line(&format!("the engine cannot talk to the shim: {error}"));
        EXIT_ENGINE
    });
    std::process::exit(code);
}

/// Serves the control socket until a guest has run or was refused for good; answers the exit code.
fn run() -> std::io::Result<i32> {
    signals::install();
    let control = Control::inherit()?;
    loop {
        match prepare(control.receive()?, &control) {
            Ok(prepared) => {
                control.ready()?;
                return Ok(prepared.run());
            }
            Err(incompatible @ Refusal::Incompatible(_)) => control.refuse(incompatible)?,
            Err(refusal) => {
                control.refuse(refusal)?;
                return Ok(EXIT_ENGINE);
            }
        }
    }
}

/// Loads, links and instantiates what the message holds.
fn prepare(message: Message, control: &Control) -> Result<Prepared, Refusal> {
    let account = Account::keep_in(&message.account)
        .map_err(|error| Refusal::Host(format!("cannot keep the account of the guest's memory: {error}")))?;
    let engine = load::config(&message.plan.limits).and_then(|config| Engine::new(&config));
    let engine = engine.map_err(|error| of_engine(&error))?;
    let guest = load::load(&engine, &message.code)?;
    control.loaded().map_err(|error| Refusal::Host(format!("cannot talk to the shim: {error}")))?;
    let name = message.plan.module.rsplit('/').next().unwrap_or_default().to_owned();
    control::name_process(&name);
    let context = wasi::Context::new(message.plan, message.memory_limits, account);
    match guest {
        Guest::Module(module) => {
            command::Command::of_module(&module, context).map(|command| Prepared::Command(Box::new(command)))
        }
        Guest::Component(component) => load::link(&component, &message.code, context),
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
