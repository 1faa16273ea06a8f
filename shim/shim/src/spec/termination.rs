//! Where Kubernetes looks for a container's last words. The specification does not say so, but the kubelet's file for them is known
//! by its name.

use std::path::{Path, PathBuf};

use super::annotations::CONTAINER_NAME;
use super::config::{Config, Mount};

/// Where it is unless a pod says otherwise (`terminationMessagePath`).
const DEFAULT: &str = "/dev/termination-log";
/// The kubelet makes it as `pods/UID/containers/NAME/NUMBER` below its own directory. A tenant can come near that with a volume
/// `containers` of which a `subPath` is mounted, `pods/UID/volume-subpaths/containers/NAME/0`, but cannot have it.
/// Source: <https://github.com/kubernetes/kubernetes/blob/v1.34.0/pkg/kubelet/kubelet_getters.go>, `getPodContainerDir`.
const PODS: &str = "pods";
const CONTAINERS: &str = "containers";

/// The path of that file in the guest's view, once `resolve` has followed the links in it; `None` if there is none.
pub(super) fn termination_log(config: &Config, resolve: &dyn Fn(&Path) -> PathBuf) -> Option<String> {
    let is_default = |mount: &&Mount| mount.destination == Path::new(DEFAULT);
    // The kubelet reads its own file, whatever a pod mounts at the default path.
    let mount = kubelets(config).or_else(|| binds(config).find(is_default))?;
    resolve(&mount.destination).to_str().map(str::to_owned)
}

/// The kubelet's own file on the node, if the container may write to it.
pub(crate) fn kubelets_file(config: &Config) -> Option<PathBuf> {
    kubelets(config).filter(|mount| !mount.has_option("ro"))?.source.clone()
}

fn kubelets(config: &Config) -> Option<&Mount> {
    let container = config.annotations.get(CONTAINER_NAME).map(String::as_str);
    binds(config).find(|mount| mount.source.as_deref().is_some_and(|source| is_kubelets(source, container)))
}

fn binds(config: &Config) -> impl Iterator<Item = &Mount> {
    config.mounts.iter().filter(|mount| mount.is_bind())
}

/// Whether the kubelet made the file for the last words of this container.
fn is_kubelets(source: &Path, container: Option<&str>) -> bool {
    let mut names = source.components().rev().skip(1).map(|part| part.as_os_str().to_str());
    container.is_some()
        && names.next() == Some(container)
        && names.next() == Some(Some(CONTAINERS))
        && names.nth(1) == Some(Some(PODS))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn the_kubelets_file_is_known_by_its_name_and_its_default_place() {
        let kubelets = "/var/lib/kubelet/pods/8d1/containers/main/1f2e3d4c";
        for (kind, destination, source, expected) in [
            ("bind", "/dev/termination-log", "/x", Some("/dev/termination-log")),
            ("bind", "/words", kubelets, Some("/words")),
            ("bind", "/var/run/words", kubelets, Some("/run/words")),
            ("tmpfs", "/dev/termination-log", "tmpfs", None),
            ("bind", "/words", "/var/lib/kubelet/pods/8d1/containers/other/1f2e3d4c", None),
            ("bind", "/words", "/var/lib/kubelet/pods/8d1/volumes/main/x", None),
            ("bind", "/words", "/var/lib/kubelet/pods/8d1/volume-subpaths/containers/main/0", None),
            ("bind", "/words", "/containers/main/0", None),
            ("bind", "/words", "/main", None),
        ] {
            let options = if kind == "bind" { json!(["rbind"]) } else { json!([]) };
            let spec = json!({
                "process": {"args": ["/app.wasm"], "cwd": "/"}, "root": {"path": "rootfs"},
                "annotations": {CONTAINER_NAME: "main"},
                "mounts": [{"destination": destination, "type": kind, "source": source, "options": options}],
            });
            let config = Config::parse(spec.to_string().as_bytes(), Path::new("/b")).unwrap();
            let resolve = |path: &Path| Path::new("/run").join(path.strip_prefix("/var/run").unwrap_or(path));
            assert_eq!(termination_log(&config, &resolve).as_deref(), expected, "{destination} {source}");
        }
    }

    #[test]
    fn the_kubelets_file_is_written_on_the_node_unless_the_container_must_not() {
        let kubelets = "/var/lib/kubelet/pods/8d1/containers/main/1f2e3d4c";
        for (source, option, expected) in
            [(kubelets, "rw", Some(kubelets)), (kubelets, "ro", None), ("/a/volume", "rw", None)]
        {
            let spec = json!({
                "process": {"args": ["/app.wasm"], "cwd": "/"}, "root": {"path": "rootfs"}, "annotations": {CONTAINER_NAME: "main"},
                "mounts": [{"destination": DEFAULT, "type": "bind", "source": source, "options": ["rbind", option]}],
            });
            let config = Config::parse(spec.to_string().as_bytes(), Path::new("/b")).unwrap();
            assert_eq!(kubelets_file(&config).as_deref(), expected.map(Path::new), "{source} {option}");
        }
    }

    #[test]
    fn the_kubelets_file_wins_over_what_a_pod_mounts_at_the_default_path() {
        let bind = |destination: &str, source: &str| json!({"destination": destination, "type": "bind", "source": source, "options": ["rbind"]});
        let spec = json!({
            "process": {"args": ["/app.wasm"], "cwd": "/"}, "root": {"path": "rootfs"}, "annotations": {CONTAINER_NAME: "main"},
            "mounts": [bind(DEFAULT, "/a/volume"), bind("/words", "/var/lib/kubelet/pods/8d1/containers/main/1f2e3d4c")],
        });
        let config = Config::parse(spec.to_string().as_bytes(), Path::new("/b")).unwrap();
        assert_eq!(termination_log(&config, &Path::to_path_buf).as_deref(), Some("/words"));
    }
}
