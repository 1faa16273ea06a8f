//! What carries a test's token on this machine: mounts, cgroups and files. Processes are in `process`.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use nix::mount::{MntFlags, umount2};
use nix::sys::signal::Signal;

use crate::process::{processes_touching, signal};
use crate::wait::until;

const CGROUPS: &str = "/sys/fs/cgroup";
const CLEAN_UP_LIMIT: Duration = Duration::from_secs(5);

/// Ends and removes everything that carries `token`: processes, mounts, cgroups.
pub(crate) fn clean_up(token: &str) {
    until(CLEAN_UP_LIMIT, || {
        let processes = processes_touching(token);
        for (pid, _) in &processes {
            signal(*pid, Signal::SIGKILL).ok();
        }
        for mount in mounts_with("self", token).iter().rev() {
            umount2(mount, MntFlags::MNT_DETACH).ok();
        }
        for cgroup in cgroups_with(token).iter().rev() {
            fs::remove_dir(cgroup).ok();
        }
        processes.is_empty() && cgroups_with(token).is_empty()
    });
}

/// The mount points whose paths hold `token`, as the process `pid` (or `self`) sees them, outer ones first.
pub(crate) fn mounts_with(pid: &str, token: &str) -> Vec<PathBuf> {
    let mounts = fs::read_to_string(format!("/proc/{pid}/mountinfo")).unwrap();
    let points = mounts.lines().filter_map(|line| line.split(' ').nth(4));
    points.filter(|path| path.contains(token)).map(PathBuf::from).collect()
}

/// The cgroup directories of all hierarchies whose paths hold `token`, outer ones first.
pub(crate) fn cgroups_with(token: &str) -> Vec<PathBuf> {
    let mut found = Vec::new();
    let mut todo = vec![PathBuf::from(CGROUPS)];
    while let Some(dir) = todo.pop() {
        for entry in fs::read_dir(&dir).into_iter().flatten().flatten() {
            if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
                let path = entry.path();
                if path.to_string_lossy().contains(token) {
                    found.push(path.clone());
                }
                todo.push(path);
            }
        }
    }
    found.sort();
    found
}

/// The files below `dir`.
pub fn files_below(dir: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for entry in fs::read_dir(dir).into_iter().flatten().flatten() {
        let path = entry.path();
        if path.is_dir() { found.extend(files_below(&path)) } else { found.push(path) }
    }
    found
}
