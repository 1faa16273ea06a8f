//! Maps compiled code, finds out what kind of guest it is, and links it.

use std::fs::File;
use std::os::fd::AsRawFd;

use skiff_protocol::{Account, EnginePlan, Limits, Refusal};
use wasmtime::component::types::ComponentItem;
use wasmtime::component::{Component, InstancePre};
use wasmtime::{Config, Engine, Module, Precompiled};
use wasmtime_wasi_http::handler::ProxyPre;

use crate::command::{LinkedComponent, LinkedModule};
use crate::control::name_process;
use crate::http::LinkedServer;
use crate::stdio::Writer;
use crate::store::State;
use crate::wasi::Context;
use crate::{Linked, http, linker, report};

/// What host functions get of a call's stack, beyond the guest's part.
const HOST_STACK_BYTES: usize = 3 << 19;

/// Mapped code.
pub(crate) enum Guest {
    /// A core module.
    Module(Module),
    /// A component.
    Component(Component),
}

/// A guest whose code is mapped, as often as it will ever be, and whose container is known.
pub(crate) struct Loaded {
    guest: Guest,
    is_server: bool,
    context: Context,
}

impl Loaded {
    /// Maps what a message holds. Afterwards its files are not needed any more: of the code's file wasmtime keeps a descriptor
    /// of its own, from which it maps the first contents of memories, copied when written to.
    ///
    /// # Errors
    /// [`Refusal::Incompatible`] when the code is not of this engine, [`Refusal::Host`] when the engine itself fails.
    pub(crate) fn of(plan: EnginePlan, code: &File, account: &File, memory_limits: Vec<File>) -> Result<Self, Refusal> {
        let account = Account::keep_in(account)
            .map_err(|error| Refusal::Host(format!("cannot keep the account of the guest's memory: {error}")))?;
        let engine = config(&plan.limits).and_then(|config| Engine::new(&config)).map_err(|error| of_engine(&error))?;
        let guest = load(&engine, code)?;
        name_process(plan.module.rsplit('/').next().unwrap_or_default());
        let context = Context::new(plan, memory_limits, account);
        let is_server = match &guest {
            Guest::Component(component) => context.plan.function.is_none() && exports_http_handler(component),
            Guest::Module(_) => false,
        };
        let guest = match guest {
            Guest::Component(component) if is_server => {
                Guest::Component(http::pooled(&component, code, &context).unwrap_or(component))
            }
            other => other,
        };
        Ok(Self { guest, is_server, context })
    }

    /// Links the guest as what its exports say it is: a command, a library or an HTTP server. Runs nothing of it.
    ///
    /// # Errors
    /// [`Refusal::Guest`] when it is none of these, imports what skiff has not, or would see a kernel file system;
    /// [`Refusal::Host`] when a directory of its plan cannot be opened.
    pub(crate) fn link(self) -> Result<Linked, Refusal> {
        let Self { guest, is_server, mut context } = self;
        let writer = match &guest {
            Guest::Module(_) => Writer::Module,
            Guest::Component(_) if is_server => Writer::Server,
            Guest::Component(_) => Writer::Component,
        };
        context.open_directories(writer)?;
        match guest {
            Guest::Module(module) => LinkedModule::new(&module, context).map(|linked| Linked::Module(Box::new(linked))),
            Guest::Component(component) if is_server => {
                let handler = http_handler(&linked(&component, &context)?, &context)?;
                let linked = LinkedServer::new(component.engine(), handler, context);
                linked.map(|linked| Linked::Server(Box::new(linked)))
            }
            Guest::Component(component) => {
                let linked = LinkedComponent::new(linked(&component, &context)?, context);
                linked.map(|linked| Linked::Component(Box::new(linked)))
            }
        }
    }
}

/// The configuration of the engine for a guest with these limits.
///
/// # Errors
/// Those of [`skiff_engine_config::engine_config`].
pub(crate) fn config(limits: &Limits) -> wasmtime::Result<Config> {
    let mut config = skiff_engine_config::engine_config()?;
    config.max_wasm_stack(limits.stack_bytes).async_stack_size(limits.stack_bytes.saturating_add(HOST_STACK_BYTES));
    Ok(config)
}

/// Maps `code` into this process. Its pages are the file's own, shared by all containers that run it.
///
/// # Errors
/// [`Refusal::Incompatible`] when the code is not of this engine: it has to be compiled again.
pub(crate) fn load(engine: &Engine, code: &File) -> Result<Guest, Refusal> {
    // wasmtime maps a component by its path only. The descriptor's path works whatever became of the file's own name.
    let path = format!("/proc/self/fd/{}", code.as_raw_fd());
    let kind = Engine::detect_precompiled_file(&path).map_err(|error| incompatible(&error))?;
    let loaded = match kind {
        Some(Precompiled::Module) => {
            // SAFETY: the shim hands over what skiff's own compiler wrote into root's cache, never what came from an
            // image, and nobody writes to a file of the cache.
            unsafe { Module::deserialize_file(engine, &path) }.map(Guest::Module)
        }
        Some(Precompiled::Component) => {
            // SAFETY: as above.
            unsafe { Component::deserialize_file(engine, &path) }.map(Guest::Component)
        }
        None => return Err(Refusal::Incompatible("this is not compiled code".to_owned())),
    };
    loaded.map_err(|error| incompatible(&error))
}

fn incompatible(error: &wasmtime::Error) -> Refusal {
    Refusal::Incompatible(format!("the compiled code is not of this engine: {}", report::sentence(error)))
}

fn linked(component: &Component, context: &Context) -> Result<InstancePre<State>, Refusal> {
    let linker = linker::of_component(component).map_err(|error| of_engine(&error))?;
    linker.instantiate_pre(component).map_err(|error| cannot_link(&error, context))
}

fn cannot_link(error: &wasmtime::Error, context: &Context) -> Refusal {
    Refusal::Guest(format!("cannot link `{}`: {}", context.plan.module, report::sentence(error)))
}

fn exports_http_handler(component: &Component) -> bool {
    let ty = component.component_type();
    ty.exports(component.engine()).any(|(name, _)| {
        name.starts_with("wasi:http/incoming-handler@0.2.") || name.starts_with("wasi:http/handler@0.3.")
    })
}

fn http_handler(pre: &InstancePre<State>, context: &Context) -> Result<ProxyPre<State>, Refusal> {
    if let Ok(service) = wasmtime_wasi_http::p3::bindings::ServicePre::new(pre.clone()) {
        return Ok(ProxyPre::P3(service));
    }
    let proxy = wasmtime_wasi_http::p2::bindings::ProxyPre::new(pre.clone());
    proxy.map(ProxyPre::P2).map_err(|error| cannot_link(&error, context))
}

/// A failure that no guest and no container can bring about.
pub(crate) fn of_engine(error: &wasmtime::Error) -> Refusal {
    Refusal::Host(format!("the engine failed: {}", report::sentence(error)))
}

/// What the export `name` of a component is, in words; `None` when there is no such export.
pub(crate) fn describe_export(component: &Component, name: &str) -> Option<&'static str> {
    let item = component.get_export(None, name)?.0;
    Some(match item {
        ComponentItem::ComponentFunc(_) => "a function",
        ComponentItem::CoreFunc(_) => "a core function",
        ComponentItem::Module(_) => "a module",
        ComponentItem::Component(_) => "a component",
        ComponentItem::ComponentInstance(_) => "an instance",
        ComponentItem::Type(_) => "a type",
        ComponentItem::Resource(_) => "a resource",
    })
}

/// How many parameters the function `name` of a component has; 0 when there is no such function.
pub(crate) fn parameters(component: &Component, name: &str) -> usize {
    match component.get_export(None, name) {
        Some((ComponentItem::ComponentFunc(function), _)) => function.params().len(),
        _ => 0,
    }
}
