//! The rival of the benchmark: a minimal shim on `containerd-shim-wasm` and wasmtime, the way the field builds them today.
//!
//! It runs WASI 0.1 modules and WASI 0.2 commands with the whole root directory and the whole network, on wasmtime's
//! pooling allocator where the machine has the address space. A module that comes as a wasm layer is compiled through
//! the library's `Compiler` and kept in containerd's content store; a module that is a file is compiled at each start.

use std::future::Future;
use std::hash::{Hash, Hasher};

use anyhow::{Context, Result, anyhow, bail};
use containerd_shim_wasm::sandbox::Sandbox;
use containerd_shim_wasm::sandbox::context::{RuntimeContext, WasmLayer};
use containerd_shim_wasm::shim::{Cli, Compiler, Config, Shim, Version, version};
use wasmtime::component::{Component, ResourceTable};
use wasmtime::{Engine, InstanceAllocationStrategy, Module, PoolingAllocationConfig, Precompiled, Store};
use wasmtime_wasi::p2::bindings::Command;
use wasmtime_wasi::preview1::{self, WasiP1Ctx};
use wasmtime_wasi::{DirPerms, FilePerms, I32Exit, WasiCtx, WasiCtxBuilder, WasiCtxView, WasiView};

fn main() {
    BaselineShim::run(Config { default_log_level: "error".into(), ..Config::default() });
}

struct BaselineShim;

impl Shim for BaselineShim {
    type Sandbox = WasmtimeSandbox;

    fn name() -> &'static str {
        "baseline"
    }

    fn version() -> Version {
        version!()
    }

    async fn compiler() -> Option<impl Compiler> {
        Some(WasmtimeCompiler(new_engine().ok()?))
    }
}

struct WasmtimeCompiler(Engine);

impl Compiler for WasmtimeCompiler {
    fn cache_key(&self) -> impl Hash {
        let mut hasher = std::hash::DefaultHasher::new();
        self.0.precompile_compatibility_hash().hash(&mut hasher);
        hasher.finish()
    }

    async fn compile(&self, layers: &[WasmLayer]) -> Result<Vec<Option<Vec<u8>>>> {
        layers.iter().map(|layer| precompile(&self.0, &layer.layer)).collect()
    }
}

/// Nothing when the layer is no wasm, as the library wants it.
fn precompile(engine: &Engine, bytes: &[u8]) -> Result<Option<Vec<u8>>> {
    match kind(bytes) {
        Some(Kind::Module) => engine.precompile_module(bytes).map(Some),
        Some(Kind::Component) => engine.precompile_component(bytes).map(Some),
        None => Ok(None),
    }
}

#[derive(Default)]
struct WasmtimeSandbox;

impl Sandbox for WasmtimeSandbox {
    async fn run_wasi(&self, context: &impl RuntimeContext) -> Result<i32> {
        let engine = new_engine()?;
        let entrypoint = context.entrypoint();
        let bytes = entrypoint.source.as_bytes()?;
        match load(&engine, &bytes, entrypoint.source.is_precompiled()?)? {
            Program::Module(module) => exit_code(run_module(&engine, &module, &entrypoint.func, context).await),
            Program::Component(component) => exit_code(run_component(&engine, &component, context).await),
        }
    }
}

enum Program {
    Module(Module),
    Component(Component),
}

fn load(engine: &Engine, bytes: &[u8], precompiled: bool) -> Result<Program> {
    if precompiled {
        return load_precompiled(engine, bytes);
    }
    match kind(bytes) {
        Some(Kind::Module) => Module::from_binary(engine, bytes).map(Program::Module),
        Some(Kind::Component) => Component::from_binary(engine, bytes).map(Program::Component),
        None => bail!("the entrypoint is not wasm"),
    }
}

fn load_precompiled(engine: &Engine, bytes: &[u8]) -> Result<Program> {
    match Engine::detect_precompiled(bytes) {
        // SAFETY: the library says that the bytes are what this shim compiled and kept in the content store.
        Some(Precompiled::Module) => unsafe { Module::deserialize(engine, bytes) }.map(Program::Module),
        // SAFETY: as above.
        Some(Precompiled::Component) => unsafe { Component::deserialize(engine, bytes) }.map(Program::Component),
        None => bail!("the precompiled layer is not compiled code"),
    }
}

async fn run_module(engine: &Engine, module: &Module, function: &str, context: &impl RuntimeContext) -> Result<()> {
    let mut linker = wasmtime::Linker::<WasiP1Ctx>::new(engine);
    preview1::add_to_linker_async(&mut linker, |wasi| wasi)?;
    let mut store = Store::new(engine, wasi(context)?.build_p1());
    let instance = linker.instantiate_async(&mut store, module).await?;
    let start = instance.get_func(&mut store, function).with_context(|| format!("the module has no `{function}`"))?;
    start.call_async(&mut store, &[], &mut []).await
}

fn run_component(
    engine: &Engine,
    component: &Component,
    context: &impl RuntimeContext,
) -> impl Future<Output = Result<()>> {
    let builder = wasi(context);
    async move {
        let mut linker = wasmtime::component::Linker::<Host>::new(engine);
        wasmtime_wasi::p2::add_to_linker_async(&mut linker)?;
        let mut store = Store::new(engine, Host { wasi: builder?.build(), table: ResourceTable::default() });
        let command = Command::instantiate_async(&mut store, component, &linker).await?;
        let result = command.wasi_cli_run().call_run(&mut store).await?;
        result.map_err(|()| anyhow!("the component's `run` returned an error"))
    }
}

struct Host {
    wasi: WasiCtx,
    table: ResourceTable,
}

impl WasiView for Host {
    fn ctx(&mut self) -> WasiCtxView<'_> {
        WasiCtxView { ctx: &mut self.wasi, table: &mut self.table }
    }
}

fn wasi(context: &impl RuntimeContext) -> Result<WasiCtxBuilder> {
    let mut builder = WasiCtxBuilder::new();
    let environment: Vec<_> = context.envs().iter().map(|entry| entry.split_once('=').unwrap_or((entry, ""))).collect();
    builder
        .args(context.args())
        .envs(&environment)
        .inherit_stdio()
        .inherit_network()
        .allow_ip_name_lookup(true)
        .preopened_dir("/", "/", DirPerms::all(), FilePerms::all())?;
    Ok(builder)
}

fn exit_code(result: Result<()>) -> Result<i32> {
    match result {
        Ok(()) => Ok(0),
        Err(error) => error.downcast::<I32Exit>().map(|exit| exit.0),
    }
}

fn new_engine() -> Result<Engine> {
    let mut config = wasmtime::Config::new();
    config.async_support(true).wasm_component_model(true);
    if has_room_for_a_pool() {
        config.allocation_strategy(InstanceAllocationStrategy::Pooling(PoolingAllocationConfig::default()));
    }
    Engine::new(&config)
}

/// The pool of wasmtime reserves terabytes of address space: a trial engine says whether the machine has them.
fn has_room_for_a_pool() -> bool {
    let mut config = wasmtime::Config::new();
    config.allocation_strategy(InstanceAllocationStrategy::Pooling(PoolingAllocationConfig::default()));
    Engine::new(&config).is_ok()
}

enum Kind {
    Module,
    Component,
}

/// The first eight bytes: the magic number, then version and layer.
fn kind(bytes: &[u8]) -> Option<Kind> {
    match bytes.get(..8)? {
        [0, b'a', b's', b'm', _, _, 0, 0] => Some(Kind::Module),
        [0, b'a', b's', b'm', _, _, 1, 0] => Some(Kind::Component),
        _ => None,
    }
}
