//! `wasi:cli`: arguments, environment, working directory, standard streams, and the guest's exit.

use std::sync::Arc;

use skiff_protocol::EnginePlan;
use wasmtime_wasi::cli::{WasiCli, WasiCliView, stdin};
use wasmtime_wasi::{WasiCtxBuilder, p2, p3};

use super::add::Add;
use crate::role::Role;
use crate::stdio::output::Output;
use crate::stdio::server_output::ServerOutput;
use crate::stdio::stdin::block;
use crate::stdio::streams::Streams;
use crate::stdio::target::Target;
use crate::store::State;

/// The interfaces of 0.2.
pub(crate) const P2: &[Add] = &[
    |linker| p2::bindings::cli::environment::add_to_linker::<_, WasiCli>(linker, State::cli),
    |linker| p2::bindings::cli::exit::add_to_linker::<_, WasiCli>(linker, State::cli),
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
    |linker| p3::bindings::cli::exit::add_to_linker::<_, WasiCli>(linker, State::cli),
    |linker| p3::bindings::cli::stderr::add_to_linker::<_, WasiCli>(linker, State::cli),
    |linker| p3::bindings::cli::stdin::add_to_linker::<_, WasiCli>(linker, State::cli),
    |linker| p3::bindings::cli::stdout::add_to_linker::<_, WasiCli>(linker, State::cli),
    |linker| p3::bindings::cli::terminal_input::add_to_linker::<_, WasiCli>(linker, State::cli),
    |linker| p3::bindings::cli::terminal_output::add_to_linker::<_, WasiCli>(linker, State::cli),
    |linker| p3::bindings::cli::terminal_stderr::add_to_linker::<_, WasiCli>(linker, State::cli),
    |linker| p3::bindings::cli::terminal_stdin::add_to_linker::<_, WasiCli>(linker, State::cli),
    |linker| p3::bindings::cli::terminal_stdout::add_to_linker::<_, WasiCli>(linker, State::cli),
];

/// Grants the arguments and the working directory of the plan, and `environment`.
pub(crate) fn grant(builder: &mut WasiCtxBuilder, plan: &EnginePlan, environment: &[(String, String)]) {
    builder.args(&plan.args).envs(environment).initial_cwd(&plan.cwd);
}

/// Grants the container's standard streams. A command has its stdin; the instances of a server have none.
pub(crate) fn grant_streams(builder: &mut WasiCtxBuilder, role: Role, streams: &Arc<Streams>) {
    match role {
        Role::Server => {
            builder
                .stdout(ServerOutput::new(Target::Stdout, streams))
                .stderr(ServerOutput::new(Target::Stderr, streams));
        }
        Role::Module | Role::Component => {
            block();
            builder.stdin(stdin()).stdout(Output::new(Target::Stdout, role, streams)).stderr(Output::new(
                Target::Stderr,
                role,
                streams,
            ));
        }
    }
}
