//! Which of a guest's imports skiff's engine provides.

use skiff_protocol::interfaces::{PREVIEWS, VERSIONS};

use crate::guest::{Guest, Import};
use crate::preamble::Kind;

/// What the guest needs and the engine does not provide, each in words; empty if skiff can run the guest.
pub(super) fn missing(guest: &Guest) -> Vec<String> {
    let unknown = guest.imports.iter().filter(|import| !is_offered(import, guest.kind));
    let mut missing: Vec<String> = unknown.map(|import| format!("unknown import `{}`", full_name(import))).collect();
    if guest.memories.iter().any(|memory| memory.shared) {
        missing.push("shared memory is off".into());
    }
    missing
}

/// The name of an import in messages.
pub(super) fn full_name(import: &Import) -> String {
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
pub(super) fn wasi_version(module: Option<&str>, name: &str) -> Option<String> {
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

    #[test]
    fn what_the_engine_lacks_is_named() {
        check(r#"(module (import "wasi_snapshot_preview1" "sched_yield" (func (result i32))))"#, &[]);
        check(r#"(module (import "env" "log" (func)))"#, &["unknown import `env::log`"]);
        check(
            r#"(module (import "wasi_snapshot_preview1" "fd_fly" (func)))"#,
            &["unknown import `wasi_snapshot_preview1::fd_fly`"],
        );
        check(r#"(component (import "wasi:cli/stdout@0.2.3" (instance)))"#, &[]);
        check(r#"(component (import "wasi:http/client@0.3.0" (instance)))"#, &[]);
        check(
            r#"(component (import "wasi:http/outgoing-handler@0.3.0" (instance)))"#,
            &["unknown import `wasi:http/outgoing-handler@0.3.0`"],
        );
        check(
            r#"(component (import "wasi:keyvalue/store@0.2.0" (instance)))"#,
            &["unknown import `wasi:keyvalue/store@0.2.0`"],
        );
        check("(module (memory 1 2 shared))", &["shared memory is off"]);
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
