//! What kind of guest the code is, and its way until it waits to run: mapped, linked, behind the wall, instantiated.

use std::fs::File;
use std::sync::Arc;

use skiff_protocol::{Account, EnginePlan, MemoryLimit, Refusal};
use wasmtime::Engine;

use crate::control::name_process;
use crate::error::engine_failed;
use crate::exports::has_http_handler;
use crate::http::pool::pooled;
use crate::http::server::{LinkedServer, Server};
use crate::load::{Code, config, load};
use crate::report::Reporter;
use crate::role::Role;
use crate::run::command::Command;
use crate::run::component::LinkedComponent;
use crate::run::module::LinkedModule;
use crate::shared::Shared;

/// A guest whose code is mapped, as often as it will ever be.
pub(crate) struct Loaded {
    code: Code,
    role: Role,
    shared: Shared,
}

/// A guest whose code is linked. Nothing of it has run.
pub(crate) struct Linked {
    guest: LinkedGuest,
    shared: Shared,
}

enum LinkedGuest {
    Module(Box<LinkedModule>),
    Component(Box<LinkedComponent>),
    Server(Box<LinkedServer>),
}

impl LinkedGuest {
    /// Names the limits that were set in vain, for whoever reads the log.
    fn say_what_has_no_effect(&self, shared: &Shared) {
        let limits = &shared.plan.limits;
        let (names, kind) = match self {
            Self::Module(_) | Self::Component(_) => (limits.without_effect_on_commands(), "a command"),
            Self::Server(_) => (limits.without_effect_on_servers(), "an HTTP server"),
        };
        for name in names {
            let module = &shared.plan.module;
            shared.reporter.last_line(&format!("the limit `{name}` has no effect on {module}, which is {kind}"));
        }
    }
}

/// A guest that is instantiated and waits to run.
pub(crate) enum Prepared {
    /// It runs once.
    Command(Box<Command>),
    /// It serves HTTP.
    Server(Box<Server>),
}

impl Loaded {
    /// Maps `code`, and finds out what kind of guest it is.
    ///
    /// # Errors
    /// [`Refusal::Incompatible`] if the code is for another engine, [`Refusal::Host`] if the engine itself fails.
    pub(crate) fn new(
        plan: EnginePlan,
        code: &File,
        account: &File,
        memory_limits: Vec<MemoryLimit>,
        reporter: &Arc<Reporter>,
    ) -> Result<Self, Refusal> {
        let account = Account::keep_in(account)
            .map_err(|error| Refusal::Host(format!("cannot map the account of the guest's memory: {error}")))?;
        let engine =
            config(&plan.limits).and_then(|config| Engine::new(&config)).map_err(|error| engine_failed(&error))?;
        let mapped = load(&engine, code)?;
        name_process(plan.module.rsplit('/').next().unwrap_or_default());
        let mut shared = Shared::new(plan, memory_limits, account, reporter);
        let role = role(&mapped, &shared);
        let mapped = match mapped {
            Code::Component(component) if role == Role::Server => {
                Code::Component(pooled(&component, code, &mut shared).unwrap_or(component))
            }
            other => other,
        };
        Ok(Self { code: mapped, role, shared })
    }

    /// Links the guest as what it is: a command, a library or an HTTP server. Runs nothing of it.
    ///
    /// # Errors
    /// [`Refusal::Guest`] if it is none of these, imports something that skiff does not provide, or would see a kernel file
    /// system; [`Refusal::Host`] if a directory of its plan cannot be opened.
    pub(crate) fn link(self) -> Result<Linked, Refusal> {
        let Self { code, role, mut shared } = self;
        shared.open_directories(role)?;
        let guest = match code {
            Code::Module(module) => LinkedGuest::Module(Box::new(LinkedModule::new(&module, &shared)?)),
            Code::Component(component) if role == Role::Server => {
                LinkedGuest::Server(Box::new(LinkedServer::new(&component, &shared)?))
            }
            Code::Component(component) => LinkedGuest::Component(Box::new(LinkedComponent::new(&component, &shared)?)),
        };
        Ok(Linked { guest, shared })
    }
}

/// What the instances of mapped code are. Where the plan names a function, a component is not a server.
fn role(code: &Code, shared: &Shared) -> Role {
    match code {
        Code::Module(_) => Role::Module,
        Code::Component(component) if shared.plan.function.is_none() && has_http_handler(component) => Role::Server,
        Code::Component(_) => Role::Component,
    }
}

impl Linked {
    /// Raises the wall and instantiates.
    ///
    /// # Errors
    /// [`Refusal::Host`] if a part of the wall does not hold, and those of instantiating each kind of guest.
    // Invariant: no instruction of a guest runs on this side of the wall.
    pub(crate) fn prepare(self) -> Result<Prepared, Refusal> {
        let Self { guest, mut shared } = self;
        guest.say_what_has_no_effect(&shared);
        shared.raise_wall()?;
        match guest {
            LinkedGuest::Module(module) => {
                module.instantiate(shared).map(|command| Prepared::Command(Box::new(command)))
            }
            LinkedGuest::Component(component) => {
                component.instantiate(shared).map(|command| Prepared::Command(Box::new(command)))
            }
            LinkedGuest::Server(server) => server.prepare(shared).map(|server| Prepared::Server(Box::new(server))),
        }
    }
}

impl Prepared {
    /// Runs the guest to its end, and returns its exit code.
    pub(crate) fn run(self) -> i32 {
        match self {
            Self::Command(command) => command.run(),
            Self::Server(server) => server.run(),
        }
    }
}
