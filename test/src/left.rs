//! Checks that nothing is left of a container that was deleted.

use std::collections::HashSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use crate::containerd::{Containerd, NAMESPACE};
use crate::image::sha256;
use crate::machine::cgroups_with;
use crate::process::{is_alive, processes_with};
use crate::wait::until;

/// A shim ends a moment after its last container is deleted.
const PATIENCE: Duration = Duration::from_secs(15);
/// Where shims listen. containerd uses this place whatever its state directory is.
const SOCKETS: &str = "/run/containerd/s";
/// Where the shim keeps sockets of terminals.
pub const TERMINALS: &str = "/run/skiff";

/// Panics unless nothing of container `id` is left on the machine.
pub fn assert_nothing_left(containerd: &Containerd, id: &str) {
    let mut left = Vec::new();
    until(PATIENCE, || {
        left = left_of(containerd, id);
        left.is_empty()
    });
    assert!(left.is_empty(), "left of container `{id}`:\n{}\n{}", left.join("\n"), containerd.log_of(id));
}

/// Everything that can be found of container `id`: processes, mounts, cgroups, sockets, directories.
pub fn left_of(containerd: &Containerd, id: &str) -> Vec<String> {
    let mut left: Vec<String> =
        processes_with(id).into_iter().map(|(pid, line)| format!("process {pid}: {line}")).collect();
    let mounts = fs::read_to_string("/proc/self/mountinfo").expect("the mounts can be read");
    left.extend(mounts.lines().filter(|line| line.contains(id)).map(|line| format!("mount {line}")));
    left.extend(cgroups_with(id).into_iter().map(|path| format!("cgroup {}", path.display())));
    for path in places_of(containerd, id) {
        if path.symlink_metadata().is_ok() {
            left.push(path.display().to_string());
        }
    }
    left.extend(orphaned_terminals(&containerd.shims.lock().unwrap()));
    left
}

fn places_of(containerd: &Containerd, id: &str) -> Vec<PathBuf> {
    let address = containerd.address();
    let socket = sha256(format!("{}/{NAMESPACE}/{id}", address.display()).as_bytes());
    let task = |base: PathBuf| base.join("io.containerd.runtime.v2.task").join(NAMESPACE).join(id);
    vec![
        Path::new(SOCKETS).join(socket),
        task(containerd.state()),
        task(containerd.root()),
        containerd.runtime_root().join(NAMESPACE).join(id),
    ]
}

/// Sockets of terminals of those `shims` that are gone. They are named `tty-PID-NUMBER`.
pub(crate) fn orphaned_terminals(shims: &HashSet<u32>) -> Vec<String> {
    let entries = fs::read_dir(TERMINALS).into_iter().flatten().flatten();
    let names = entries.map(|entry| entry.file_name().to_string_lossy().into_owned());
    let is_orphan = |name: &String| {
        let pid = name.strip_prefix("tty-").and_then(|rest| rest.split('-').next()).and_then(|pid| pid.parse().ok());
        pid.is_some_and(|pid| shims.contains(&pid) && !is_alive(pid))
    };
    names.filter(is_orphan).map(|name| format!("{TERMINALS}/{name}")).collect()
}
