//! All processes that belong to containers, and what memory they hold.

use std::collections::{HashMap, HashSet};
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::Result;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

const CGROUPS: &str = "/sys/fs/cgroup";
const PATIENCE: Duration = Duration::from_secs(5);
const OFTEN: Duration = Duration::from_millis(10);

/// What a set of processes uses.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Usage {
    pub(crate) processes: usize,
    pub(crate) threads: usize,
    /// The proportional set size: shared pages count in equal parts for each process that maps them.
    pub(crate) pss_bytes: u64,
}

/// The usage of all processes of the containers whose identifiers hold the word.
///
/// # Errors
/// When `/proc` cannot be read.
pub(crate) fn usage(word: &str) -> Result<Usage> {
    let mut usage = Usage::default();
    for pid in belonging(word) {
        let Some(pss_bytes) = pss(pid) else { continue };
        usage.processes += 1;
        usage.threads += std::fs::read_dir(format!("/proc/{pid}/task"))?.count();
        usage.pss_bytes += pss_bytes;
    }
    Ok(usage)
}

/// Kills all processes of the containers whose identifiers hold the word.
pub(crate) fn kill_all(word: &str) {
    for pid in belonging(word) {
        kill(Pid::from_raw(pid), Signal::SIGKILL).unwrap_or_default();
    }
}

/// Removes the control groups of containers whose identifiers begin with the word; some are gone only once their last
/// process is.
pub(crate) async fn remove_cgroups(word: &str) {
    let deadline = tokio::time::Instant::now() + PATIENCE;
    loop {
        let left: Vec<_> = cgroups(word).into_iter().filter(|group| std::fs::remove_dir(group).is_err()).collect();
        if left.is_empty() || tokio::time::Instant::now() > deadline {
            return;
        }
        tokio::time::sleep(OFTEN).await;
    }
}

/// The file that holds the memory limit of a container.
pub(crate) fn memory_limit_file(id: &str) -> PathBuf {
    let root = Path::new(CGROUPS);
    let version_1 = root.join("memory").join(id).join("memory.limit_in_bytes");
    if version_1.exists() { version_1 } else { root.join(id).join("memory.max") }
}

/// In the one hierarchy of version 2, and in each hierarchy of version 1.
fn cgroups(word: &str) -> Vec<PathBuf> {
    let below = |directory: &Path| -> Vec<PathBuf> {
        let entries = std::fs::read_dir(directory).into_iter().flatten().flatten();
        entries.filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir())).map(|entry| entry.path()).collect()
    };
    let roots = below(Path::new(CGROUPS));
    let all = roots.iter().flat_map(|root| below(root)).chain(roots.iter().cloned());
    let is_ours = |path: &PathBuf| path.file_name().is_some_and(|name| name.to_string_lossy().starts_with(word));
    all.filter(is_ours).collect()
}

/// A shim has its container on its command line, a container's process is in the container's cgroup, and what either of them
/// has started belongs to it too.
fn belonging(word: &str) -> HashSet<i32> {
    let me = i32::try_from(std::process::id()).unwrap_or_default();
    let all: Vec<i32> = std::fs::read_dir("/proc")
        .into_iter()
        .flatten()
        .filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok())
        .filter(|pid| *pid != me)
        .collect();
    let parents: HashMap<i32, i32> = all.iter().filter_map(|pid| Some((*pid, parent(*pid)?))).collect();
    let mut found: HashSet<i32> = all.into_iter().filter(|pid| names(*pid, word)).collect();
    loop {
        let children = parents.iter().filter(|(_, parent)| found.contains(parent)).map(|(pid, _)| *pid);
        let new: Vec<i32> = children.filter(|pid| !found.contains(pid)).collect();
        if new.is_empty() {
            return found;
        }
        found.extend(new);
    }
}

fn names(pid: i32, word: &str) -> bool {
    ["cmdline", "cgroup"].iter().any(|file| {
        let bytes = std::fs::read(format!("/proc/{pid}/{file}")).unwrap_or_default();
        String::from_utf8_lossy(&bytes).contains(word)
    })
}

/// The field after the state; the name before it may hold anything but a closing parenthesis at its end.
fn parent(pid: i32) -> Option<i32> {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    stat.rsplit_once(')')?.1.split_whitespace().nth(1)?.parse().ok()
}

/// Nothing when the process has ended.
fn pss(pid: i32) -> Option<u64> {
    let rollup = std::fs::read_to_string(format!("/proc/{pid}/smaps_rollup")).ok()?;
    let line = rollup.lines().find_map(|line| line.strip_prefix("Pss:"))?;
    let kilobytes: u64 = line.trim().trim_end_matches("kB").trim().parse().ok()?;
    Some(kilobytes * 1024)
}
