//! Does containerd know the runtime, and does it pull what wasm images are made of?

use std::env;
use std::path::Path;
use std::process::Command;

use skiff_protocol::names::SHIM;
use toml::{Table, Value};

use super::check::Check;

const RUNTIME: &str = "io.containerd.skiff.v1";
/// The part of containerd's configuration that came with the transfer service.
const IMAGES_PLUGIN: &str = "io.containerd.cri.v1.images";

/// An entry for skiff in containerd's configuration.
#[derive(Debug, PartialEq, Eq)]
struct Handler {
    name: String,
    shim: Shim,
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

pub(super) fn check(containerd: &Path, config: Option<&Path>) -> Vec<Check> {
    const NAME: &str = "containerd";
    let mut command = Command::new(containerd);
    if let Some(config) = config {
        command.arg("--config").arg(config);
    }
    let shown = containerd.display();
    let Ok(output) = command.args(["config", "dump"]).output() else {
        let advice = "name it with `--containerd` to have its configuration checked";
        return vec![Check::warn(NAME, format!("`{shown}` cannot be run"), advice)];
    };
    match String::from_utf8_lossy(&output.stdout).parse::<Table>() {
        Ok(config) if !config.is_empty() => vec![check_handler(&config), check_pull(&config)],
        _ => vec![Check::warn(
            NAME,
            format!("`{shown} config dump` does not print a configuration"),
            "run it and look at its output",
        )],
    }
}

fn check_handler(config: &Table) -> Check {
    const NAME: &str = "runtime class";
    let handlers = handlers(config);
    let names: Vec<_> = handlers.iter().map(|handler| format!("`{}`", handler.name)).collect();
    let beside = handlers.iter().find(|handler| handler.shim == Shim::Beside);
    let unreachable = handlers.iter().find(|handler| !is_reachable(handler));
    match (handlers.as_slice(), beside.or(unreachable)) {
        ([], _) => {
            let advice = format!(
                "Kubernetes needs one: add a runtime with `runtime_type = \"{RUNTIME}\"`, then restart containerd"
            );
            Check::warn(NAME, format!("containerd has no runtime of type `{RUNTIME}`"), advice)
        }
        (_, Some(Handler { name, shim: Shim::Beside })) => {
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
        found.extend(shim.map(|shim| Handler { name: name.clone(), shim }));
        found.extend(handlers(table));
    }
    found
}

/// Whether the shim is where the configuration says, or in this process's `PATH`, which is most likely containerd's.
fn is_reachable(handler: &Handler) -> bool {
    match &handler.shim {
        Shim::At(path) => Path::new(path).exists(),
        Shim::Beside => true,
        Shim::InPath => {
            env::var_os("PATH").is_some_and(|path| env::split_paths(&path).any(|path| path.join(SHIM).exists()))
        }
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
                assert_eq!(handlers(&text.parse().unwrap()), [Handler { name: "skiff".into(), shim }], "{text}");
            }
        }
    }

    #[test]
    fn a_shim_that_a_restarted_containerd_forgets_is_a_warning() {
        let check = |entry: &str| check_handler(&format!("[runtimes.skiff]\n{entry}\n").parse().unwrap());
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join(SHIM);
        let check_path = || check(&format!("runtime_type = '{}'", path.display()));
        assert_eq!(check("runtime_type = 'io.containerd.skiff.v1'\nruntime_path = '/opt/shim'").status, Status::Warn);
        assert_eq!(check_path().status, Status::Warn);
        std::fs::write(&path, "").unwrap();
        assert_eq!(check_path().status, Status::Ok);
    }

    #[test]
    fn a_pull_that_leaves_wasm_images_packed_is_a_warning() {
        let check = |text: &str, status| assert_eq!(check_pull(&text.parse().unwrap()).status, status, "{text}");
        check("version = 2", Status::Ok);
        check("[plugins.'io.containerd.cri.v1.images']\nuse_local_image_pull = true", Status::Ok);
        check("[plugins.'io.containerd.cri.v1.images']\nuse_local_image_pull = false", Status::Warn);
    }
}
