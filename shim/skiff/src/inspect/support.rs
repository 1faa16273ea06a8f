//! What skiff's engine gives to guests, by name.

use crate::guest::{Guest, Import};
use crate::preamble::Kind;

/// The functions of WASI 0.1, for modules.
const PREVIEW1: &[&str] = &[
    "args_get",
    "args_sizes_get",
    "clock_res_get",
    "clock_time_get",
    "environ_get",
    "environ_sizes_get",
    "fd_advise",
    "fd_allocate",
    "fd_close",
    "fd_datasync",
    "fd_fdstat_get",
    "fd_fdstat_set_flags",
    "fd_fdstat_set_rights",
    "fd_filestat_get",
    "fd_filestat_set_size",
    "fd_filestat_set_times",
    "fd_pread",
    "fd_prestat_dir_name",
    "fd_prestat_get",
    "fd_pwrite",
    "fd_read",
    "fd_readdir",
    "fd_renumber",
    "fd_seek",
    "fd_sync",
    "fd_tell",
    "fd_write",
    "path_create_directory",
    "path_filestat_get",
    "path_filestat_set_times",
    "path_link",
    "path_open",
    "path_readlink",
    "path_remove_directory",
    "path_rename",
    "path_symlink",
    "path_unlink_file",
    "poll_oneoff",
    "proc_exit",
    "proc_raise",
    "random_get",
    "sched_yield",
    "sock_accept",
    "sock_recv",
    "sock_send",
    "sock_shutdown",
];

/// The interfaces of WASI 0.2 and 0.3, for components, without their versions.
const WASI2: &[&str] = &[
    "wasi:cli/environment",
    "wasi:cli/exit",
    "wasi:cli/stderr",
    "wasi:cli/stdin",
    "wasi:cli/stdout",
    "wasi:cli/terminal-input",
    "wasi:cli/terminal-output",
    "wasi:cli/terminal-stderr",
    "wasi:cli/terminal-stdin",
    "wasi:cli/terminal-stdout",
    "wasi:clocks/monotonic-clock",
    "wasi:clocks/wall-clock",
    "wasi:filesystem/preopens",
    "wasi:filesystem/types",
    "wasi:http/outgoing-handler",
    "wasi:http/types",
    "wasi:io/error",
    "wasi:io/poll",
    "wasi:io/streams",
    "wasi:random/insecure",
    "wasi:random/insecure-seed",
    "wasi:random/random",
    "wasi:sockets/instance-network",
    "wasi:sockets/ip-name-lookup",
    "wasi:sockets/network",
    "wasi:sockets/tcp",
    "wasi:sockets/tcp-create-socket",
    "wasi:sockets/udp",
    "wasi:sockets/udp-create-socket",
];
const WASI3: &[&str] = &[
    "wasi:cli/environment",
    "wasi:cli/exit",
    "wasi:cli/stderr",
    "wasi:cli/stdin",
    "wasi:cli/stdout",
    "wasi:cli/terminal-input",
    "wasi:cli/terminal-output",
    "wasi:cli/terminal-stderr",
    "wasi:cli/terminal-stdin",
    "wasi:cli/terminal-stdout",
    "wasi:cli/types",
    "wasi:clocks/monotonic-clock",
    "wasi:clocks/system-clock",
    "wasi:clocks/types",
    "wasi:filesystem/preopens",
    "wasi:filesystem/types",
    "wasi:http/client",
    "wasi:http/types",
    "wasi:random/insecure",
    "wasi:random/insecure-seed",
    "wasi:random/random",
    "wasi:sockets/ip-name-lookup",
    "wasi:sockets/types",
];

/// What the guest needs and the engine does not have, each in words; empty when it can be run.
pub(super) fn missing(guest: &Guest) -> Vec<String> {
    let unknown = guest.imports.iter().filter(|import| !is_given(import, guest.kind));
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

fn is_given(import: &Import, kind: Kind) -> bool {
    match (kind, import.kind) {
        (Kind::Module, "function") => {
            let is_wasi = matches!(import.module.as_deref(), Some("wasi_snapshot_preview1" | "wasi_unstable"));
            is_wasi && PREVIEW1.contains(&import.name.as_str())
        }
        (Kind::Component, "interface") => is_interface_given(&import.name),
        // Types are not linked, they are only named.
        (Kind::Component, "type") => true,
        _ => false,
    }
}

fn is_interface_given(name: &str) -> bool {
    match name.split_once('@') {
        Some((interface, version)) if version.starts_with("0.2.") => WASI2.contains(&interface),
        Some((interface, version)) if version.starts_with("0.3.") => WASI3.contains(&interface),
        _ => false,
    }
}

/// The version of WASI that an import or export is of.
pub(super) fn wasi_version(module: Option<&str>, name: &str) -> Option<String> {
    match module {
        Some("wasi_snapshot_preview1") => Some("0.1".into()),
        Some("wasi_unstable") => Some("0.0".into()),
        Some(_) => None,
        None => name.strip_prefix("wasi:").and_then(|name| name.split_once('@')).map(|(_, version)| version.into()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

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
