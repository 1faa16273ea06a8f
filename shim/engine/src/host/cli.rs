//! `wasi:cli`: arguments, environment, working directory, standard streams, and the guest's exit.

use std::sync::Arc;

use skiff_protocol::EnginePlan;
use skiff_protocol::interfaces::{WASI_0_2, WASI_0_3, Wasi};
use wasmtime::component::Linker;
use wasmtime::{Engine, Error, Result, Store, StoreContextMut, WasmBacktrace};
use wasmtime_wasi::cli::{WasiCli, WasiCliView, stdin};
use wasmtime_wasi::{I32Exit, WasiCtxBuilder, p2, p3};

use super::add::Add;
use crate::role::Role;
use crate::stdio::output::Output;
use crate::stdio::server_output::ServerOutput;
use crate::stdio::stdin::block;
use crate::stdio::streams::Streams;
use crate::stdio::tail::Tail;
use crate::stdio::target::Target;
use crate::stdio::terminal_input::TerminalInput;
use crate::store::State;

/// The interfaces of 0.2.
pub(crate) const P2: &[Add] = &[
    |linker| p2::bindings::cli::environment::add_to_linker::<_, WasiCli>(linker, State::cli),
    |linker| add_exit(linker, &WASI_0_2),
    |linker| p2::bindings::cli::stderr::add_to_linker::<_, WasiCli>(linker, State::cli),
    |linker| p2::bindings::cli::stdin::add_to_linker::<_, WasiCli>(linker, State::cli),
    |linker| p2::bindings::cli::stdout::add_to_linker::<_, WasiCli>(linker, State::cli),
    |linker| p2::bindings::cli::terminal_input::add_to_linker::<_, WasiCli>(linker, State::cli),
    |linker| p2::bindings::cli::terminal_output::add_to_linker::<_, WasiCli>(linker, State::cli),
    |linker| p2::bindings::cli::terminal_stderr::add_to_linker::<_, WasiCli>(linker, State::cli),
    |linker| p2::bindings::cli::terminal_stdin::add_to_linker::<_, WasiCli>(linker, State::cli),
    |linker| p2::bindings::cli::terminal_stdout::add_to_linker::<_, WasiCli>(linker, State::cli),
];

/// The interfaces of 0.3. Its `types` has no functions: nothing of it is linked.
pub(crate) const P3: &[Add] = &[
    |linker| p3::bindings::cli::environment::add_to_linker::<_, WasiCli>(linker, State::cli),
    |linker| add_exit(linker, &WASI_0_3),
    |linker| p3::bindings::cli::stderr::add_to_linker::<_, WasiCli>(linker, State::cli),
    |linker| p3::bindings::cli::stdin::add_to_linker::<_, WasiCli>(linker, State::cli),
    |linker| p3::bindings::cli::stdout::add_to_linker::<_, WasiCli>(linker, State::cli),
    |linker| p3::bindings::cli::terminal_input::add_to_linker::<_, WasiCli>(linker, State::cli),
    |linker| p3::bindings::cli::terminal_output::add_to_linker::<_, WasiCli>(linker, State::cli),
    |linker| p3::bindings::cli::terminal_stderr::add_to_linker::<_, WasiCli>(linker, State::cli),
    |linker| p3::bindings::cli::terminal_stdin::add_to_linker::<_, WasiCli>(linker, State::cli),
    |linker| p3::bindings::cli::terminal_stdout::add_to_linker::<_, WasiCli>(linker, State::cli),
];

/// Defines how a guest ends itself.
fn add_exit(linker: &mut Linker<State>, wasi: &Wasi) -> Result<()> {
    let mut interface = linker.instance(&format!("wasi:cli/exit@{}", wasi.release))?;
    interface.func_wrap("exit", |store: StoreContextMut<'_, State>, (status,): (Result<(), ()>,)| -> Result<()> {
        Err(exit(i32::from(status.is_err()), store.engine()))
    })?;
    interface.func_wrap("exit-with-code", |store: StoreContextMut<'_, State>, (code,): (u8,)| -> Result<()> {
        Err(exit(code.into(), store.engine()))
    })
}

/// The end of a guest that ends itself. Its backtrace is an empty one, or wasmtime would make one, which nobody sees and for which it
/// reads the debug information.
pub(super) fn exit(code: i32, engine: &Engine) -> Error {
    let nothing_runs = Store::new(engine, ());
    Error::from(I32Exit(code)).context(WasmBacktrace::capture(&nothing_runs))
}

/// Grants the arguments and the working directory of the plan, and `environment`.
pub(crate) fn grant(builder: &mut WasiCtxBuilder, plan: &EnginePlan, environment: &[(String, String)]) {
    builder.args(&plan.args).envs(environment).initial_cwd(&plan.cwd);
}

/// Grants the container's standard streams. The only instance of a guest has its stdin; one of many has none. What goes to stderr ends in
/// `tail`.
pub(crate) fn grant_streams(builder: &mut WasiCtxBuilder, role: Role, streams: &Arc<Streams>, tail: &Arc<Tail>) {
    match role {
        Role::Server => {}
        Role::Module | Role::Component | Role::Service => {
            let terminal = TerminalInput::find();
            // At a terminal input and output are one file. What never waits for its reader never waits for its writer either.
            if role.may_block() || terminal.is_none() {
                block();
            }
            match terminal {
                Some(terminal) => builder.stdin(terminal),
                None => builder.stdin(stdin()),
            };
        }
    }
    if role.may_block() {
        let output = |target| Output::new(target, role, streams, tail);
        builder.stdout(output(Target::Stdout)).stderr(output(Target::Stderr));
    } else {
        let output = |target| ServerOutput::new(target, streams, tail);
        builder.stdout(output(Target::Stdout)).stderr(output(Target::Stderr));
    }
}
