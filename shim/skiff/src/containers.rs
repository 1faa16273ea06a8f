//! The wasm containers of this node: found by the shims that run here, and described by what containerd and the shim left in their
//! bundles. Whatever a bundle says about a container comes from its owner, and is shown escaped.

use std::collections::BTreeSet;
use std::ffi::OsStr;
use std::fs::{self, File};
use std::io::{self, ErrorKind, Read};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use nix::unistd::Uid;
use serde::{Deserialize, Serialize};
use skiff_protocol::names::{BUNDLES, SHIM};
use skiff_protocol::{Figures, account_holder};

use crate::error::{Context, Error, Result};
use crate::processes::is_trusted;
use crate::regular;

/// The kernel's view of the processes.
pub(crate) const PROC: &str = "/proc";
/// What the shim writes into a bundle before it makes the container.
const RECORD: &str = "skiff.json";
/// The pid of the container's process, as the OCI runtime wrote it.
const PID_FILE: &str = "init.pid";
/// The largest specification that is read, in bytes.
const SPEC_BYTES_MAX: u64 = 16 << 20;

/// A wasm container.
#[derive(Debug, Serialize)]
pub(crate) struct Container {
    /// The pod's namespace in Kubernetes, otherwise that of containerd.
    pub(crate) namespace: String,
    pub(crate) pod: Option<String>,
    /// The container's name in Kubernetes, otherwise its id.
    pub(crate) name: String,
    pub(crate) id: String,
    pub(crate) image: Option<String>,
    /// The entry point.
    pub(crate) module: String,
    /// The engine's process, while it runs.
    pub(crate) pid: Option<u32>,
    pub(crate) age_seconds: u64,
    /// What the engine reports about its guest; absent if its release of skiff is another one.
    #[serde(flatten)]
    pub(crate) figures: Option<Figures>,
    /// Why there are no figures.
    #[serde(skip)]
    pub(crate) fault: Option<String>,
}

/// The parts of an OCI specification that are shown.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct Spec {
    process: Process,
    annotations: Annotations,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct Process {
    args: Vec<String>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct Annotations {
    #[serde(rename = "io.kubernetes.cri.sandbox-namespace")]
    namespace: Option<String>,
    #[serde(rename = "io.kubernetes.cri.sandbox-name")]
    pod: Option<String>,
    #[serde(rename = "io.kubernetes.cri.container-name")]
    container: Option<String>,
    #[serde(rename = "io.kubernetes.cri.image-name")]
    image: Option<String>,
}

/// All wasm containers of this node, by namespace, pod and name.
///
/// # Errors
/// If this user may not look at the shims.
pub(crate) fn all(proc: &Path) -> Result<Vec<Container>> {
    if !Uid::effective().is_root() {
        return Err(Error::host("only root can look at the wasm containers of a node: run it as root"));
    }
    let shims = shims(proc).or_host(format!("cannot read `{}`", proc.display()))?;
    let directories: BTreeSet<&PathBuf> = shims.iter().map(|(_, tasks)| tasks).collect();
    let pids: BTreeSet<u32> = shims.iter().map(|(pid, _)| *pid).collect();
    let namespaces = directories.into_iter().flat_map(|tasks| children(tasks));
    let bundles = namespaces.flat_map(|namespace| children(&namespace));
    let mut found: Vec<Container> = bundles.filter_map(|bundle| describe(proc, &bundle, &pids)).collect();
    found.sort_by(|a, b| (&a.namespace, &a.pod, &a.name, &a.id).cmp(&(&b.namespace, &b.pod, &b.name, &b.id)));
    Ok(found)
}

/// The containers that `names` mean: each is the name of a pod or of a container, or the beginning of an id. All, without names.
///
/// # Errors
/// The caller's if a name means none.
pub(crate) fn chosen(mut containers: Vec<Container>, names: &[String]) -> Result<Vec<Container>> {
    let means = |name: &String, container: &Container| {
        !name.is_empty()
            && (container.pod.as_ref() == Some(name)
                || container.name == *name
                || container.id.starts_with(name.as_str()))
    };
    for name in names {
        if !containers.iter().any(|container| means(name, container)) {
            let sentence =
                format!("there is no wasm container, pod or id `{name}` on this node: `skiff ps` lists them");
            return Err(Error::guest(sentence));
        }
    }
    containers.retain(|container| names.is_empty() || names.iter().any(|name| means(name, container)));
    Ok(containers)
}

/// The shims of this node that root has started, and the directory with their containerd's bundles. Those of a node inside this one have other
/// namespaces, and paths and pids that mean something else.
fn shims(proc: &Path) -> io::Result<Vec<(u32, PathBuf)>> {
    let namespaces =
        |process: &Path| ["mnt", "pid"].map(|name| fs::read_link(process.join("ns").join(name)).unwrap_or_default());
    let own = namespaces(&proc.join("self"));
    let mut found = Vec::new();
    for entry in fs::read_dir(proc)? {
        let process = entry?.path();
        let Some(pid) = process.file_name().and_then(OsStr::to_str).and_then(|name| name.parse().ok()) else {
            continue;
        };
        // What ends meanwhile is not there any more.
        let Ok(program) = fs::read_link(process.join("exe")) else { continue };
        // A program that was replaced has ` (deleted)` after its name.
        let is_shim = program.file_name().is_some_and(|name| name.as_bytes().starts_with(SHIM.as_bytes()));
        if is_shim && namespaces(&process) == own && is_trusted(proc, &process) {
            // containerd starts a shim in the bundle of the pod's first container.
            let bundle = fs::read_link(process.join("cwd")).unwrap_or_default();
            let tasks = bundle.ancestors().nth(2).filter(|tasks| tasks.ends_with(BUNDLES));
            found.extend(tasks.map(|tasks| (pid, tasks.to_path_buf())));
        }
    }
    Ok(found)
}

fn children(directory: &Path) -> Vec<PathBuf> {
    fs::read_dir(directory).into_iter().flatten().flatten().map(|entry| entry.path()).collect()
}

/// The container of `bundle`, unless it is not a wasm container of one of these shims, or is just going.
fn describe(proc: &Path, bundle: &Path, shims: &BTreeSet<u32>) -> Option<Container> {
    let account = account_of(proc, bundle, shims)?;
    Some(Container::read(proc, bundle, figures(&account)))
}

impl Container {
    /// The container of `bundle`, with its figures.
    pub(crate) fn of_bundle(bundle: &Path, figures: Figures) -> Self {
        Self::read(Path::new(PROC), bundle, Ok(figures))
    }

    fn read(proc: &Path, bundle: &Path, figures: io::Result<Figures>) -> Self {
        let name_of = |path: &Path| path.file_name().unwrap_or_default().to_string_lossy().into_owned();
        let id = name_of(bundle);
        let spec = read_spec(&bundle.join("config.json")).unwrap_or_default();
        let Annotations { namespace, pod, container, image } = spec.annotations;
        Self {
            namespace: namespace.unwrap_or_else(|| bundle.parent().map(name_of).unwrap_or_default()),
            pod,
            name: container.unwrap_or_else(|| id.clone()),
            id,
            image,
            module: spec.process.args.into_iter().next().unwrap_or_default(),
            pid: pid_of(proc, bundle),
            age_seconds: age_of(bundle).unwrap_or(0),
            fault: figures.as_ref().err().map(ToString::to_string),
            figures: figures.ok(),
        }
    }
}

/// The file of the container's account: a shim holds it, and a link in the bundle says where.
fn account_of(proc: &Path, bundle: &Path, shims: &BTreeSet<u32>) -> Option<PathBuf> {
    let (shim, descriptor) = account_holder(bundle)?;
    // Of a shim that was killed, the number may belong to any other process by now.
    shims.contains(&shim).then(|| proc.join(format!("{shim}/fd/{descriptor}")))
}

/// Reads the account in the file `path`.
///
/// # Errors
/// If it is not a regular file, not an account, or one of another release.
pub(crate) fn figures(path: &Path) -> io::Result<Figures> {
    regular::open(path).and_then(|(file, _)| Figures::read(&file))
}

fn read_spec(path: &Path) -> io::Result<Spec> {
    let (file, _) = regular::open(path)?;
    let mut text = Vec::new();
    file.take(SPEC_BYTES_MAX).read_to_end(&mut text)?;
    serde_json::from_slice(&text).map_err(|error| io::Error::new(ErrorKind::InvalidData, error))
}

fn pid_of(proc: &Path, bundle: &Path) -> Option<u32> {
    let mut text = String::new();
    File::open(bundle.join(PID_FILE)).ok()?.take(16).read_to_string(&mut text).ok()?;
    let pid: u32 = text.trim().parse().ok()?;
    // One that has ended is a zombie without a program until the shim has taken note of it.
    fs::read_link(proc.join(pid.to_string()).join("exe")).ok().map(|_| pid)
}

fn age_of(bundle: &Path) -> Option<u64> {
    let made = fs::symlink_metadata(bundle.join(RECORD)).ok()?.modified().ok()?;
    Some(SystemTime::now().duration_since(made).unwrap_or_default().as_secs())
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::{chown, symlink};

    use serde_json::json;
    use skiff_protocol::{ACCOUNT_FILE, Account};
    use tempfile::TempDir;

    use super::*;

    /// A node with a `/proc` of its own.
    struct Node(TempDir);

    impl Node {
        fn new() -> Self {
            let node = Self(tempfile::tempdir().unwrap());
            node.process("self", "/bin/skiff", Path::new("/"), "mnt:[1]");
            node
        }

        fn proc(&self) -> PathBuf {
            self.0.path().join("proc")
        }

        fn bundle(&self, namespace: &str, id: &str) -> PathBuf {
            self.0.path().join("run").join(BUNDLES).join(namespace).join(id)
        }

        fn process(&self, pid: &str, program: &str, directory: &Path, mounts: &str) {
            let process = self.proc().join(pid);
            fs::create_dir_all(process.join("ns")).unwrap();
            fs::create_dir_all(process.join("fd")).unwrap();
            symlink(program, process.join("exe")).unwrap();
            symlink(directory, process.join("cwd")).unwrap();
            symlink(mounts, process.join("ns/mnt")).unwrap();
            symlink("pid:[1]", process.join("ns/pid")).unwrap();
        }

        /// A bundle with an account that the shim `shim` holds.
        fn container(&self, namespace: &str, id: &str, shim: u32, annotations: &serde_json::Value) {
            let bundle = self.bundle(namespace, id);
            fs::create_dir_all(&bundle).unwrap();
            let spec = json!({"process": {"args": ["/app.wasm", "x"]}, "annotations": annotations, "other": [1]});
            fs::write(bundle.join("config.json"), spec.to_string()).unwrap();
            fs::write(bundle.join(RECORD), "{}").unwrap();
            fs::write(bundle.join(PID_FILE), "70").unwrap();
            symlink(format!("/proc/{shim}/fd/5"), bundle.join(ACCOUNT_FILE)).unwrap();
        }

        /// What a shim holds.
        fn account(&self, shim: u32, used_bytes: u64) {
            let path = self.proc().join(format!("{shim}/fd/5"));
            let file = File::options().read(true).write(true).create_new(true).open(path).unwrap();
            file.set_len(2 * 4096).unwrap();
            Account::keep_in(&file).unwrap().take(used_bytes, u64::MAX).unwrap();
        }
    }

    fn is_root() -> bool {
        Uid::effective().is_root()
    }

    #[test]
    fn the_containers_of_the_node_are_those_of_its_shims() {
        if !is_root() {
            println!("not run: only root looks at shims");
            return;
        }
        let node = Node::new();
        let shim = format!("/opt/skiff/{SHIM} (deleted)");
        node.process("10", &shim, &node.bundle("k8s.io", "sandbox"), "mnt:[1]");
        // One of a node inside this one, another program, a process without a bundle, and one of another user.
        node.process("11", &shim, &node.bundle("inner", "sandbox"), "mnt:[2]");
        node.process("12", "/usr/bin/containerd-shim-runc-v2", &node.bundle("moby", "x"), "mnt:[1]");
        node.process("13", &shim, Path::new("/"), "mnt:[1]");
        node.process("14", &shim, &node.bundle("forged", "sandbox"), "mnt:[1]");
        chown(node.proc().join("14"), Some(1000), None).unwrap();
        node.process("70", "/proc/self/fd/3", Path::new("/"), "mnt:[3]");
        let annotations = json!({
            "io.kubernetes.cri.sandbox-namespace": "shop", "io.kubernetes.cri.sandbox-name": "web-0",
            "io.kubernetes.cri.container-name": "web", "io.kubernetes.cri.image-name": "shop/web:1",
        });
        node.container("k8s.io", "abc", 10, &annotations);
        node.container("default", "plain", 10, &json!({}));
        node.container("inner", "hidden", 11, &json!({}));
        node.container("forged", "hidden", 14, &json!({}));
        // The shim of this one was killed.
        node.container("k8s.io", "stale", 99, &annotations);
        fs::create_dir_all(node.bundle("k8s.io", "native")).unwrap();
        node.account(10, 300);
        node.account(11, 1);
        node.account(14, 1);
        let found = all(&node.proc()).unwrap();
        let shown: Vec<_> = found
            .iter()
            .map(|c| (c.namespace.as_str(), c.pod.as_deref(), c.name.as_str(), c.id.as_str(), c.image.as_deref()))
            .collect();
        let web = ("shop", Some("web-0"), "web", "abc", Some("shop/web:1"));
        assert_eq!(shown, [("default", None, "plain", "plain", None), web]);
        assert_eq!((found[1].module.as_str(), found[1].pid), ("/app.wasm", Some(70)));
        assert_eq!(found[1].figures.map(|figures| figures.linear_memory_bytes), Some(300));
        fs::write(node.proc().join("10/fd/5"), [b'x'; 4096]).unwrap();
        let other = all(&node.proc()).unwrap();
        assert!(
            other[1].figures.is_none() && other[1].fault.as_ref().unwrap().contains("another release"),
            "{other:?}"
        );
    }

    #[test]
    fn a_name_means_a_pod_a_container_or_the_beginning_of_an_id() {
        let containers = || {
            [("web-0", "web", "abc1"), ("web-0", "side", "abd2"), ("web-1", "web", "fff3")].map(|(pod, name, id)| {
                Container {
                    namespace: "shop".into(),
                    pod: Some(pod.into()),
                    name: name.into(),
                    id: id.into(),
                    image: None,
                    module: "/app.wasm".into(),
                    pid: None,
                    age_seconds: 0,
                    figures: None,
                    fault: None,
                }
            })
        };
        let check = |names: &[&str], expected: &[&str]| {
            let names: Vec<String> = names.iter().map(|name| (*name).into()).collect();
            let found = chosen(containers().into(), &names).unwrap();
            assert_eq!(found.iter().map(|c| c.id.as_str()).collect::<Vec<_>>(), expected, "{names:?}");
        };
        check(&[], &["abc1", "abd2", "fff3"]);
        check(&["web-0"], &["abc1", "abd2"]);
        check(&["web"], &["abc1", "fff3"]);
        check(&["ab"], &["abc1", "abd2"]);
        check(&["side", "web-1"], &["abd2", "fff3"]);
        for name in ["nobody", ""] {
            let error = chosen(containers().into(), &["web".into(), name.into()]).unwrap_err().to_string();
            assert_eq!(
                error,
                format!("there is no wasm container, pod or id `{name}` on this node: `skiff ps` lists them")
            );
        }
    }
}
