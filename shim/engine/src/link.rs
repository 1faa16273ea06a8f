//! Linkers: which interfaces a guest gets, by what it imports. Defining those of a version that it does not use would only
//! take time.

use skiff_protocol::Refusal;
use skiff_protocol::interfaces::{PREVIEW_0, PREVIEW_1, WASI_0_2, WASI_0_3, Wasi};
use wasmtime::component::{self, Component};
use wasmtime::{InstancePre, Module, Result, Store};
use wasmtime_wasi_http::handler::ProxyPre;
use wasmtime_wasi_http::{p2, p3};

use crate::error::{cannot_link, engine_failed, sentence};
use crate::exports::built_for;
use crate::host::add::Add;
use crate::host::{cli, clocks, filesystem, http, io, names, preview, random, sockets};
use crate::role::Role;
use crate::shared::Shared;
use crate::store::State;

/// What a component of 0.2 gets, `wasi:http` aside.
const P2: &[&[Add]] = &[cli::P2, clocks::P2, filesystem::P2, io::P2, names::P2, random::P2, sockets::P2];
/// What a component of 0.3 gets, `wasi:http` aside.
const P3: &[&[Add]] = &[cli::P3, clocks::P3, filesystem::P3, names::P3, random::P3, sockets::P3];

/// Links a core module.
///
/// # Errors
/// [`Refusal::Guest`] if it imports something that skiff does not provide.
pub(crate) fn link_module(module: &Module, shared: &Shared) -> Result<InstancePre<State>, Refusal> {
    let linker = module_linker(module).map_err(|error| engine_failed(&error))?;
    linker.instantiate_pre(module).or_else(|error| {
        let mut store = shared.state(Role::Module)?.into_store(module.engine());
        Err(cannot_link(&shared.plan.module, &explain(&linker, &mut store, module, &error)))
    })
}

/// Links a component.
///
/// # Errors
/// [`Refusal::Guest`] if it imports something that skiff does not provide.
pub(crate) fn link_component(component: &Component, shared: &Shared) -> Result<component::InstancePre<State>, Refusal> {
    let linker = component_linker(component).map_err(|error| engine_failed(&error))?;
    linker.instantiate_pre(component).map_err(|error| cannot_link(&shared.plan.module, &sentence(&error)))
}

/// Links a component as an HTTP server.
///
/// # Errors
/// [`Refusal::Guest`] if it imports something that skiff does not provide, or its handler is not one.
pub(crate) fn link_server(component: &Component, shared: &Shared) -> Result<ProxyPre<State>, Refusal> {
    let pre = link_component(component, shared)?;
    if let Ok(service) = p3::bindings::ServicePre::new(pre.clone()) {
        return Ok(ProxyPre::P3(service));
    }
    let proxy = p2::bindings::ProxyPre::new(pre);
    proxy.map(ProxyPre::P2).map_err(|error| cannot_link(&shared.plan.module, &sentence(&error)))
}

/// Defines the functions of the WASI versions that `module` imports from.
fn module_linker(module: &Module) -> Result<wasmtime::Linker<State>> {
    let mut linker = wasmtime::Linker::new(module.engine());
    linker.allow_shadowing(true);
    let imports_from = |name: &str| module.imports().any(|import| import.module() == name);
    if imports_from(PREVIEW_1.module) {
        preview::add_1(&mut linker)?;
    }
    if imports_from(PREVIEW_0.module) {
        preview::add_0(&mut linker)?;
    }
    Ok(linker)
}

/// Says which imports are missing, after what the module was built for if they show it; or else what is wrong with one.
fn explain(
    linker: &wasmtime::Linker<State>,
    store: &mut Store<State>,
    module: &Module,
    error: &wasmtime::Error,
) -> String {
    let missing: Vec<String> = module
        .imports()
        .filter(|import| linker.get_by_import(&mut *store, import).is_none())
        .map(|import| format!("`{}::{}`", import.module(), import.name()))
        .collect();
    let unknown = match missing.as_slice() {
        [] => return sentence(error),
        [one] => format!("unknown import: {one} has not been defined"),
        many => format!("unknown imports: {} have not been defined", many.join(", ")),
    };
    built_for(module).map_or(unknown.clone(), |target| format!("{target}; {unknown}"))
}

/// Defines the interfaces of the WASI versions that `component` imports from or exports to.
fn component_linker(component: &Component) -> Result<component::Linker<State>> {
    let mut linker = component::Linker::new(component.engine());
    let ty = component.component_type();
    let imports = ty.imports(component.engine()).map(|(name, _)| name);
    let names: Vec<&str> = imports.chain(ty.exports(component.engine()).map(|(name, _)| name)).collect();
    add_spoken(&mut linker, &names, &WASI_0_2, P2, http::P2)?;
    add_spoken(&mut linker, &names, &WASI_0_3, P3, http::P3)?;
    Ok(linker)
}

/// Defines `basics` if one of `names` is of this version, and `http` if one is of its `wasi:http`.
fn add_spoken(
    linker: &mut component::Linker<State>,
    names: &[&str],
    wasi: &Wasi,
    basics: &[&[Add]],
    http: &[Add],
) -> Result<()> {
    let speaks = |package: &str| {
        names.iter().filter_map(|name| wasi.interface_of(name)).any(|interface| interface.starts_with(package))
    };
    if speaks("wasi:") {
        basics.iter().copied().flatten().try_for_each(|add| add(linker))?;
    }
    if speaks("wasi:http/") {
        http.iter().try_for_each(|add| add(linker))?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;
    use std::sync::Arc;

    use skiff_protocol::interfaces::{PREVIEW_FUNCTIONS, Preview};
    use skiff_protocol::{Account, EnginePlan};
    use wasmtime::Engine;

    use super::*;

    /// It has types only, which are named and not linked.
    const TYPES_ONLY: &str = "wasi:cli/types";

    /// Whether something of this name is defined.
    fn is_defined(linker: &component::Linker<State>, name: &str) -> bool {
        linker.clone().root().func_wrap(name, |_, (): ()| Ok(())).is_err()
    }

    fn check(wasi: &Wasi, groups: &[&[Add]]) {
        let engine = Engine::new(&skiff_engine_config::engine_config().unwrap()).unwrap();
        let mut found = BTreeSet::new();
        for add in groups.iter().copied().flatten() {
            let mut linker = component::Linker::new(&engine);
            add(&mut linker).unwrap();
            let name = |interface: &&&str| is_defined(&linker, &format!("{interface}@{}", wasi.release));
            let defined: Vec<&str> = wasi.interfaces.iter().filter(name).copied().collect();
            assert_eq!(defined.len(), 1, "each is one interface of the table: {defined:?}");
            assert!(found.insert(defined[0]), "{} is added twice", defined[0]);
        }
        let expected = wasi.interfaces.iter().copied().filter(|interface| *interface != TYPES_ONLY);
        assert_eq!(found, expected.collect(), "WASI {}", wasi.version);
    }

    #[test]
    fn components_get_the_interfaces_of_the_table() {
        check(&WASI_0_2, &[P2, &[http::P2]].concat());
        check(&WASI_0_3, &[P3, &[http::P3]].concat());
    }

    #[test]
    fn modules_get_the_functions_of_the_table() {
        let engine = Engine::new(&skiff_engine_config::engine_config().unwrap()).unwrap();
        let check = |preview: &Preview, add: fn(&mut wasmtime::Linker<State>) -> Result<()>| {
            let mut linker = wasmtime::Linker::new(&engine);
            linker.allow_shadowing(true);
            add(&mut linker).unwrap();
            let account = Account::keep_in(&Account::create().unwrap()).unwrap();
            let shared = Shared::new(EnginePlan::default(), Vec::new(), account, &Arc::default());
            let mut store = shared.state(Role::Module).unwrap().into_store(&engine);
            let defined: BTreeSet<String> = linker
                .iter(&mut store)
                .map(|(module, name, _)| {
                    assert_eq!(module, preview.module);
                    name.to_owned()
                })
                .collect();
            let expected = PREVIEW_FUNCTIONS.iter().chain(preview.more).map(|name| (*name).to_owned());
            assert_eq!(defined, expected.collect());
        };
        check(&PREVIEW_1, preview::add_1);
        check(&PREVIEW_0, preview::add_0);
    }
}
