//! All processes that belong to containers, and what memory they hold.

use std::collections::{HashMap, HashSet};
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

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

/// How often each thread of these containers has gone to sleep so far. Each time it had to be woken up.
pub(crate) fn sleeps(word: &str) -> HashMap<PathBuf, u64> {
    let tasks = belonging(word).into_iter().filter_map(|pid| std::fs::read_dir(format!("/proc/{pid}/task")).ok());
    let of = |task: PathBuf| Some((task.clone(), sleeps_of(&task)?));
    tasks.flatten().filter_map(|task| of(task.ok()?.path())).collect()
}

fn sleeps_of(task: &Path) -> Option<u64> {
    let status = std::fs::read_to_string(task.join("status")).ok()?;
    status.lines().find_map(|line| line.strip_prefix("voluntary_ctxt_switches:")?.trim().parse().ok())
}

/// The memory that a process has written, in bytes. Pages of files do not count: others that map them share them.
///
/// # Errors
/// When there is no such process.
pub(crate) fn private_bytes(pid: u32) -> Result<u64> {
    let rollup = std::fs::read_to_string(format!("/proc/{pid}/smaps_rollup"))?;
    Ok(kilobytes(&rollup, &["Private_Dirty:"]) * 1024)
}

/// The memory that the shims of these containers share with nobody, in bytes.
pub(crate) fn private_bytes_of_shims(word: &str) -> u64 {
    let is_shim = |pid: &i32| {
        let name = std::fs::read_to_string(format!("/proc/{pid}/comm"));
        name.is_ok_and(|name| name.starts_with("containerd-shim"))
    };
    let shims = belonging(word).into_iter().filter(is_shim);
    shims.filter_map(|pid| private_bytes(u32::try_from(pid).ok()?).ok()).sum()
}

/// The processor time that a process has used, with that of its threads.
///
/// # Errors
/// When there is no such process.
pub(crate) fn processor_time(pid: u32) -> Result<Duration> {
    // The kernel tells it in hundredths of a second, whatever its own clock is.
    const TICK: Duration = Duration::from_millis(10);
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat"))?;
    let (_, fields) = stat.rsplit_once(')').context("there is no name")?;
    // The 14th and 15th field; the first of these is the third.
    let ticks: Vec<u32> = fields.split_whitespace().skip(11).take(2).map(str::parse).collect::<Result<_, _>>()?;
    Ok(TICK * ticks.iter().sum::<u32>())
}

/// Kills all processes of the containers whose identifiers hold the word.
pub(crate) fn kill_all(word: &str) {
    for pid in belonging(word) {
        kill(Pid::from_raw(pid), Signal::SIGKILL).unwrap_or_default();
    }
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
    Some(kilobytes(&rollup, &["Pss:"]) * 1024)
}

/// The sum of these lines.
fn kilobytes(rollup: &str, names: &[&str]) -> u64 {
    let of = |line: &str| {
        let (name, value) = line.split_once(char::is_whitespace)?;
        names.contains(&name).then(|| value.trim().trim_end_matches(" kB").parse::<u64>().ok())?
    };
    rollup.lines().filter_map(of).sum()
}
