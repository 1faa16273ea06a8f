//! The interfaces of WASI 0.2 and 0.3 that a component is given. They are added one by one, so that the look-ups of
//! wasmtime-wasi itself, which are glibc's, are not even part of the program.

use wasmtime::component::{Component, Linker};
use wasmtime_wasi::cli::{WasiCli, WasiCliView};
use wasmtime_wasi::filesystem::{WasiFilesystem, WasiFilesystemView};
use wasmtime_wasi::random::WasiRandom;
use wasmtime_wasi::sockets::{WasiSockets, WasiSocketsView};
use wasmtime_wasi::{WasiView, p2, p3};

use crate::names;
use crate::store::State;

/// Defines all interfaces of the WASI versions that `component` speaks: defining those of a version that it does not
/// would only take time.
///
/// # Errors
/// Never in practice: no interface is defined twice.
pub(crate) fn of_component(component: &Component) -> wasmtime::Result<Linker<State>> {
    let mut linker = Linker::new(component.engine());
    let names = interfaces(component);
    let speaks =
        |package: &str, version: &str| names.iter().any(|name| name.starts_with(package) && name.contains(version));
    if speaks("wasi:", "@0.2") {
        add_p2(&mut linker)?;
    }
    if speaks("wasi:http/", "@0.2") {
        wasmtime_wasi_http::p2::add_only_http_to_linker_async(&mut linker)?;
    }
    if speaks("wasi:", "@0.3") {
        add_p3(&mut linker)?;
    }
    if speaks("wasi:http/", "@0.3") {
        wasmtime_wasi_http::p3::add_to_linker(&mut linker)?;
    }
    Ok(linker)
}

/// The names of what `component` imports and exports.
fn interfaces(component: &Component) -> Vec<String> {
    let engine = component.engine();
    let ty = component.component_type();
    let imports = ty.imports(engine).map(|(name, _)| name.to_owned());
    imports.chain(ty.exports(engine).map(|(name, _)| name.to_owned())).collect()
}

/// The interfaces of `wasmtime_wasi::p2::add_to_linker_async`.
fn add_p2(linker: &mut Linker<State>) -> wasmtime::Result<()> {
    use p2::bindings::{cli, filesystem, random, sockets};

    p2::add_to_linker_proxy_interfaces_async(linker)?;
    random::insecure::add_to_linker::<_, WasiRandom>(linker, |state| state.ctx().ctx.random())?;
    random::insecure_seed::add_to_linker::<_, WasiRandom>(linker, |state| state.ctx().ctx.random())?;
    filesystem::preopens::add_to_linker::<_, WasiFilesystem>(linker, State::filesystem)?;
    filesystem::types::add_to_linker::<_, WasiFilesystem>(linker, State::filesystem)?;
    cli::exit::add_to_linker::<_, WasiCli>(linker, State::cli)?;
    cli::environment::add_to_linker::<_, WasiCli>(linker, State::cli)?;
    cli::terminal_input::add_to_linker::<_, WasiCli>(linker, State::cli)?;
    cli::terminal_output::add_to_linker::<_, WasiCli>(linker, State::cli)?;
    cli::terminal_stdin::add_to_linker::<_, WasiCli>(linker, State::cli)?;
    cli::terminal_stdout::add_to_linker::<_, WasiCli>(linker, State::cli)?;
    cli::terminal_stderr::add_to_linker::<_, WasiCli>(linker, State::cli)?;
    let options = sockets::network::LinkOptions::default();
    sockets::network::add_to_linker::<_, WasiSockets>(linker, &options, State::sockets)?;
    sockets::instance_network::add_to_linker::<_, WasiSockets>(linker, State::sockets)?;
    sockets::tcp::add_to_linker::<_, WasiSockets>(linker, State::sockets)?;
    sockets::tcp_create_socket::add_to_linker::<_, WasiSockets>(linker, State::sockets)?;
    sockets::udp::add_to_linker::<_, WasiSockets>(linker, State::sockets)?;
    sockets::udp_create_socket::add_to_linker::<_, WasiSockets>(linker, State::sockets)?;
    names::add_p2_to_linker(linker)
}

/// The interfaces of `wasmtime_wasi::p3::add_to_linker`.
fn add_p3(linker: &mut Linker<State>) -> wasmtime::Result<()> {
    p3::cli::add_to_linker(linker)?;
    p3::clocks::add_to_linker(linker)?;
    p3::filesystem::add_to_linker(linker)?;
    p3::random::add_to_linker(linker)?;
    p3::bindings::sockets::types::add_to_linker::<_, WasiSockets>(linker, State::sockets)?;
    names::add_p3_to_linker(linker)
}
