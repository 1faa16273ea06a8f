//! The wasm containers of the node: their accounts, and the names of their pods. An account is its container's claim about itself,
//! and is read as a stranger's bytes.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::{self, ErrorKind, Read as _};
use std::path::{Path, PathBuf};

use serde::Deserialize;
use skiff_protocol::names::BUNDLES;
use skiff_protocol::{Activity, CalledFunctions, Figures, account_holder, called_functions};

use crate::error::{Context, Result};
use crate::node::files::Host;

/// How the link to an account's file in memory begins.
const MEMORY_FILE: &str = "/memfd:skiff-account";
/// The most containers that are read, which bounds the number of series.
const CONTAINERS_MAX: usize = 1000;
/// The longest specification that is read, in bytes.
const CONFIG_BYTES_MAX: u64 = 4 << 20;
/// The longest name that is shown, in bytes: that of a pod in Kubernetes.
const NAME_BYTES_MAX: usize = 253;

/// What a container is called: by Kubernetes, or by containerd if it is not one of a pod.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Name {
    pub(super) namespace: String,
    pub(super) pod: String,
    pub(super) container: String,
}

/// The figures of one container.
pub(super) type Read = (Figures, Activity, CalledFunctions);

/// The figures of all containers.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Found {
    pub(super) containers: BTreeMap<Name, Read>,
    /// How many more there are: too many, or with an account of another release.
    pub(super) omitted: u64,
}

/// Reads the accounts of the containers below containerd's state directory.
pub(super) fn find(host: &Host, state: &Path) -> Result<Found> {
    let processes = host.processes();
    let mut found = Found::default();
    let bundles = host.place(&state.join(BUNDLES))?;
    for namespace in directories(&bundles).or_host(format!("cannot read `{}`", bundles.display()))? {
        // A namespace or a bundle may be gone by now.
        for bundle in directories(&namespace).unwrap_or_default() {
            let Some(link) = account_of(&bundle, &processes) else { continue };
            let read = (found.containers.len() < CONTAINERS_MAX).then(|| read(&link));
            match read {
                // A container of this name that is about to go has its figures replaced by those of the next one.
                Some(Ok(figures)) => drop(found.containers.insert(name_of(&bundle, &namespace), figures)),
                // Its shim has ended.
                Some(Err(error)) if error.kind() == ErrorKind::NotFound => {}
                Some(Err(_)) | None => found.omitted += 1,
            }
        }
    }
    Ok(found)
}

fn directories(path: &Path) -> io::Result<Vec<PathBuf>> {
    match fs::read_dir(path) {
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(Vec::new()),
        entries => Ok(entries?.flatten().map(|entry| entry.path()).collect()),
    }
}

/// Where this process finds the account of a container, if it has one: the link in its bundle names a descriptor of its shim.
fn account_of(bundle: &Path, processes: &Path) -> Option<PathBuf> {
    let (pid, descriptor) = account_holder(bundle)?;
    Some(processes.join(format!("{pid}/fd/{descriptor}")))
}

fn read(link: &Path) -> io::Result<Read> {
    // The shim may be gone and its number taken by another process: anything but an account is not opened.
    if !fs::read_link(link)?.to_str().is_some_and(|target| target.starts_with(MEMORY_FILE)) {
        return Err(ErrorKind::NotFound.into());
    }
    let file = File::open(link)?;
    Ok((Figures::read(&file)?, Activity::read(&file)?, called_functions(&file)?))
}

fn name_of(bundle: &Path, namespace: &Path) -> Name {
    let last = |path: &Path| path.file_name().unwrap_or_default().to_string_lossy().into_owned();
    let name = annotations(bundle).and_then(|mut annotations| {
        let mut take = |key: &str| annotations.remove(&format!("io.kubernetes.cri.{key}"));
        Some(Name {
            namespace: take("sandbox-namespace")?,
            pod: take("sandbox-name")?,
            container: take("container-name")?,
        })
    });
    let Name { namespace, pod, container } =
        name.unwrap_or_else(|| Name { namespace: last(namespace), pod: String::new(), container: last(bundle) });
    Name { namespace: cut(namespace), pod: cut(pod), container: cut(container) }
}

/// The annotations of a container's specification.
fn annotations(bundle: &Path) -> Option<BTreeMap<String, String>> {
    #[derive(Deserialize)]
    struct Config {
        annotations: Option<BTreeMap<String, String>>,
    }
    let mut text = Vec::new();
    File::open(bundle.join("config.json")).ok()?.take(CONFIG_BYTES_MAX).read_to_end(&mut text).ok()?;
    serde_json::from_slice::<Config>(&text).ok()?.annotations
}

fn cut(mut name: String) -> String {
    name.truncate(name.floor_char_boundary(NAME_BYTES_MAX));
    name
}

#[cfg(test)]
mod tests {
    use std::os::fd::AsRawFd;
    use std::os::unix::fs::{FileExt, symlink};
    use std::time::Duration;

    use skiff_protocol::{ACCOUNT_FILE, Account};

    use super::*;

    struct State(tempfile::TempDir);

    impl State {
        /// Makes a bundle whose account is the open `file`.
        fn bundle(&self, id: &str, file: &File, config: &str) {
            let link = format!("/proc/{}/fd/{}", std::process::id(), file.as_raw_fd());
            self.bundle_with_link(id, &link, config);
        }

        fn bundle_with_link(&self, id: &str, link: &str, config: &str) {
            let bundle = self.0.path().join("state").join(BUNDLES).join("k8s.io").join(id);
            fs::create_dir_all(&bundle).unwrap();
            fs::write(bundle.join("config.json"), config).unwrap();
            symlink(link, bundle.join(ACCOUNT_FILE)).unwrap();
        }

        fn find(&self) -> Found {
            find(&Host::new(self.0.path().into()), Path::new("/state")).unwrap()
        }
    }

    fn state() -> State {
        State(tempfile::tempdir().unwrap())
    }

    fn config(container: &str) -> String {
        let annotations = serde_json::json!({
            "io.kubernetes.cri.sandbox-namespace": "shop", "io.kubernetes.cri.sandbox-name": "web-0",
            "io.kubernetes.cri.container-name": container, "other": "x",
        });
        serde_json::json!({"ociVersion": "1.2.0", "annotations": annotations}).to_string()
    }

    fn name(namespace: &str, pod: &str, container: &str) -> Name {
        Name { namespace: namespace.into(), pod: pod.into(), container: container.into() }
    }

    #[test]
    fn an_account_is_found_with_the_names_of_its_pod() {
        let (state, file) = (state(), Account::create().unwrap());
        assert_eq!(state.find(), Found::default());
        let account = Account::keep_in(&file).unwrap();
        account.take(100, 200).unwrap();
        account.add_trap();
        account.name_function(0, "add");
        account.add_call(0, Duration::ZERO, false);
        state.bundle("1", &file, &config("main"));
        state.bundle("2", &file, "not JSON");
        fs::create_dir(state.0.path().join("state").join(BUNDLES).join("k8s.io/native")).unwrap();
        let found = state.find();
        assert_eq!(found.omitted, 0);
        let names: Vec<_> = found.containers.keys().cloned().collect();
        assert_eq!(names, [name("k8s.io", "", "2"), name("shop", "web-0", "main")]);
        for (figures, activity, called) in found.containers.values() {
            assert_eq!((figures.linear_memory_bytes, activity.traps, called["add"].calls), (100, 1, 1));
        }
    }

    #[test]
    fn a_link_leads_to_nothing_but_an_account() {
        let (state, other) = (state(), File::open("/dev/null").unwrap());
        state.bundle("other", &other, "");
        state.bundle_with_link("gone", "/proc/4294967295/fd/3", "");
        for (id, link) in
            [("a", "/etc/passwd"), ("b", "/proc/1/fd/../../../etc/passwd"), ("c", "/proc/x/fd/1"), ("d", "")]
        {
            if !link.is_empty() {
                state.bundle_with_link(id, link, "");
            }
        }
        assert_eq!(state.find(), Found::default());
    }

    #[test]
    fn what_cannot_be_read_is_counted() {
        let (state, file) = (state(), Account::create().unwrap());
        file.write_all_at(b"skiffac9", 0).unwrap();
        state.bundle("1", &file, &config("main"));
        let found = state.find();
        assert_eq!((found.containers.len(), found.omitted), (0, 1));
    }

    #[test]
    fn the_number_of_containers_and_the_length_of_a_name_are_bounded() {
        let (state, file) = (state(), Account::create().unwrap());
        for number in 0..=CONTAINERS_MAX {
            state.bundle(&number.to_string(), &file, &config(&format!("{number}{}", "é".repeat(500))));
        }
        let found = state.find();
        assert_eq!((found.containers.len(), found.omitted), (CONTAINERS_MAX, 1));
        assert!(found.containers.keys().all(|name| name.container.len() <= NAME_BYTES_MAX));
    }
}
