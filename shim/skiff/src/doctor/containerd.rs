//! Does containerd know the runtime, and does it pull what wasm images are made of?

use std::env;
use std::ffi::{OsStr, OsString};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use skiff_protocol::names::SHIM;
use toml::{Table, Value};

use super::ask::{self, ask};
use super::check::Check;
use super::running::{self, look_up};

/// What is looked for in the shell's `PATH` if no containerd runs.
const PROGRAM: &str = "containerd";
const RUNTIME: &str = "io.containerd.skiff.v1";
/// The part of containerd's configuration that came with the transfer service.
const IMAGES_PLUGIN: &str = "io.containerd.cri.v1.images";

/// An entry for skiff in containerd's configuration.
#[derive(Debug, PartialEq)]
struct Handler {
    name: String,
    shim: Shim,
    options: Table,
}

/// How the configuration names the shim's program.
#[derive(Debug, PartialEq, Eq)]
enum Shim {
    /// By the type of the runtime: containerd looks for it in its `PATH`.
    InPath,
    /// By its path, in place of the type.
    At(String),
    /// By its path beside the type, which a restarted containerd does not remember for its running containers
    /// (<https://github.com/containerd/containerd/issues/10811>).
    Beside,
}

/// What is known about the node's containerd.
#[derive(Debug)]
pub(super) struct Containerd {
    /// How it was found.
    found: Check,
    /// Its configuration, if it could be read.
    config: Option<Table>,
    /// Where it looks for programs.
    pub(super) path: OsString,
    /// Whether `path` is that of a process; otherwise it is the shell's.
    pub(super) is_running: bool,
}

impl Containerd {
    /// The containerd that runs on this node, or else the one in the shell's `PATH`; `program` and `config` if they are given. Of
    /// several it is the one that knows skiff.
    pub(super) fn look(program: Option<&Path>, config: Option<&Path>, proc: &Path) -> Self {
        let running = running::find(proc);
        let shell = env::var_os("PATH").unwrap_or_default();
        if let Some(program) = program {
            let path = running.first().map_or(shell, |running| running.path.clone());
            return Self::of(&program.display().to_string(), program, config, path, !running.is_empty());
        }
        let mut candidates: Vec<Self> = running
            .iter()
            .map(|process| {
                let config = config.or(process.config.as_deref());
                let program = fs::read_link(&process.program).unwrap_or_else(|_| process.program.clone());
                let shown = format!("{} (process {})", program.display(), process.pid);
                Self::of(&shown, &process.program, config, process.path.clone(), true)
            })
            .collect();
        let knows_skiff = |candidate: &Self| !candidate.handlers().is_empty();
        match candidates.iter().position(knows_skiff).or((!candidates.is_empty()).then_some(0)) {
            Some(index) => candidates.swap_remove(index),
            None => Self::of(PROGRAM, Path::new(PROGRAM), config, shell, false),
        }
    }

    fn of(shown: &str, program: &Path, config: Option<&Path>, path: OsString, is_running: bool) -> Self {
        const NAME: &str = "containerd";
        let mut command = Command::new(program);
        if let Some(config) = config {
            command.arg("--config").arg(config);
        }
        let (found, config) = match ask(command.args(["config", "dump"]), ask::LIMIT) {
            Err(error) => {
                let advice = "run the doctor as root where containerd runs, or name its program with `--containerd`";
                (
                    Check::warn(
                        NAME,
                        format!("`{shown}` cannot be run, so that its configuration is not checked: {error}"),
                        advice,
                    ),
                    None,
                )
            }
            Ok(text) => match text.parse::<Table>().ok().filter(|config| !config.is_empty()) {
                Some(table) => {
                    let file = config.map_or("its usual place".into(), |config| format!("`{}`", config.display()));
                    (Check::ok(NAME, format!("`{shown}`, configured in {file}")), Some(table))
                }
                None => {
                    let found = format!("`{shown} config dump` does not print a configuration");
                    (Check::warn(NAME, found, "run it and look at its output"), None)
                }
            },
        };
        Self { found, config, path, is_running }
    }

    fn handlers(&self) -> Vec<Handler> {
        self.config.as_ref().map(handlers).unwrap_or_default()
    }

    /// A runtime option of the first entry for skiff that has it.
    pub(super) fn option(&self, name: &str) -> Option<PathBuf> {
        let values =
            self.handlers().into_iter().filter_map(|handler| handler.options.get(name)?.as_str().map(PathBuf::from));
        values.into_iter().find(|value| !value.as_os_str().is_empty())
    }

    pub(super) fn checks(&self) -> Vec<Check> {
        let config = self.config.iter().flat_map(|config| [check_handler(config, &self.path), check_pull(config)]);
        std::iter::once(self.found.clone()).chain(config).collect()
    }
}

fn check_handler(config: &Table, path: &OsStr) -> Check {
    const NAME: &str = "runtime class";
    let handlers = handlers(config);
    let names: Vec<_> = handlers.iter().map(|handler| format!("`{}`", handler.name)).collect();
    let beside = handlers.iter().find(|handler| handler.shim == Shim::Beside);
    let unreachable = handlers.iter().find(|handler| !is_reachable(handler, path));
    match (handlers.as_slice(), beside.or(unreachable)) {
        ([], _) => {
            let advice = format!(
                "Kubernetes needs one: add a runtime with `runtime_type = \"{RUNTIME}\"`, then restart containerd"
            );
            Check::warn(NAME, format!("containerd has no runtime of type `{RUNTIME}`"), advice)
        }
        (_, Some(Handler { name, shim: Shim::Beside, .. })) => {
            let advice = format!("set the `runtime_type` of `{name}` to that path, and remove `runtime_path`");
            Check::warn(NAME, format!("a restarted containerd loses the containers of `{name}`"), advice)
        }
        (_, Some(handler)) => {
            let advice =
                format!("put it into containerd's `PATH`, or set the `runtime_type` of `{}` to its path", handler.name);
            Check::warn(NAME, format!("containerd may not find `{SHIM}`"), advice)
        }
        (_, None) => Check::ok(NAME, format!("containerd has {}", names.join(", "))),
    }
}

fn check_pull(config: &Table) -> Check {
    const NAME: &str = "image pull";
    let images = config.get("plugins").and_then(|plugins| plugins.get(IMAGES_PLUGIN));
    match images.map(|images| images.get("use_local_image_pull").and_then(Value::as_bool)) {
        Some(Some(true)) | None => Check::ok(NAME, "containerd unpacks images of every platform"),
        Some(_) => {
            let advice = format!("set `use_local_image_pull = true` in `plugins.'{IMAGES_PLUGIN}'`");
            Check::warn(NAME, "containerd does not unpack images of platform `wasi/wasm`", advice)
        }
    }
}

/// The entries for skiff, wherever this version of the configuration has them.
fn handlers(config: &Table) -> Vec<Handler> {
    let mut found = Vec::new();
    for (name, value) in config {
        let Value::Table(table) = value else { continue };
        let text = |key: &str| table.get(key).and_then(Value::as_str);
        let shim = match text("runtime_type") {
            Some(RUNTIME) if text("runtime_path").is_none_or(str::is_empty) => Some(Shim::InPath),
            Some(RUNTIME) => Some(Shim::Beside),
            Some(path) if Path::new(path).file_name().is_some_and(|file| file == SHIM) => Some(Shim::At(path.into())),
            _ => None,
        };
        let options = table.get("options").and_then(Value::as_table).cloned().unwrap_or_default();
        found.extend(shim.map(|shim| Handler { name: name.clone(), shim, options }));
        found.extend(handlers(table));
    }
    found
}

/// Whether the shim is where the configuration says, or in containerd's `PATH`.
fn is_reachable(handler: &Handler, path: &OsStr) -> bool {
    match &handler.shim {
        Shim::At(program) => Path::new(program).exists(),
        Shim::Beside => true,
        Shim::InPath => look_up(Path::new(SHIM), path).is_some(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::doctor::check::Status;

    #[test]
    fn a_runtime_is_found_in_every_version_of_the_configuration() {
        for plugin in ["io.containerd.grpc.v1.cri", "io.containerd.cri.v1.runtime"] {
            for (entry, shim) in [
                ("runtime_type = 'io.containerd.skiff.v1'", Shim::InPath),
                ("runtime_type = 'io.containerd.skiff.v1'\nruntime_path = ''", Shim::InPath),
                ("runtime_type = 'io.containerd.skiff.v1'\nruntime_path = '/opt/shim'", Shim::Beside),
                ("runtime_type = '/opt/containerd-shim-skiff-v1'", Shim::At("/opt/containerd-shim-skiff-v1".into())),
            ] {
                let text = format!(
                    "[plugins.'{plugin}'.containerd.runtimes.runc]\nruntime_type = 'io.containerd.runc.v2'\n\
                     [plugins.'{plugin}'.containerd.runtimes.skiff]\n{entry}\n"
                );
                assert_eq!(
                    handlers(&text.parse().unwrap()),
                    [Handler { name: "skiff".into(), shim, options: Table::new() }],
                    "{text}"
                );
            }
        }
    }

    #[test]
    fn a_shim_that_a_restarted_containerd_forgets_is_a_warning() {
        let check = |entry: &str| {
            check_handler(&format!("[runtimes.skiff]\n{entry}\n").parse().unwrap(), OsStr::new("/no/such/place"))
        };
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join(SHIM);
        let check_path = || check(&format!("runtime_type = '{}'", path.display()));
        assert_eq!(check("runtime_type = 'io.containerd.skiff.v1'\nruntime_path = '/opt/shim'").status, Status::Warn);
        assert_eq!(check_path().status, Status::Warn);
        std::fs::write(&path, "").unwrap();
        assert_eq!(check_path().status, Status::Ok);
    }

    /// A program in a directory of its own that prints `text`, whatever it is asked. Another process writes it: what this one has
    /// open for writing, a child of another test may still hold when the program is run.
    fn program(name: &str, text: &str) -> tempfile::TempDir {
        let directory = tempfile::tempdir().unwrap();
        let script = format!("#!/bin/sh\ncat <<'END'\n{text}\nEND\n");
        let write = r#"printf %s "$1" > "$0" && chmod 755 "$0""#;
        let written = Command::new("sh").arg("-c").arg(write).arg(directory.path().join(name)).arg(script).status();
        assert!(written.unwrap().success());
        directory
    }

    #[test]
    fn the_doctor_looks_where_the_containerd_that_runs_looks() {
        let skiffs = program(
            "containerd",
            "[plugins.x.runtimes.skiff]\nruntime_type = 'io.containerd.skiff.v1'\n\
             [plugins.x.runtimes.skiff.options]\nBinaryName = 'crun'\nCacheDir = '/var/code'",
        );
        let dockers = program("containerd", "version = 3");
        let shims = program(SHIM, "");
        let proc = tempfile::tempdir().unwrap();
        let process = |pid: &str, directory: &Path, path: &Path| {
            let process = proc.path().join(pid);
            fs::create_dir_all(process.join("ns")).unwrap();
            fs::write(process.join("comm"), "containerd\n").unwrap();
            fs::write(process.join("cmdline"), "containerd\0").unwrap();
            fs::write(process.join("environ"), format!("PATH={}\0", path.display())).unwrap();
            for (link, target) in [("exe", directory.join("containerd")), ("ns/mnt", "mnt:[1]".into())] {
                std::os::unix::fs::symlink(target, process.join(link)).unwrap();
            }
        };
        let look = || Containerd::look(None, None, proc.path());
        assert!(!look().is_running);
        process("self", dockers.path(), Path::new("/bin"));
        process("5", dockers.path(), Path::new("/docker"));
        assert_eq!((look().is_running, look().path.to_str()), (true, Some("/docker")));
        process("6", skiffs.path(), shims.path());
        let found = look();
        assert_eq!(found.path, shims.path());
        assert_eq!(found.option("BinaryName"), Some("crun".into()));
        assert_eq!(found.option("CacheDir"), Some("/var/code".into()));
        assert_eq!(found.option("Root"), None);
        let checks = found.checks();
        assert!(checks.iter().all(|check| check.status == Status::Ok), "{checks:?}");
        assert!(checks[0].found.contains("(process 6)"), "{checks:?}");
    }

    #[test]
    fn a_pull_that_leaves_wasm_images_packed_is_a_warning() {
        let check = |text: &str, status| assert_eq!(check_pull(&text.parse().unwrap()).status, status, "{text}");
        check("version = 2", Status::Ok);
        check("[plugins.'io.containerd.cri.v1.images']\nuse_local_image_pull = true", Status::Ok);
        check("[plugins.'io.containerd.cri.v1.images']\nuse_local_image_pull = false", Status::Warn);
    }
}
