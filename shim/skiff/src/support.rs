//! Whether skiff's engine runs a guest: which of its imports the engine provides, and whether there is something to run.

use skiff_protocol::interfaces::{PREVIEWS, VERSIONS};
use skiff_protocol::other_target;

use crate::guest::{Entry, Export, Guest, Import};
use crate::preamble::Kind;

/// The function of a core module that runs unless another is named.
const START: &str = "_start";

/// Why skiff does not run the guest, each reason in words; empty if it does. A service runs if there is something to call in it.
pub(crate) fn missing(guest: &Guest) -> Vec<String> {
    let callable = guest.entry() != Entry::Reactor || is_service(guest);
    let nothing = || match guest.kind {
        Kind::Module => format!("it exports neither `{START}` nor another function"),
        Kind::Component => "it is neither a command nor an HTTP server, and exports no function".into(),
    };
    // Whoever built it for another host is helped by that reason alone.
    let nothing = (!callable && target(guest).is_none()).then(nothing);
    let start = guest.export(START).filter(|_| guest.kind == Kind::Module);
    let wrong = start.filter(|start| !can_be_called(start)).map(wrong_function);
    [target(guest).map(str::to_owned), nothing, wrong].into_iter().flatten().chain(unsupported(guest)).collect()
}

/// Why skiff does not run `function` of the guest, or its usual entry point; empty if it does.
pub(crate) fn missing_for(guest: &Guest, function: Option<&str>) -> Vec<String> {
    let reason = match function {
        Some(name) => match guest.export(name) {
            Some(export) if can_be_called(export) => None,
            Some(export) => Some(wrong_function(export)),
            None => Some(format!("it exports no function `{name}`")),
        },
        None => None,
    };
    let missing = missing(guest);
    reason.filter(|reason| !missing.contains(reason)).into_iter().chain(missing).collect()
}

/// Whether the guest is a service: nothing in it runs by itself, but there is something to call.
pub(crate) fn is_service(guest: &Guest) -> bool {
    let is_function = |export: &Export| export.parameters.is_some() && export.name != "_initialize";
    let has_functions = |export: &Export| export.kind == "interface" && !export.name.starts_with("wasi:");
    guest.entry() == Entry::Reactor && guest.exports.iter().any(|export| is_function(export) || has_functions(export))
}

/// A function of a service that can be named: one without parameters, and not the one that only prepares the others.
pub(crate) fn callable(guest: &Guest) -> Option<&Export> {
    guest.exports.iter().find(|export| can_be_called(export) && export.name != "_initialize")
}

fn can_be_called(export: &Export) -> bool {
    export.parameters == Some(0)
}

fn wrong_function(export: &Export) -> String {
    match export.parameters {
        Some(count) => format!("the function `{}` takes {count} parameters: skiff passes none", export.name),
        None => format!("`{}` is not a function: it is a {}", export.name, export.kind),
    }
}

/// What a core module was built for, if that is not WASI.
fn target(guest: &Guest) -> Option<&'static str> {
    other_target(guest.imports.iter().filter_map(|import| Some((import.module.as_deref()?, import.name.as_str()))))
}

fn unsupported(guest: &Guest) -> Vec<String> {
    let unknown = guest.imports.iter().filter(|import| !is_offered(import, guest.kind));
    let mut missing: Vec<String> = unknown.map(|import| format!("unknown import `{}`", full_name(import))).collect();
    if guest.memories.iter().any(|memory| memory.shared) {
        missing.push("shared memory is off".into());
    }
    missing
}

/// The name of an import in messages.
pub(crate) fn full_name(import: &Import) -> String {
    match &import.module {
        Some(module) => format!("{module}::{}", import.name),
        None => import.name.clone(),
    }
}

fn is_offered(import: &Import, kind: Kind) -> bool {
    match (kind, import.kind) {
        (Kind::Module, "function") => {
            let module = import.module.as_deref();
            PREVIEWS.iter().any(|preview| Some(preview.module) == module && preview.offers(&import.name))
        }
        (Kind::Component, "interface") => VERSIONS.iter().any(|wasi| wasi.offers(&import.name)),
        // Types have names but are not linked.
        (Kind::Component, "type") => true,
        _ => false,
    }
}

/// The version of WASI that an import or export belongs to.
pub(crate) fn wasi_version(module: Option<&str>, name: &str) -> Option<String> {
    match module {
        Some(module) => PREVIEWS.iter().find(|preview| preview.module == module).map(|preview| preview.version.into()),
        None => name.strip_prefix("wasi:").and_then(|name| name.split_once('@')).map(|(_, version)| version.into()),
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use skiff_protocol::interfaces::{WASI_0_2, WASI_0_3, Wasi};

    use super::*;

    /// The names of the interfaces of a package, as a cell of a table.
    fn cell(wasi: &Wasi, package: &str) -> String {
        let of_package = |name: &&str| name.strip_prefix(package)?.strip_prefix('/').map(|name| format!("`{name}`"));
        let names: Vec<String> = wasi.interfaces.iter().filter_map(of_package).collect();
        if names.is_empty() { "none".into() } else { names.join(", ") }
    }

    #[test]
    fn the_document_lists_the_interfaces() {
        let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../../docs/wasm-features.md");
        let document = std::fs::read_to_string(path).unwrap();
        let section = document.split("### Interfaces").nth(1).unwrap().split("## ").next().unwrap();
        let found: Vec<&str> = section.lines().filter(|line| line.starts_with("| `wasi:")).collect();
        let names = VERSIONS.iter().flat_map(|wasi| wasi.interfaces);
        let packages: BTreeSet<&str> = names.filter_map(|name| name.split('/').next()).collect();
        let row =
            |package: &&str| format!("| `{package}` | {} | {} |", cell(&WASI_0_2, package), cell(&WASI_0_3, package));
        assert_eq!(found, packages.iter().map(row).collect::<Vec<_>>());
        let releases = format!("up to {} and {}", WASI_0_2.release, WASI_0_3.release);
        assert!(section.contains(&releases), "docs/wasm-features.md does not say `{releases}`");
    }

    fn check(text: &str, expected: &[&str]) {
        let guest = Guest::read(&wat::parse_str(text).unwrap(), "a").unwrap();
        assert_eq!(missing(&guest), expected, "{text}");
    }

    /// A module with these fields and something to run.
    fn command(fields: &str) -> String {
        format!(r#"(module {fields} (func (export "_start")))"#)
    }

    #[test]
    fn what_the_engine_lacks_is_named() {
        check(&command(r#"(import "wasi_snapshot_preview1" "sched_yield" (func (result i32)))"#), &[]);
        check(&command(r#"(import "env" "log" (func))"#), &["unknown import `env::log`"]);
        check(
            &command(r#"(import "wasi_snapshot_preview1" "fd_fly" (func))"#),
            &["unknown import `wasi_snapshot_preview1::fd_fly`"],
        );
        for (import, expected) in [
            ("wasi:cli/stdout@0.2.3", &[][..]),
            ("wasi:http/client@0.3.0", &[]),
            ("wasi:http/outgoing-handler@0.3.0", &["unknown import `wasi:http/outgoing-handler@0.3.0`"]),
            ("wasi:keyvalue/store@0.2.0", &["unknown import `wasi:keyvalue/store@0.2.0`"]),
        ] {
            let exports = r#"(instance $run) (export "wasi:cli/run@0.2.3" (instance $run))"#;
            check(&format!(r#"(component (import "{import}" (instance)) {exports})"#), expected);
        }
        check(&command("(memory 1 2 shared)"), &["shared memory is off"]);
    }

    const NOTHING: &str = "it is neither a command nor an HTTP server, and exports no function";
    /// A component that exports a function with these parameters.
    fn exporting(parameters: &str, core: &str) -> String {
        format!(
            r#"(component
                (core module $m (func (export "f") {core}))
                (core instance $i (instantiate $m))
                (func (export "f") {parameters} (canon lift (core func $i "f"))))"#
        )
    }

    #[test]
    fn a_guest_with_nothing_to_run_does_not_run() {
        check("(module)", &["it exports neither `_start` nor another function"]);
        check(
            r#"(module (func (export "_initialize")) (memory (export "memory") 1))"#,
            &["it exports neither `_start` nor another function"],
        );
        check(r#"(module (func (export "f")))"#, &[]);
        check(r#"(module (memory (export "_start") 1))"#, &["`_start` is not a function: it is a memory"]);
        check(
            r#"(module (func (export "_start") (param i32)))"#,
            &["the function `_start` takes 1 parameters: skiff passes none"],
        );
        check("(component)", &[NOTHING]);
        check(&exporting(r#"(param "a" u32) (param "b" u32)"#, "(param i32 i32)"), &[]);
        check(&exporting("", ""), &[]);
    }

    #[test]
    fn a_module_for_another_host_is_named_with_its_host() {
        let found = |text: &str| missing(&Guest::read(&wat::parse_str(text).unwrap(), "a").unwrap());
        let threads = found(
            r#"(module (import "env" "memory" (memory 1 2 shared))
                (import "wasi" "thread-spawn" (func (param i32) (result i32))) (func (export "_start")))"#,
        );
        assert!(threads[0].starts_with("it was built with threads"), "{threads:?}");
        assert_eq!(
            threads[1..],
            ["unknown import `env::memory`", "unknown import `wasi::thread-spawn`", "shared memory is off"]
        );
        let browser = found(r#"(module (import "gojs" "runtime.wasmExit" (func (param i32))))"#);
        assert!(browser[0].starts_with("it was built for a browser"), "{browser:?}");
        assert_eq!(browser[1..], ["unknown import `gojs::runtime.wasmExit`"]);
    }

    #[test]
    fn a_named_function_must_be_one_that_can_be_called() {
        let found =
            |text: &str, function| missing_for(&Guest::read(&wat::parse_str(text).unwrap(), "a").unwrap(), function);
        let library = r#"(module (func (export "f")) (func (export "g") (param i32)) (memory (export "m") 1))"#;
        assert_eq!(found(library, Some("f")), [""; 0]);
        assert_eq!(found(library, Some("g")), ["the function `g` takes 1 parameters: skiff passes none"]);
        assert_eq!(found(library, Some("m")), ["`m` is not a function: it is a memory"]);
        assert_eq!(found(library, Some("h")), ["it exports no function `h`"]);
        assert_eq!(found(library, None), [""; 0]);
        assert_eq!(found(&command(""), None), [""; 0]);
        assert_eq!(found(&command(""), Some("_start")), [""; 0]);
        assert_eq!(found("(component)", None), [NOTHING]);
    }

    #[test]
    fn names_tell_the_version_of_wasi() {
        let check = |module, name, expected: Option<&str>| {
            assert_eq!(wasi_version(module, name).as_deref(), expected, "{module:?} {name}");
        };
        check(Some("wasi_snapshot_preview1"), "fd_write", Some("0.1"));
        check(Some("wasi_unstable"), "fd_write", Some("0.0"));
        check(Some("env"), "wasi:a/b@1.0.0", None);
        check(None, "wasi:cli/run@0.2.3", Some("0.2.3"));
        check(None, "my:own/run@0.2.3", None);
    }
}
