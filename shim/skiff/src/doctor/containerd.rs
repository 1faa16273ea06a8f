//! Does containerd know the runtime, and does it pull what wasm images are made of?

use std::env;
use std::path::Path;
use std::process::Command;

use toml::{Table, Value};

use super::Check;

const RUNTIME: &str = "io.containerd.skiff.v1";
const SHIM: &str = "containerd-shim-skiff-v1";
/// The part of containerd's configuration that came with the transfer service.
const IMAGES_PLUGIN: &str = "io.containerd.cri.v1.images";

/// A runtime of ours in containerd's configuration.
#[derive(Debug, PartialEq, Eq)]
struct Handler {
    name: String,
    /// The shim's program, when the configuration names it.
    path: Option<String>,
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
        _ => vec![Check::warn(NAME, format!("`{shown} config dump` is not understood"), "look at what it says")],
    }
}

fn check_handler(config: &Table) -> Check {
    const NAME: &str = "runtime class";
    let handlers = handlers(config);
    let names: Vec<_> = handlers.iter().map(|handler| format!("`{}`", handler.name)).collect();
    let unreachable = handlers.iter().find(|handler| !is_reachable(handler));
    match (handlers.as_slice(), unreachable) {
        ([], _) => {
            let advice = format!(
                "Kubernetes needs one: add a runtime with `runtime_type = \"{RUNTIME}\"`, then restart containerd"
            );
            Check::warn(NAME, format!("containerd has no runtime of type `{RUNTIME}`"), advice)
        }
        (_, Some(handler)) => {
            let advice = format!("put it into containerd's `PATH`, or set `runtime_path` of `{}`", handler.name);
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

/// The runtimes of our type, wherever this version of the configuration has them.
fn handlers(config: &Table) -> Vec<Handler> {
    let mut found = Vec::new();
    for (name, value) in config {
        let Value::Table(table) = value else { continue };
        let text = |key: &str| table.get(key).and_then(Value::as_str);
        if text("runtime_type") == Some(RUNTIME) {
            let path = text("runtime_path").filter(|path| !path.is_empty());
            found.push(Handler { name: name.clone(), path: path.map(str::to_owned) });
        }
        found.extend(handlers(table));
    }
    found
}

/// Whether the shim is where the configuration says, or in this process's `PATH`, which is most likely containerd's.
fn is_reachable(handler: &Handler) -> bool {
    match &handler.path {
        Some(path) => Path::new(path).exists(),
        None => env::var_os("PATH").is_some_and(|path| env::split_paths(&path).any(|path| path.join(SHIM).exists())),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::doctor::Status;

    #[test]
    fn a_runtime_is_found_in_every_version_of_the_configuration() {
        let expected = [Handler { name: "skiff".into(), path: Some("/opt/shim".into()) }];
        for plugin in ["io.containerd.grpc.v1.cri", "io.containerd.cri.v1.runtime"] {
            let text = format!(
                "[plugins.'{plugin}'.containerd.runtimes.runc]\nruntime_type = 'io.containerd.runc.v2'\n\
                 [plugins.'{plugin}'.containerd.runtimes.skiff]\nruntime_type = '{RUNTIME}'\nruntime_path = '/opt/shim'\n"
            );
            assert_eq!(handlers(&text.parse().unwrap()), expected, "{plugin}");
        }
    }

    #[test]
    fn a_pull_that_leaves_wasm_images_packed_is_a_warning() {
        let check = |text: &str, status| assert_eq!(check_pull(&text.parse().unwrap()).status, status, "{text}");
        check("version = 2", Status::Ok);
        check("[plugins.'io.containerd.cri.v1.images']\nuse_local_image_pull = true", Status::Ok);
        check("[plugins.'io.containerd.cri.v1.images']\nuse_local_image_pull = false", Status::Warn);
    }
}
