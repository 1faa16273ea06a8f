//! Maps compiled code and finds out what kind of guest it is.

use std::fs::File;
use std::os::fd::AsRawFd;

use skiff_plan::{Limits, Refusal};
use wasmtime::component::types::ComponentItem;
use wasmtime::component::{Component, InstancePre, Linker};
use wasmtime::{Config, Engine, Module, Precompiled};
use wasmtime_wasi::{p2, p3};
use wasmtime_wasi_http::handler::ProxyPre;

use crate::command::Command;
use crate::http::Server;
use crate::store::State;
use crate::wasi::Context;
use crate::{Prepared, report};

/// What host functions get of a call's stack, beyond the guest's part.
const HOST_STACK_BYTES: usize = 3 << 19;

/// Mapped code.
pub(crate) enum Guest {
    /// A core module.
    Module(Module),
    /// A component.
    Component(Component),
}

/// The configuration of the engine for a guest with these limits.
///
/// # Errors
/// Those of [`skiff_config::engine_config`].
pub(crate) fn config(limits: &Limits) -> wasmtime::Result<Config> {
    let mut config = skiff_config::engine_config()?;
    config.max_wasm_stack(limits.stack_bytes).async_stack_size(limits.stack_bytes + HOST_STACK_BYTES);
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

/// Links a component and instantiates it as what its exports say: an HTTP server, a command or a library.
///
/// # Errors
/// [`Refusal::Guest`] when it is none of these or imports what skiff has not.
pub(crate) fn link(component: &Component, code: &File, context: Context) -> Result<Prepared, Refusal> {
    if context.plan.function.is_none() && exports_http_handler(component) {
        let component = Server::pooled(component, code, &context).unwrap_or_else(|| component.clone());
        let handler = http_handler(&linked(&component, &context)?, &context)?;
        return Server::new(component.engine(), handler, context).map(|server| Prepared::Server(Box::new(server)));
    }
    Command::of_component(&linked(component, &context)?, context).map(|command| Prepared::Command(Box::new(command)))
}

fn linked(component: &Component, context: &Context) -> Result<InstancePre<State>, Refusal> {
    let linker = component_linker(component).map_err(|error| of_engine(&error))?;
    linker.instantiate_pre(component).map_err(|error| cannot_link(&error, context))
}

fn cannot_link(error: &wasmtime::Error, context: &Context) -> Refusal {
    Refusal::Guest(format!("cannot link `{}`: {}", context.plan.module, report::sentence(error)))
}

/// Defines all interfaces of the WASI versions that `component` speaks: defining those of a version that it does not
/// would only take time.
fn component_linker(component: &Component) -> wasmtime::Result<Linker<State>> {
    let mut linker = Linker::new(component.engine());
    let names = names(component);
    let speaks =
        |package: &str, version: &str| names.iter().any(|name| name.starts_with(package) && name.contains(version));
    if speaks("wasi:", "@0.2") {
        p2::add_to_linker_async(&mut linker)?;
    }
    if speaks("wasi:http/", "@0.2") {
        wasmtime_wasi_http::p2::add_only_http_to_linker_async(&mut linker)?;
    }
    if speaks("wasi:", "@0.3") {
        p3::add_to_linker(&mut linker)?;
    }
    if speaks("wasi:http/", "@0.3") {
        wasmtime_wasi_http::p3::add_to_linker(&mut linker)?;
    }
    Ok(linker)
}

/// The names of what `component` imports and exports.
fn names(component: &Component) -> Vec<String> {
    let engine = component.engine();
    let ty = component.component_type();
    let imports = ty.imports(engine).map(|(name, _)| name.to_owned());
    imports.chain(ty.exports(engine).map(|(name, _)| name.to_owned())).collect()
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
