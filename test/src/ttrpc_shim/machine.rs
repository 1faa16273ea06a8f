//! What carries a test's token on this machine: processes, mounts, cgroups.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use nix::mount::{MntFlags, umount2};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::wait::until;

/// Ends and removes everything that carries `token`: processes, mounts, cgroups.
pub fn clean_up(token: &str) {
    until(Duration::from_secs(5), || {
        let processes = processes_with(token);
        for (pid, _) in &processes {
            kill(Pid::from_raw(*pid), Signal::SIGKILL).ok();
        }
        for mount in mounts_with(token).iter().rev() {
            umount2(mount, MntFlags::MNT_DETACH).ok();
        }
        for cgroup in cgroups_of(token).iter().rev() {
            fs::remove_dir(cgroup).ok();
        }
        processes.is_empty() && cgroups_of(token).is_empty()
    });
}

/// The processes that carry `token` in their command line, cgroup, working directory or open files, apart from this one
/// and from those that have ended.
pub fn processes_with(token: &str) -> Vec<(i32, String)> {
    let own = i32::try_from(std::process::id()).unwrap();
    let entries = fs::read_dir("/proc").unwrap().flatten();
    let pids = entries.filter_map(|entry| entry.file_name().to_str()?.parse::<i32>().ok()).filter(|pid| *pid != own);
    pids.filter_map(|pid| describe(pid, token).map(|what| (pid, what))).collect()
}

/// What shows that a process carries `token`.
fn describe(pid: i32, token: &str) -> Option<String> {
    let proc = PathBuf::from(format!("/proc/{pid}"));
    if status_field(pid, "State").is_none_or(|state| state.starts_with('Z')) {
        return None;
    }
    let command = String::from_utf8_lossy(&fs::read(proc.join("cmdline")).ok()?).replace('\0', " ");
    if command.contains(token) {
        return Some(command);
    }
    let cgroup = fs::read_to_string(proc.join("cgroup")).unwrap_or_default();
    if let Some(line) = cgroup.lines().find(|line| line.contains(token)) {
        return Some(format!("{command} in {line}"));
    }
    let mut files: Vec<_> =
        fs::read_dir(proc.join("fd")).into_iter().flatten().flatten().map(|file| file.path()).collect();
    files.push(proc.join("cwd"));
    let targets = files.iter().filter_map(|file| fs::read_link(file).ok());
    let found = targets.map(|target| target.to_string_lossy().into_owned()).find(|target| target.contains(token));
    found.map(|target| format!("{command} with {target}"))
}

/// A line of `/proc/PID/status`.
pub fn status_field(pid: i32, name: &str) -> Option<String> {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
    status.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':').map(|value| value.trim().to_string()))
}

/// The mount points whose paths hold `token`, outer ones first.
pub fn mounts_with(token: &str) -> Vec<PathBuf> {
    let mountinfo = fs::read_to_string("/proc/self/mountinfo").unwrap();
    mountinfo
        .lines()
        .filter_map(|line| line.split(' ').nth(4))
        .filter(|path| path.contains(token))
        .map(PathBuf::from)
        .collect()
}

/// The cgroup directories of all hierarchies whose paths hold `token`, outer ones first.
pub fn cgroups_of(token: &str) -> Vec<PathBuf> {
    let mut found = Vec::new();
    let mut todo = vec![PathBuf::from("/sys/fs/cgroup")];
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
