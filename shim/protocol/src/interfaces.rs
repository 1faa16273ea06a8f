//! The names of the interfaces that the engine provides to its guests. This is the only list of them: the engine links by
//! it, `skiff inspect` judges by it, and `docs/wasm-features.md` shows it. Tests compare it with the engine's linkers and
//! with that page.

/// What core modules import from WASI 0.1.
#[derive(Debug)]
pub struct Preview {
    /// The module that they import from.
    pub module: &'static str,
    /// The version of WASI, as a person would name it.
    pub version: &'static str,
    /// The functions that it has besides [`PREVIEW_FUNCTIONS`].
    pub more: &'static [&'static str],
}

/// What components import from one version of WASI.
#[derive(Debug)]
pub struct Wasi {
    /// The version of WASI. A release has one more number, and every release of the version is accepted.
    pub version: &'static str,
    /// The newest release that the engine knows.
    pub release: &'static str,
    /// The interfaces, without their versions, in alphabetical order.
    pub interfaces: &'static [&'static str],
    /// The interface that makes a component a command when it exports it.
    pub command: &'static str,
    /// The interface that makes a component an HTTP server when it exports it.
    pub server: &'static str,
}

/// The functions of WASI 0.1 that both modules have, in alphabetical order.
pub const PREVIEW_FUNCTIONS: &[&str] = &[
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
    "sock_recv",
    "sock_send",
    "sock_shutdown",
];

/// Preview 1.
pub const PREVIEW_1: Preview = Preview { module: "wasi_snapshot_preview1", version: "0.1", more: &["sock_accept"] };
/// The snapshot before preview 1.
pub const PREVIEW_0: Preview = Preview { module: "wasi_unstable", version: "0.0", more: &[] };

/// WASI 0.2.
pub const WASI_0_2: Wasi = Wasi {
    version: "0.2",
    release: "0.2.12",
    interfaces: &[
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
    ],
    command: "wasi:cli/run",
    server: "wasi:http/incoming-handler",
};

/// WASI 0.3.
pub const WASI_0_3: Wasi = Wasi {
    version: "0.3",
    release: "0.3.0",
    interfaces: &[
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
    ],
    command: "wasi:cli/run",
    server: "wasi:http/handler",
};

/// Everything for core modules.
pub const PREVIEWS: [&Preview; 2] = [&PREVIEW_0, &PREVIEW_1];
/// Everything for components.
pub const VERSIONS: [&Wasi; 2] = [&WASI_0_2, &WASI_0_3];

impl Preview {
    /// Whether the engine provides `function` in this module.
    #[must_use]
    pub fn offers(&self, function: &str) -> bool {
        PREVIEW_FUNCTIONS.contains(&function) || self.more.contains(&function)
    }
}

impl Wasi {
    /// `name` without its release, if that is a release of this version: `wasi:cli/run` for `wasi:cli/run@0.2.3` and 0.2.
    #[must_use]
    pub fn interface_of<'a>(&self, name: &'a str) -> Option<&'a str> {
        let (interface, release) = name.split_once('@')?;
        release.strip_prefix(self.version)?.starts_with('.').then_some(interface)
    }

    /// Whether `name` is an interface that the engine provides in this version.
    #[must_use]
    pub fn offers(&self, name: &str) -> bool {
        self.interface_of(name).is_some_and(|interface| self.interfaces.contains(&interface))
    }
}

/// Whether a component that exports `name` is a command.
#[must_use]
pub fn is_command(name: &str) -> bool {
    VERSIONS.iter().any(|wasi| wasi.interface_of(name) == Some(wasi.command))
}

/// Whether a component that exports `name` is an HTTP server.
#[must_use]
pub fn is_server(name: &str) -> bool {
    VERSIONS.iter().any(|wasi| wasi.interface_of(name) == Some(wasi.server))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_is_of_one_version() {
        for (name, expected) in [
            ("wasi:cli/stdout@0.2.0", [true, false]),
            ("wasi:cli/stdout@0.2.99", [true, false]),
            ("wasi:cli/stdout@0.3.0-rc-1", [false, true]),
            ("wasi:cli/stdout@0.20.0", [false, false]),
            ("wasi:cli/stdout", [false, false]),
            ("wasi:http/client@0.2.0", [false, false]),
            ("wasi:cli/run@0.2.0", [false, false]),
        ] {
            assert_eq!(VERSIONS.map(|wasi| wasi.offers(name)), expected, "{name}");
        }
    }

    #[test]
    fn a_component_is_what_it_exports() {
        assert!(is_command("wasi:cli/run@0.2.3") && is_command("wasi:cli/run@0.3.0"));
        assert!(!is_command("wasi:cli/run@0.4.0") && !is_command("wasi:cli/stdout@0.2.3"));
        assert!(is_server("wasi:http/incoming-handler@0.2.3") && is_server("wasi:http/handler@0.3.0"));
        assert!(!is_server("wasi:http/handler@0.2.3") && !is_server("wasi:http/incoming-handler@0.3.0"));
        assert!(!is_server("wasi:cli/run@0.2.3"));
    }
}
