//! What kind of guest the code is, and its way until it waits to run: mapped, linked, behind the wall, and then instantiated.

use std::fs::File;
use std::os::fd::OwnedFd;
use std::sync::Arc;

use skiff_protocol::{Account, EnginePlan, MemoryLimit, Refusal};
use wasmtime::component::Component;
use wasmtime::{Engine, Module};

use crate::calls::functions::{self, component_has_some, module_has_some};
use crate::calls::reactor::{LinkedReactor, Reactor};
use crate::calls::server::serve;
use crate::calls::service::Calls;
use crate::control::name_process;
use crate::error::engine_failed;
use crate::exports::{START, built_for, exports_run, has_http_handler};
use crate::http::pool::pooled;
use crate::http::server::{LinkedServer, Server};
use crate::link::{link_component, link_module};
use crate::live::Live;
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

/// A guest whose code is linked, behind the wall. Nothing of it has run.
pub(crate) struct Linked {
    guest: LinkedGuest,
    shared: Shared,
}

enum LinkedGuest {
    Module(Box<LinkedModule>),
    Component(Box<LinkedComponent>),
    Server(Box<LinkedServer>),
    Reactor(Box<LinkedReactor>),
}

impl LinkedGuest {
    /// What instances of it are made of.
    fn code(&self) -> functions::Code {
        match self {
            Self::Module(module) => functions::Code::Module(module.pre().clone()),
            Self::Component(component) => functions::Code::Component(component.pre().clone()),
            Self::Server(server) => functions::Code::Component(server.pre().clone()),
            Self::Reactor(reactor) => reactor.code().clone(),
        }
    }

    /// Names what was set in vain, for whoever reads the log.
    fn say_what_has_no_effect(&self, shared: &Shared) {
        let limits = &shared.plan.limits;
        let (names, kind) = match self {
            Self::Module(_) | Self::Component(_) => (limits.without_effect_on_commands(), "a command"),
            Self::Server(_) => (limits.without_effect_on_servers(), "an HTTP server"),
            Self::Reactor(_) => (limits.without_effect_on_services(), "a service"),
        };
        for name in names {
            let module = &shared.plan.module;
            shared.reporter.last_line(&format!("the limit `{name}` has no effect on {module}, which is {kind}"));
        }
        if let (Some(_), functions::Code::Component(_)) = (&shared.plan.core_dump, self.code()) {
            shared.reporter.last_line(&format!(
                "no core dump of {} is written: it is a component, and only core modules are dumped",
                shared.plan.module
            ));
        }
    }
}

/// A guest that is instantiated and waits to run.
pub(crate) enum Prepared {
    /// It runs once.
    Command(Box<Command>),
    /// It serves HTTP.
    Server(Box<Server>),
    /// It is called.
    Reactor(Box<Reactor>),
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
            .and_then(|account| account.in_place(plan.place))
            .map_err(|error| Refusal::Host(format!("cannot map the account of the guest's memory: {error}")))?;
        let engine =
            config(&plan.limits).and_then(|config| Engine::new(&config)).map_err(|error| engine_failed(&error))?;
        let mapped = load(&engine, code)?;
        name_process(plan.module.rsplit('/').next().unwrap_or_default());
        let mut shared = Shared::new(plan, memory_limits, account, reporter);
        let role = role(&mapped, &shared.plan);
        let mapped = match mapped {
            Code::Component(component) if role == Role::Server => {
                Code::Component(pooled(&component, code, &mut shared).unwrap_or(component))
            }
            other => other,
        };
        Ok(Self { code: mapped, role, shared })
    }

    /// Links the guest as what it is: a command, a library or an HTTP server. Raises the wall, and runs nothing of it.
    ///
    /// # Errors
    /// [`Refusal::Guest`] if it is none of these, imports something that skiff does not provide, or would see a kernel file
    /// system; [`Refusal::Host`] if a directory of its plan cannot be opened, or if a part of the wall does not hold.
    pub(crate) fn link(self) -> Result<Linked, Refusal> {
        let Self { code, role, mut shared } = self;
        shared.open_directories(role)?;
        shared.glass.visits.set_code(code.clone());
        let guest = match code {
            Code::Module(module) if role == Role::Service => {
                let code = functions::Code::Module(link_module(&module, &shared)?);
                LinkedGuest::Reactor(Box::new(LinkedReactor::new(code)?))
            }
            Code::Component(component) if role == Role::Service => {
                let code = functions::Code::Component(link_component(&component, &shared)?);
                LinkedGuest::Reactor(Box::new(LinkedReactor::new(code)?))
            }
            Code::Module(module) => LinkedGuest::Module(Box::new(LinkedModule::new(&module, &shared)?)),
            Code::Component(component) if role == Role::Server => {
                LinkedGuest::Server(Box::new(LinkedServer::new(&component, &shared)?))
            }
            Code::Component(component) => LinkedGuest::Component(Box::new(LinkedComponent::new(&component, &shared)?)),
        };
        shared.raise_wall()?;
        Ok(Linked { guest, shared })
    }
}

/// Whether a core module is a reactor: there is nothing in it to run, but something to call.
fn is_reactor(module: &Module, plan: &EnginePlan) -> bool {
    plan.function.is_none()
        && module.get_export(START).is_none()
        && module_has_some(module)
        && built_for(module).is_none()
}

/// The same for a component that is not a server.
fn is_reactor_component(component: &Component, plan: &EnginePlan) -> bool {
    plan.function.is_none() && !exports_run(component) && component_has_some(component)
}

/// What the instances of mapped code are. Where the plan names a function, a component is not a server.
fn role(code: &Code, plan: &EnginePlan) -> Role {
    match code {
        Code::Module(module) if is_reactor(module, plan) => Role::Service,
        Code::Module(_) => Role::Module,
        Code::Component(component) if plan.function.is_none() && has_http_handler(component) => Role::Server,
        Code::Component(component) if is_reactor_component(component, plan) => Role::Service,
        Code::Component(_) => Role::Component,
    }
}

impl Linked {
    /// Answers questions from `calls` if there may be any, and instantiates.
    ///
    /// # Errors
    /// [`Refusal::Host`] if there is no room for a thread, and those of instantiating each kind of guest.
    // Invariant: no instruction of a guest runs on the other side of the wall.
    pub(crate) fn prepare(self, calls: Option<File>) -> Result<Prepared, Refusal> {
        let Self { guest, shared } = self;
        guest.say_what_has_no_effect(&shared);
        let shared = Arc::new(shared);
        let code = guest.code();
        let answer = |service: Calls| -> Result<Arc<Calls>, Refusal> {
            let (service, live) = (Arc::new(service), Live { shared: Arc::clone(&shared) });
            if let Some(listener) = calls {
                serve(OwnedFd::from(listener).into(), live, Arc::clone(&service))
                    .map_err(|error| Refusal::Host(format!("cannot answer questions to the guest: {error}")))?;
            }
            Ok(service)
        };
        match guest {
            LinkedGuest::Module(module) => {
                answer(Calls::of_fresh(code, &shared))?;
                module.instantiate(shared).map(|command| Prepared::Command(Box::new(command)))
            }
            LinkedGuest::Component(component) => {
                answer(Calls::of_fresh(code, &shared))?;
                component.instantiate(shared).map(|command| Prepared::Command(Box::new(command)))
            }
            LinkedGuest::Server(server) => {
                answer(Calls::of_fresh(code, &shared))?;
                server.prepare(shared).map(|server| Prepared::Server(Box::new(server)))
            }
            LinkedGuest::Reactor(reactor) => {
                let (service, jobs) = Calls::of_live(code, &shared);
                reactor.instantiate(answer(service)?, jobs).map(|reactor| Prepared::Reactor(Box::new(reactor)))
            }
        }
    }
}

impl Prepared {
    /// Runs the guest to its end, and returns its exit code.
    pub(crate) fn run(self) -> i32 {
        match self {
            Self::Command(command) => command.run(),
            Self::Server(server) => server.run(),
            Self::Reactor(reactor) => reactor.run(),
        }
    }
}
