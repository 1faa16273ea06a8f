//! Calls into a guest: what is called, and the exit code that comes of it.

use wasmtime::component::{Func as ComponentFunction, Val as ComponentValue};
use wasmtime::{Error, Func, Result, Store, Val};
use wasmtime_wasi::{p2, p3};

use super::text::{self, Wave};
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

/// What a call came to.
pub(super) struct Returned {
    pub(super) code: i32,
    /// The results of a function, each on a line.
    pub(super) text: String,
}

impl From<i32> for Returned {
    fn from(code: i32) -> Self {
        Self { code, text: String::new() }
    }
}

/// Calls the guest, and returns its exit code and results.
pub(super) async fn call(store: &mut Store<State>, entry: Entry) -> Result<Returned> {
    match entry {
        Entry::Module { initialize, function } => {
            if let Some(initialize) = initialize {
                call_function(store, initialize).await?;
            }
            let results = call_function(store, function).await?;
            Ok(Returned { code: 0, text: results.iter().map(|value| text::core(value) + "\n").collect() })
        }
        Entry::P2(command) => Ok(exit_code(command.wasi_cli_run().call_run(store).await?).into()),
        Entry::P3(command) => {
            let run = store.run_concurrent(async |store| command.wasi_cli_run().call_run(store).await);
            Ok(exit_code(run.await??).into())
        }
        Entry::Function(function) => call_component_function(store, function).await,
        Entry::Ended(error) => Err(error),
    }
}

async fn call_function(store: &mut Store<State>, function: Func) -> Result<Vec<Val>> {
    let mut results = vec![Val::I32(0); function.ty(&*store).results().len()];
    function.call_async(store, &[], &mut results).await?;
    Ok(results)
}

async fn call_component_function(store: &mut Store<State>, function: ComponentFunction) -> Result<Returned> {
    let mut results = vec![ComponentValue::Bool(false); function.ty(&*store).results().len()];
    function.call_async(store, &[], &mut results).await?;
    let mut returned = Returned::from(0);
    for value in &results {
        match value {
            // Success and failure are the exit code.
            ComponentValue::Result(Ok(None)) => {}
            ComponentValue::Result(Err(None)) => returned.code = 1,
            value => {
                returned.code = i32::from(matches!(value, ComponentValue::Result(Err(_))));
                returned.text = format!("{}\n", Wave(value));
            }
        }
    }
    Ok(returned)
}

fn exit_code(result: Result<(), ()>) -> i32 {
    i32::from(result.is_err())
}
