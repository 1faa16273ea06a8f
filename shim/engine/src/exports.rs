//! Questions about what a guest exports: whether it is a server, whether what is to be called can be called, and if not, why.

use skiff_protocol::interfaces::is_server;
use skiff_protocol::{EnginePlan, Refusal, other_target};
use wasmtime::component::Component;
use wasmtime::component::types::ComponentItem;
use wasmtime::{ExternType, Module};

/// The function of a core module that is called when the plan names none.
pub(crate) const START: &str = "_start";

/// How the interface begins that makes a component a command.
const RUN: &str = "wasi:cli/run@";
/// What initializes a core module that has no [`START`].
pub(crate) const INITIALIZE: &str = "_initialize";

/// Whether a component exports a handler of HTTP requests.
pub(crate) fn has_http_handler(component: &Component) -> bool {
    component.component_type().exports(component.engine()).any(|(name, _)| is_server(name))
}

/// Whether a component exports `wasi:cli/run` of any version.
pub(crate) fn exports_run(component: &Component) -> bool {
    component.component_type().exports(component.engine()).any(|(name, _)| name.starts_with(RUN))
}

/// Makes sure that a core module exports the function that will be called, and that it can be called.
///
/// # Errors
/// [`Refusal::Guest`] if not.
pub(crate) fn check_module(module: &Module, plan: &EnginePlan) -> Result<(), Refusal> {
    let name = plan.function.as_deref().unwrap_or(START);
    match module.get_export(name) {
        Some(ExternType::Func(ty)) => check_parameters(ty.params().len(), name, plan),
        Some(other) => Err(not_a_function(describe(&other), name, plan)),
        None if plan.function.is_none() => {
            let why = built_for(module).unwrap_or("it is neither a command nor a service, which exports functions");
            Err(refused(plan, &format!("exports no function `_start`: {why}")))
        }
        None => Err(no_function(name, plan)),
    }
}

/// What `module` was built for, if its imports show that it was not WASI.
pub(crate) fn built_for(module: &Module) -> Option<&'static str> {
    other_target(module.imports().map(|import| (import.module(), import.name())))
}

/// Makes sure that a component exports the function `name`, and that it can be called.
///
/// # Errors
/// [`Refusal::Guest`] if not.
pub(crate) fn check_component(component: &Component, name: &str, plan: &EnginePlan) -> Result<(), Refusal> {
    match component.get_export(None, name) {
        Some((ComponentItem::ComponentFunc(function), _)) => check_parameters(function.params().len(), name, plan),
        Some((other, _)) => Err(not_a_function(describe_item(&other), name, plan)),
        None => Err(no_function(name, plan)),
    }
}

/// The refusal of a guest that does not export the function `name`.
pub(crate) fn no_function(name: &str, plan: &EnginePlan) -> Refusal {
    refused(plan, &format!("exports no function `{name}`"))
}

/// The refusal of a component that exports nothing to run.
pub(crate) fn nothing_to_run(plan: &EnginePlan) -> Refusal {
    refused(
        plan,
        "is neither a command nor an HTTP server nor a service: it exports none of `wasi:cli/run`, \
         `wasi:http/incoming-handler` (0.2) and `wasi:http/handler` (0.3), and no function that could be called",
    )
}

fn check_parameters(count: usize, name: &str, plan: &EnginePlan) -> Result<(), Refusal> {
    match count {
        0 => Ok(()),
        _ => Err(refused(
            plan,
            &format!("exports the function `{name}`, which takes {count} parameters: skiff passes none"),
        )),
    }
}

fn not_a_function(what: &str, name: &str, plan: &EnginePlan) -> Refusal {
    refused(plan, &format!("exports `{name}`, but it is {what}, not a function"))
}

fn refused(plan: &EnginePlan, text: &str) -> Refusal {
    Refusal::Guest(format!("`{}` {text}", plan.module))
}

fn describe(ty: &ExternType) -> &'static str {
    match ty {
        ExternType::Func(_) => "a function",
        ExternType::Global(_) => "a global",
        ExternType::Table(_) => "a table",
        ExternType::Memory(_) => "a memory",
        ExternType::Tag(_) => "a tag",
    }
}

fn describe_item(item: &ComponentItem) -> &'static str {
    match item {
        ComponentItem::ComponentFunc(_) => "a function",
        ComponentItem::CoreFunc(_) => "a core function",
        ComponentItem::Module(_) => "a module",
        ComponentItem::Component(_) => "a component",
        ComponentItem::ComponentInstance(_) => "an instance",
        ComponentItem::Type(_) => "a type",
        ComponentItem::Resource(_) => "a resource",
    }
}
