//! Which part of a crate may name which other one. A new folder needs a line here, and an arrow that is not allowed a reason.

use crate::imports::{Imports, Module};
use crate::{Source, check, sources};

/// The parts of a crate: its modules of the first level, with what each may name; the crate's own module may name every part.
struct Crate {
    folder: &'static str,
    arrows: &'static [(&'static str, &'static [&'static str])],
}

const CRATES: [Crate; 7] = [
    Crate {
        folder: "shim/linux/src",
        arrows: &[
            ("bpf", &[]),
            ("cgroup", &["bpf", "mounts", "pidfd"]),
            ("descriptors", &[]),
            ("jail", &[]),
            ("keyring", &[]),
            ("memory", &[]),
            ("mount_ids", &[]),
            ("mounts", &[]),
            ("names", &[]),
            ("namespaces", &["process"]),
            ("network", &[]),
            ("pidfd", &[]),
            ("probe", &[]),
            ("process", &["descriptors"]),
            ("seccomp", &[]),
            ("signals", &["process"]),
            ("standin", &[]),
            ("terminal", &[]),
            ("termination", &["process"]),
            ("trust", &[]),
        ],
    },
    Crate {
        folder: "shim/protocol/src",
        arrows: &[
            ("account", &[]),
            ("calls", &[]),
            ("content", &["main"]),
            ("control", &["main"]),
            ("counters", &[]),
            ("exit", &[]),
            ("fault", &[]),
            ("interfaces", &[]),
            ("launch", &[]),
            ("layers", &[]),
            ("limits", &[]),
            ("mounts", &[]),
            ("names", &[]),
            ("room", &["control"]),
            ("targets", &[]),
            ("task", &[]),
            ("warm", &[]),
        ],
    },
    Crate {
        folder: "shim/stage/src",
        arrows: &[
            ("become_user", &["streams"]),
            ("devices", &["root"]),
            ("mounts", &["root"]),
            ("root", &[]),
            ("steps", &["become_user", "devices", "mounts", "root", "streams"]),
            ("streams", &["root"]),
        ],
    },
    Crate {
        folder: "shim/shim/src",
        arrows: &[
            (
                "containerd",
                &["code", "error", "events", "host", "identity", "launch", "pod", "request", "settings", "spec"],
            ),
            ("pod", &["code", "error", "events", "host", "identity", "image", "launch", "request", "settings", "spec"]),
            ("code", &["error", "host", "settings"]),
            ("image", &["error", "host", "identity", "settings", "spec"]),
            ("launch", &["error", "host", "request", "settings", "spec"]),
            ("host", &["error", "request", "settings", "spec"]),
            ("spec", &["error"]),
            ("events", &["request"]),
            ("request", &["settings"]),
            ("settings", &["error"]),
            ("identity", &[]),
            ("error", &[]),
        ],
    },
    Crate {
        folder: "shim/engine/src",
        arrows: &[
            ("answer", &[]),
            (
                "calls",
                &[
                    "answer", "clock", "coredump", "error", "exports", "live", "look", "memory", "metrics", "role",
                    "run", "shared", "shown", "signals", "stdio", "store", "ticker", "trap",
                ],
            ),
            ("clock", &[]),
            ("control", &["report"]),
            ("coredump", &["files", "shared", "shown", "store"]),
            ("deadline", &["clock", "report", "stdio"]),
            ("environment", &[]),
            ("errand", &["calls", "control", "look", "report", "role", "shared", "stdio", "wall"]),
            ("error", &["trap"]),
            ("exports", &[]),
            ("files", &["error", "role", "shown", "wall"]),
            ("host", &["files", "names", "role", "stdio", "store"]),
            (
                "http",
                &[
                    "error", "exports", "host", "link", "load", "memory", "metrics", "report", "role", "shared",
                    "signals", "store", "ticker", "trap",
                ],
            ),
            ("lastwords", &["files"]),
            ("link", &["error", "exports", "host", "role", "shared", "store"]),
            ("live", &["shared"]),
            ("load", &["error", "trap"]),
            (
                "look",
                &[
                    "answer", "clock", "coredump", "exports", "files", "live", "load", "shared", "shown", "stdio",
                    "store", "trap",
                ],
            ),
            ("memory", &[]),
            ("metrics", &["store"]),
            ("names", &[]),
            ("outgoing", &["files", "memory", "names", "report"]),
            (
                "prepare",
                &[
                    "calls", "control", "error", "exports", "http", "link", "live", "load", "report", "role", "run",
                    "shared",
                ],
            ),
            ("queue", &[]),
            ("report", &["lastwords", "queue", "stdio"]),
            ("role", &[]),
            (
                "run",
                &[
                    "coredump", "deadline", "error", "exports", "host", "link", "memory", "report", "role", "shared",
                    "signals", "stdio", "store", "trap",
                ],
            ),
            (
                "shared",
                &[
                    "environment",
                    "files",
                    "host",
                    "memory",
                    "metrics",
                    "names",
                    "outgoing",
                    "report",
                    "role",
                    "stdio",
                    "store",
                    "wall",
                ],
            ),
            ("signals", &[]),
            ("stdio", &["clock", "role"]),
            ("store", &["files", "load", "memory", "names", "outgoing", "stdio", "turn"]),
            ("shown", &[]),
            ("trap", &["shown"]),
            ("ticker", &[]),
            ("turn", &[]),
            ("wall", &[]),
        ],
    },
    Crate {
        folder: "shim/skiff/src",
        arrows: &[
            ("cache", &["error", "output", "regular"]),
            ("compile", &["confine", "debug_info", "error", "preamble", "regular"]),
            ("confine", &["error"]),
            ("containers", &["error", "processes", "regular"]),
            ("debug_info", &[]),
            ("digest", &[]),
            ("doctor", &["confine", "error", "output", "processes"]),
            ("error", &[]),
            ("guest", &["compile", "error", "preamble", "regular"]),
            ("inspect", &["digest", "error", "guest", "output", "preamble", "regular", "support"]),
            ("layers", &["confine", "digest", "error", "regular"]),
            ("output", &["error"]),
            ("pack", &["digest", "error", "guest", "layers", "preamble", "regular", "support"]),
            ("preamble", &["error"]),
            ("regular", &["error"]),
            ("processes", &[]),
            ("ps", &["containers", "error", "output"]),
            ("stats", &["containers", "error", "output"]),
            ("support", &["guest", "preamble"]),
            ("testing", &[]),
        ],
    },
    Crate {
        folder: "runtime-class/installer/src",
        arrows: &[
            ("arguments", &["config", "error", "job", "journal", "kube", "metrics", "node", "wanted"]),
            ("config", &["error"]),
            ("error", &[]),
            ("install", &["config", "error", "journal", "node", "say"]),
            ("job", &["config", "error", "install", "journal", "kube", "node", "remove", "say"]),
            ("journal", &["config", "error", "node"]),
            ("keep", &["error", "install", "job", "journal", "kube", "node", "say", "signals", "status", "wanted"]),
            ("kube", &["error"]),
            ("metrics", &["error", "journal", "node"]),
            ("node", &["config", "error"]),
            ("ready", &["error", "node", "say"]),
            ("remove", &["config", "error", "journal", "node"]),
            ("say", &[]),
            ("signals", &["error"]),
            ("status", &["config", "error", "journal", "node"]),
            ("uninstall", &["error", "kube", "say", "signals", "wanted"]),
            ("verify", &["say", "status", "wanted"]),
            ("wanted", &[]),
        ],
    },
];

fn shown(module: &Module) -> String {
    if module.is_empty() { "the crate".to_owned() } else { module.join("::") }
}

#[test]
fn no_modules_name_each_other_in_a_circle() {
    let mut faults = Vec::new();
    for Crate { folder, .. } in CRATES {
        let imports = Imports::of(folder);
        assert!(imports.edges.len() > 3, "`{folder}`: only {} modules were found", imports.edges.len());
        for circle in imports.circles() {
            let names: Vec<_> = circle.into_iter().map(shown).collect();
            faults.push(format!("`{folder}`: {} name each other", names.join(", ")));
        }
    }
    check(&faults);
}

#[test]
fn the_parts_of_every_crate_name_only_what_they_may() {
    let mut faults = Vec::new();
    for Crate { folder, arrows } in CRATES {
        for (module, others) in Imports::of(folder).edges {
            let Some(part) = module.first() else { continue };
            let Some((_, allowed)) = arrows.iter().find(|(name, _)| name == part) else {
                faults.push(format!("`{folder}`: `{part}` has no line in the table of arrows"));
                continue;
            };
            for other in others {
                let other_part = other.first().map_or("main", String::as_str);
                if other_part != part && !allowed.contains(&other_part) {
                    faults.push(format!("`{folder}`: `{}` names `{}`", shown(&module), shown(&other)));
                }
            }
        }
    }
    faults.dedup();
    check(&faults);
}

/// The code of `source` without comments and tests.
fn code_of(source: &Source) -> String {
    let code = source.text.split("#[cfg(test)]\nmod tests {").next().unwrap_or_default();
    code.lines().filter(|line| !line.trim_start().starts_with("//")).collect::<Vec<_>>().join("\n")
}

/// The product's sources, without tests.
fn product() -> impl Iterator<Item = Source> {
    let all = [sources("shim", &[".rs"]), sources("runtime-class", &[".rs"])].into_iter().flatten();
    all.filter(|source| {
        let is_test = |part: &std::ffi::OsStr| part == "tests" || part == "benches" || part == "tests.rs";
        !source.path.iter().any(is_test) && !source.path.ends_with("testing.rs")
    })
}

#[test]
fn unsafe_code_is_in_its_room_only() {
    let mut faults = Vec::new();
    for source in product() {
        let may = source.path.starts_with("shim/linux/src") || source.path.ends_with("shim/engine/src/load.rs");
        if !may && code_of(&source).contains("unsafe ") {
            faults.push(format!("`{}` has unsafe code: its room is `shim/linux`", source.path.display()));
        }
    }
    check(&faults);
}

#[test]
fn the_wire_of_containerd_stays_at_the_door() {
    let words = ["ttrpc", "protobuf", "containerd_shim::protos", "containerd_shim_protos"];
    let mut faults = Vec::new();
    for source in sources("shim/shim/src", &[".rs"]) {
        let code = code_of(&source);
        if source.path.starts_with("shim/shim/src/containerd") {
            continue;
        }
        for word in words.iter().filter(|word| code.contains(**word)) {
            faults.push(format!("`{}` has `{word}`", source.path.display()));
        }
    }
    check(&faults);
}

/// Names and places that stand in `shim/protocol` alone.
#[test]
fn what_programs_agree_on_is_written_once() {
    let names = [
        "\"containerd-shim-skiff-v1\"",
        "\"skiff-engine\"",
        "\"/var/lib/skiff/cache\"",
        "\"/run/skiff/runc\"",
        "\"limits.skiff.dev",
        "\"http.skiff.dev",
        "MOUNT_ATTR_RDONLY: u64",
        "\"oom_kill \"",
    ];
    let mut faults = Vec::new();
    for source in product() {
        let code = code_of(&source);
        let is_home = source.path.starts_with("shim/protocol") || source.path.starts_with("shim/linux");
        for name in names.iter().filter(|name| !is_home && code.contains(**name)) {
            faults.push(format!("`{}` writes {name} once more", source.path.display()));
        }
    }
    check(&faults);
}

#[test]
fn every_dependency_is_used() {
    let mut faults = Vec::new();
    for manifest in sources("", &["Cargo.toml"]) {
        let folder = manifest.path.parent().unwrap().to_str().unwrap();
        if folder.is_empty() || folder.starts_with("test/baseline") || folder.starts_with("test/guests") {
            continue;
        }
        let inner = if folder == "test" { vec!["test/src", "test/tests"] } else { vec![folder] };
        let code: String =
            inner.iter().flat_map(|folder| sources(folder, &[".rs"])).map(|source| source.text).collect();
        let tables = manifest.text.split("dependencies]\n").skip(1);
        for line in tables.flat_map(|table| table.lines().take_while(|line| !line.starts_with('['))) {
            let name = line.split(['.', ' ', '=']).next().unwrap_or_default();
            if !name.is_empty() && !name.starts_with('#') && !code.contains(&name.replace('-', "_")) {
                faults.push(format!("`{}` does not use `{name}`", manifest.path.display()));
            }
        }
    }
    check(&faults);
}
