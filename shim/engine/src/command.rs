//! Guests that run once: core modules of WASI 0.1 and components of `wasi:cli`, or one function of either.

use std::io;
use std::sync::Arc;

use skiff_protocol::{EXIT_OOM, Refusal};
use tokio::runtime::{Builder, Runtime};
use wasmtime::component::{Func as ComponentFunction, InstancePre as ComponentPre, Val as ComponentValue};
use wasmtime::{
    Error, Extern, ExternType, Func, Instance, InstancePre as ModulePre, Linker, Module, Result, Store, Val,
};
use wasmtime_wasi::{I32Exit, p0, p1, p2, p3};

use crate::load::{describe_export, of_engine};
use crate::stdio::Writer;
use crate::store::{Budget, State};
use crate::wasi::Context;
use crate::{deadline, report, signals, stdio};

const WASI_0_1: &str = "wasi_snapshot_preview1";
const WASI_0_0: &str = "wasi_unstable";

/// A command that is instantiated and has not run.
pub(crate) struct Command {
    module: String,
    budget: Arc<Budget>,
    runtime: Runtime,
    store: Store<State>,
    entry: Entry,
}

/// What is called.
enum Entry {
    /// A function of a core module, and what initializes the module before.
    Module { initialize: Option<Func>, function: Func },
    /// `wasi:cli/run` of 0.2.
    P2(p2::bindings::Command),
    /// `wasi:cli/run` of 0.3.
    P3(p3::bindings::Command),
    /// A function that a component exports.
    Function(ComponentFunction),
    /// Nothing any more: the guest ended while it was instantiated, in its start function.
    Ended(Error),
}

/// A core module that is linked; nothing of it has run.
pub(crate) struct LinkedModule {
    pre: ModulePre<State>,
    runtime: Runtime,
    context: Context,
}

/// A component that is linked; nothing of it has run.
pub(crate) struct LinkedComponent {
    pre: ComponentPre<State>,
    kind: ComponentKind,
    runtime: Runtime,
    context: Context,
}

impl LinkedModule {
    /// Links a core module.
    ///
    /// # Errors
    /// [`Refusal::Guest`] for an import that skiff has not and for no function to run.
    pub(crate) fn new(module: &Module, context: Context) -> Result<Self, Refusal> {
        let linker = module_linker(module).map_err(|error| of_engine(&error))?;
        check_exports(module, &context)?;
        match linker.instantiate_pre(module) {
            Ok(pre) => Ok(Self { pre, runtime: runtime()?, context }),
            Err(error) => {
                let mut store = context.state(Writer::Module)?.into_store(module.engine());
                Err(cannot_link(&linker, &mut store, module, &error, &context))
            }
        }
    }

    /// What its instance will be given.
    pub(crate) fn context_mut(&mut self) -> &mut Context {
        &mut self.context
    }

    /// Instantiates it.
    ///
    /// # Errors
    /// [`Refusal::Guest`] for too much initial memory.
    pub(crate) fn instantiate(self) -> Result<Command, Refusal> {
        let Self { pre, runtime, context } = self;
        let mut store = prepare(pre.module().engine(), &context, Writer::Module)?;
        let entry = match runtime.block_on(pre.instantiate_async(&mut store)) {
            Ok(instance) => module_entry(&mut store, &instance, &context)?,
            Err(error) => ended_or_refused(&store, error, &context)?,
        };
        Ok(Command { module: context.plan.module, budget: context.budget, runtime, store, entry })
    }
}

impl LinkedComponent {
    /// Finds what of a component is called.
    ///
    /// # Errors
    /// [`Refusal::Guest`] when it exports nothing to run.
    pub(crate) fn new(pre: ComponentPre<State>, context: Context) -> Result<Self, Refusal> {
        let kind = ComponentKind::of(&pre, &context)?;
        Ok(Self { pre, kind, runtime: runtime()?, context })
    }

    /// What its instance will be given.
    pub(crate) fn context_mut(&mut self) -> &mut Context {
        &mut self.context
    }

    /// Instantiates it.
    ///
    /// # Errors
    /// [`Refusal::Guest`] for too much initial memory.
    pub(crate) fn instantiate(self) -> Result<Command, Refusal> {
        let Self { pre, kind, runtime, context } = self;
        let mut store = prepare(pre.engine(), &context, Writer::Component)?;
        let entry = match runtime.block_on(kind.instantiate(&pre, &mut store)) {
            Ok(entry) => entry,
            Err(error) => ended_or_refused(&store, error, &context)?,
        };
        Ok(Command { module: context.plan.module, budget: context.budget, runtime, store, entry })
    }
}

impl Command {
    /// Runs the guest to its end; answers the exit code.
    pub(crate) fn run(mut self) -> i32 {
        let result = self.runtime.block_on(call(&mut self.store, self.entry));
        let trapped = result.as_ref().is_err_and(|error| !error.is::<I32Exit>());
        let code = report::exit_code(&self.module, result);
        let gave_up = trapped || (code != 0 && stdio::said_out_of_memory());
        let code = match self.store.data().limiter.denied_just_now().filter(|_| gave_up) {
            Some(denied) => {
                report::line(&format!("{} ran out of memory: {denied}", self.module));
                self.budget.set_ran_out();
                EXIT_OOM
            }
            None => code,
        };
        // The process ends here: unmapping the guest and waiting for a thread that reads stdin would only take time.
        std::mem::forget(self.store);
        std::mem::forget(self.runtime);
        code
    }
}

/// The runtime of a command, which has no thread of its own. It is made before the wall: it makes sockets for itself.
fn runtime() -> Result<Runtime, Refusal> {
    Builder::new_current_thread().enable_all().build().map_err(|error| cannot_prepare(&error))
}

fn prepare(engine: &wasmtime::Engine, context: &Context, writer: Writer) -> Result<Store<State>, Refusal> {
    // Before Ready: from then on a signal has to find the guest's course.
    signals::grant_grace();
    if let Some(limit) = context.plan.limits.run_time {
        deadline::end_after(limit, &context.plan.module).map_err(|error| cannot_prepare(&error))?;
    }
    Ok(context.state(writer)?.into_store(engine))
}

fn cannot_prepare(error: &io::Error) -> Refusal {
    Refusal::Host(format!("cannot prepare to run the guest: {error}"))
}

/// Sorts a failed instantiation: a guest that ended in its own code has run; everything else is a refusal.
fn ended_or_refused(store: &Store<State>, error: Error, context: &Context) -> Result<Entry, Refusal> {
    match store.data().limiter.denied() {
        _ if report::is_of_guest(&error) => Ok(Entry::Ended(error)),
        Some(denied) => Err(context.too_big(denied)),
        None => Err(Refusal::Guest(format!("cannot start `{}`: {}", context.plan.module, report::sentence(&error)))),
    }
}

/// Defines the functions of the WASI versions that `module` imports from.
fn module_linker(module: &Module) -> Result<Linker<State>> {
    let mut linker = Linker::new(module.engine());
    linker.allow_shadowing(true);
    let imports_from = |name: &str| module.imports().any(|import| import.module() == name);
    if imports_from(WASI_0_1) {
        p1::add_to_linker_async(&mut linker, |state: &mut State| &mut state.wasi)?;
        linker.func_wrap(WASI_0_1, "proc_exit", proc_exit)?;
    }
    if imports_from(WASI_0_0) {
        p0::add_to_linker_async(&mut linker, |state: &mut State| &mut state.wasi)?;
        linker.func_wrap(WASI_0_0, "proc_exit", proc_exit)?;
    }
    Ok(linker)
}

/// wasmtime-wasi's own `proc_exit` refuses codes from 126 on.
fn proc_exit(code: i32) -> Result<()> {
    Err(I32Exit(code).into())
}

/// Says which imports are missing, or else what is wrong with one.
fn cannot_link(
    linker: &Linker<State>,
    store: &mut Store<State>,
    module: &Module,
    error: &Error,
    context: &Context,
) -> Refusal {
    let missing: Vec<String> = module
        .imports()
        .filter(|import| linker.get_by_import(&mut *store, import).is_none())
        .map(|import| format!("`{}::{}`", import.module(), import.name()))
        .collect();
    let fault = match missing.as_slice() {
        [] => report::sentence(error),
        [one] => format!("unknown import: {one} has not been defined"),
        many => format!("unknown imports: {} have not been defined", many.join(", ")),
    };
    Refusal::Guest(format!("cannot link `{}`: {fault}", context.plan.module))
}

/// Makes sure that what will be called is there and is a function that can be called.
fn check_exports(module: &Module, context: &Context) -> Result<(), Refusal> {
    let name = context.plan.function.as_deref().unwrap_or("_start");
    let refused = |text: String| Err(Refusal::Guest(format!("`{}` {text}", context.plan.module)));
    match module.get_export(name) {
        Some(ExternType::Func(ty)) if ty.params().len() == 0 => Ok(()),
        Some(ExternType::Func(ty)) => refused(format!(
            "exports the function `{name}`, which takes {} parameters: skiff has none",
            ty.params().len()
        )),
        Some(other) => refused(format!("exports `{name}`, but it is {}, not a function", describe(&other))),
        None if context.plan.function.is_none() => {
            refused("exports no function `_start`: it is a library, not a command".to_owned())
        }
        None => refused(format!("exports no function `{name}`")),
    }
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

fn module_entry(store: &mut Store<State>, instance: &Instance, context: &Context) -> Result<Entry, Refusal> {
    let name = context.plan.function.as_deref().unwrap_or("_start");
    let initialize = match context.plan.function.as_deref() {
        Some(function) if function != "_initialize" => {
            instance.get_export(&mut *store, "_initialize").and_then(Extern::into_func)
        }
        _ => None,
    };
    match instance.get_func(&mut *store, name) {
        Some(function) => Ok(Entry::Module { initialize, function }),
        None => Err(Refusal::Guest(format!("`{}` exports no function `{name}`", context.plan.module))),
    }
}

/// What of a component is called.
enum ComponentKind {
    P2(p2::bindings::CommandPre<State>),
    P3(p3::bindings::CommandPre<State>),
    Function(String),
}

impl ComponentKind {
    fn of(pre: &ComponentPre<State>, context: &Context) -> Result<Self, Refusal> {
        if let Some(name) = &context.plan.function {
            return check_component_export(pre, name, context).map(|()| Self::Function(name.clone()));
        }
        if let Ok(command) = p3::bindings::CommandPre::new(pre.clone()) {
            return Ok(Self::P3(command));
        }
        p2::bindings::CommandPre::new(pre.clone()).map(Self::P2).map_err(|_| {
            Refusal::Guest(format!(
                "`{}` is neither a command nor an HTTP server: it exports none of `wasi:cli/run`, \
                 `wasi:http/incoming-handler` (0.2) and `wasi:http/handler` (0.3)",
                context.plan.module
            ))
        })
    }

    async fn instantiate(self, pre: &ComponentPre<State>, store: &mut Store<State>) -> Result<Entry> {
        Ok(match self {
            Self::P2(command) => Entry::P2(command.instantiate_async(store).await?),
            Self::P3(command) => Entry::P3(command.instantiate_async(store).await?),
            Self::Function(name) => {
                let instance = pre.instantiate_async(&mut *store).await?;
                let function = instance.get_func(&mut *store, &name);
                Entry::Function(function.ok_or_else(|| Error::msg(format!("no function `{name}`")))?)
            }
        })
    }
}

fn check_component_export(pre: &ComponentPre<State>, name: &str, context: &Context) -> Result<(), Refusal> {
    let component = pre.component();
    let refused = |text: String| Err(Refusal::Guest(format!("`{}` {text}", context.plan.module)));
    match describe_export(component, name) {
        None => refused(format!("exports no function `{name}`")),
        Some("a function") => match crate::load::parameters(component, name) {
            0 => Ok(()),
            count => refused(format!("exports the function `{name}`, which takes {count} parameters: skiff has none")),
        },
        Some(other) => refused(format!("exports `{name}`, but it is {other}, not a function")),
    }
}

/// Calls the guest; answers its exit code.
async fn call(store: &mut Store<State>, entry: Entry) -> Result<i32> {
    match entry {
        Entry::Module { initialize, function } => {
            if let Some(initialize) = initialize {
                call_function(store, initialize).await?;
            }
            call_function(store, function).await?;
            Ok(0)
        }
        Entry::P2(command) => Ok(code_of(command.wasi_cli_run().call_run(store).await?)),
        Entry::P3(command) => {
            let run = store.run_concurrent(async |store| command.wasi_cli_run().call_run(store).await);
            Ok(code_of(run.await??))
        }
        Entry::Function(function) => call_component_function(store, function).await,
        Entry::Ended(error) => Err(error),
    }
}

async fn call_function(store: &mut Store<State>, function: Func) -> Result<()> {
    let mut results = vec![Val::I32(0); function.ty(&*store).results().len()];
    function.call_async(store, &[], &mut results).await
}

async fn call_component_function(store: &mut Store<State>, function: ComponentFunction) -> Result<i32> {
    let mut results = vec![ComponentValue::Bool(false); function.ty(&*store).results().len()];
    function.call_async(store, &[], &mut results).await?;
    Ok(match results.first() {
        Some(ComponentValue::Result(result)) => code_of(result.as_ref().map(|_| ()).map_err(|_| ())),
        _ => 0,
    })
}

fn code_of(result: Result<(), ()>) -> i32 {
    i32::from(result.is_err())
}
