//! Calls into a guest: what is called, and the exit code that comes of it.

use wasmtime::component::{Func as ComponentFunction, Val as ComponentValue};
use wasmtime::{Error, Func, Result, Store, Val};
use wasmtime_wasi::{p2, p3};

use crate::store::State;

/// What is called.
pub(super) enum Entry {
    /// A function of a core module, after the function that initializes the module.
    Module {
        /// Called first.
        initialize: Option<Func>,
        /// Called then.
        function: Func,
    },
    /// `wasi:cli/run` of 0.2.
    P2(p2::bindings::Command),
    /// `wasi:cli/run` of 0.3.
    P3(p3::bindings::Command),
    /// A function that a component exports.
    Function(ComponentFunction),
    /// Nothing any more: the guest ended while it was instantiated, in its start function.
    Ended(Error),
}

/// Calls the guest, and returns its exit code.
pub(super) async fn call(store: &mut Store<State>, entry: Entry) -> Result<i32> {
    match entry {
        Entry::Module { initialize, function } => {
            if let Some(initialize) = initialize {
                call_function(store, initialize).await?;
            }
            call_function(store, function).await?;
            Ok(0)
        }
        Entry::P2(command) => Ok(exit_code(command.wasi_cli_run().call_run(store).await?)),
        Entry::P3(command) => {
            let run = store.run_concurrent(async |store| command.wasi_cli_run().call_run(store).await);
            Ok(exit_code(run.await??))
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
        Some(ComponentValue::Result(result)) => exit_code(result.as_ref().map(|_| ()).map_err(|_| ())),
        _ => 0,
    })
}

fn exit_code(result: Result<(), ()>) -> i32 {
    i32::from(result.is_err())
}
