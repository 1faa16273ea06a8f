//! The control group of one confined process: made, joined, asked whether it ran out of memory, removed.
//!
//! It lies below `/skiff-compile`, outside of every pod. Its name ends with the process id of the supervisor: when
//! that is gone (`kill -9`), the next supervisor removes what it left.

use std::fs;
use std::io::{self, ErrorKind};
use std::path::{Path, PathBuf};
use std::process;
use std::time::{Duration, Instant};

use nix::poll::{PollTimeout, poll};
use nix::unistd::Pid;

use crate::error::{Context, Result};

/// Where control groups are mounted on every node.
const MOUNT: &str = "/sys/fs/cgroup";
/// The parent of the compilers' groups.
const PARENT: &str = "skiff-compile";
/// The most threads of a compiler.
const PIDS_MAX: &str = "64";
/// A quarter of the processor share that a process has by default.
const V1_CPU_SHARES: &str = "256";
const V2_CPU_WEIGHT: &str = "25";
/// How long the kernel may take to empty a group whose only process has been reaped.
const REMOVAL: Duration = Duration::from_secs(2);

/// A control group of our own: one directory on version 2, one in each hierarchy on version 1. Dropped, it is removed.
#[derive(Debug)]
pub(super) struct Cgroup {
    directories: Vec<PathBuf>,
    /// The file that counts the kernel's OOM kills; none when the node has no memory controller.
    oom_kills: Option<PathBuf>,
}

impl Cgroup {
    /// Makes the group `NAME.PID` and sets its limits.
    ///
    /// # Errors
    /// The host's: control groups that are not there, or that refuse a limit.
    pub(super) fn create(name: &str, memory_bytes: u64) -> Result<Self> {
        let mount = Path::new(MOUNT);
        let is_v2 = mount.join("cgroup.controllers").exists();
        let name = format!("{name}.{}", process::id());
        let mut group = Self { directories: Vec::new(), oom_kills: None };
        let made = if is_v2 {
            group.create_v2(mount, &name, memory_bytes)
        } else {
            group.create_v1(mount, &name, memory_bytes)
        };
        made.or_host(format!("cannot make the control group `/{PARENT}/{name}`"))?;
        Ok(group)
    }

    fn create_v1(&mut self, mount: &Path, name: &str, memory_bytes: u64) -> io::Result<()> {
        let bytes = memory_bytes.to_string();
        for controller in ["memory", "cpu", "pids"] {
            let hierarchy = mount.join(controller);
            if !hierarchy.is_dir() {
                continue;
            }
            let directory = self.create_directory(&hierarchy, name)?;
            match controller {
                "memory" => {
                    set(&directory, "memory.limit_in_bytes", &bytes)?;
                    set_if_there(&directory, "memory.memsw.limit_in_bytes", &bytes)?;
                    self.oom_kills = Some(directory.join("memory.oom_control"));
                }
                "cpu" => set(&directory, "cpu.shares", V1_CPU_SHARES)?,
                _ => set(&directory, "pids.max", PIDS_MAX)?,
            }
        }
        Ok(())
    }

    fn create_v2(&mut self, mount: &Path, name: &str, memory_bytes: u64) -> io::Result<()> {
        delegate(mount);
        let directory = self.create_directory(mount, name)?;
        if directory.join("memory.max").exists() {
            set(&directory, "memory.max", &memory_bytes.to_string())?;
            set_if_there(&directory, "memory.swap.max", "0")?;
            self.oom_kills = Some(directory.join("memory.events"));
        }
        set_if_there(&directory, "cpu.weight", V2_CPU_WEIGHT)?;
        set_if_there(&directory, "pids.max", PIDS_MAX)
    }

    /// Makes the group in the hierarchy mounted at `mount`, after removing what dead supervisors left there.
    fn create_directory(&mut self, mount: &Path, name: &str) -> io::Result<PathBuf> {
        let parent = mount.join(PARENT);
        let directory = parent.join(name);
        remove_stale(&parent);
        // Another supervisor may remove the empty parent at any moment.
        for _ in 0..8 {
            ignore(fs::create_dir(&parent), ErrorKind::AlreadyExists)?;
            delegate(&parent);
            match fs::create_dir(&directory) {
                Err(error) if error.kind() == ErrorKind::NotFound => {}
                made => {
                    made?;
                    self.directories.push(directory.clone());
                    return Ok(directory);
                }
            }
        }
        Err(ErrorKind::NotFound.into())
    }

    /// Moves process `pid` into the group.
    ///
    /// # Errors
    /// The host's, when the kernel refuses.
    pub(super) fn join(&self, pid: Pid) -> Result<()> {
        for directory in &self.directories {
            set(directory, "cgroup.procs", &pid.to_string())
                .or_host(format!("cannot join the control group `{}`", directory.display()))?;
        }
        Ok(())
    }

    /// Whether the group bounds the memory of its processes.
    pub(super) const fn bounds_memory(&self) -> bool {
        self.oom_kills.is_some()
    }

    /// Whether the kernel killed a process of the group because its memory limit was reached.
    pub(super) fn is_out_of_memory(&self) -> bool {
        let text = self.oom_kills.as_ref().and_then(|file| fs::read_to_string(file).ok()).unwrap_or_default();
        oom_kills(&text) > 0
    }
}

impl Drop for Cgroup {
    fn drop(&mut self) {
        let deadline = Instant::now() + REMOVAL;
        for directory in &self.directories {
            while is_busy(&fs::remove_dir(directory)) && Instant::now() < deadline {
                // An empty poll is a wait of a millisecond; what stays is removed by the next supervisor.
                poll(&mut [], PollTimeout::from(1_u8)).ok();
            }
            if let Some(parent) = directory.parent() {
                // Fails while another compiler is at work, which then removes it.
                drop(fs::remove_dir(parent));
            }
        }
    }
}

/// The count of OOM kills in the text of `memory.oom_control` (v1) or `memory.events` (v2).
fn oom_kills(text: &str) -> u64 {
    let counts = text.lines().filter_map(|line| line.strip_prefix("oom_kill "));
    counts.filter_map(|count| count.trim().parse::<u64>().ok()).sum()
}

/// The supervisor that the group `name` belongs to.
fn supervisor_of(name: &str) -> Option<u32> {
    name.rsplit_once('.')?.1.parse().ok()
}

/// Removes the groups below `parent` whose supervisor is gone. What cannot be removed is left for the next.
fn remove_stale(parent: &Path) {
    for entry in fs::read_dir(parent).into_iter().flatten().flatten() {
        let name = entry.file_name();
        if name.to_str().and_then(supervisor_of).is_some_and(|pid| !is_supervisor(pid)) {
            drop(fs::remove_dir(entry.path()));
        }
    }
}

/// Whether process `pid` is one like this, and not another that got the number of one that is gone.
fn is_supervisor(pid: u32) -> bool {
    let name_of = |pid: &str| fs::read(format!("/proc/{pid}/comm")).ok();
    name_of(&pid.to_string()).is_some_and(|name| Some(name) == name_of("self"))
}

/// Lets the children of the version 2 group `directory` have limits. A controller that is not to be had shows by the
/// files that are then not there.
fn delegate(directory: &Path) {
    for controller in ["+memory", "+cpu", "+pids"] {
        drop(set_if_there(directory, "cgroup.subtree_control", controller));
    }
}

fn set(directory: &Path, file: &str, value: &str) -> io::Result<()> {
    let named = |error: io::Error| io::Error::new(error.kind(), format!("`{file}`: {error}"));
    fs::OpenOptions::new()
        .write(true)
        .open(directory.join(file))
        .and_then(|mut file| io::Write::write_all(&mut file, value.as_bytes()))
        .map_err(named)
}

fn set_if_there(directory: &Path, file: &str, value: &str) -> io::Result<()> {
    ignore(set(directory, file, value), ErrorKind::NotFound)
}

fn ignore(done: io::Result<()>, kind: ErrorKind) -> io::Result<()> {
    match done {
        Err(error) if error.kind() == kind => Ok(()),
        done => done,
    }
}

fn is_busy(done: &io::Result<()>) -> bool {
    done.as_ref().is_err_and(|error| error.kind() == ErrorKind::ResourceBusy)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn oom_kills_are_read_on_both_versions() {
        assert_eq!(oom_kills("oom_kill_disable 0\nunder_oom 0\noom_kill 2\n"), 2);
        assert_eq!(oom_kills("low 0\nhigh 0\nmax 31\noom 1\noom_kill 1\noom_group_kill 0\n"), 1);
        assert_eq!(oom_kills("oom_kill_disable 0\nunder_oom 1\n"), 0);
        assert_eq!(oom_kills(""), 0);
    }

    #[test]
    fn a_group_names_its_supervisor() {
        assert_eq!(supervisor_of("pod.with.dots.4711"), Some(4711));
        assert_eq!(supervisor_of("nobody"), None);
        assert_eq!(supervisor_of("a.b"), None);
    }

    #[test]
    fn a_process_of_another_name_is_no_supervisor() {
        assert!(is_supervisor(process::id()));
        assert!(!is_supervisor(1));
        assert!(!is_supervisor(u32::MAX));
    }
}
