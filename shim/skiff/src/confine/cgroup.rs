//! The control group of one confined process: made, joined, asked whether it ran out of memory, removed.
//!
//! It is below `/skiff-compile`, outside of every pod; the limits of that group apply to all compilers together. Its name ends
//! with the process id of the supervisor: if that is gone (`kill -9`), the next supervisor removes what it left.

use std::fs::{self, File};
use std::io::{self, ErrorKind};
use std::path::{Path, PathBuf};
use std::process;
use std::time::{Duration, Instant};

use nix::poll::{PollTimeout, poll};
use nix::unistd::Pid;
use skiff_linux::cgroup::{count_in, oom_kills_in};

use crate::error::{Context, Result};

/// Where control groups are mounted on every node.
const MOUNT: &str = "/sys/fs/cgroup";
/// The parent of the compilers' groups.
const PARENT: &str = "skiff-compile";
/// The most threads of a compiler.
const PIDS_MAX: &str = "64";
/// The most threads of all compilers together.
const ALL_PIDS_MAX: &str = "1024";
/// The most memory of all compilers together, as a share of the node's.
const ALL_MEMORY_SHARE: u64 = 4;
/// What all compilers together may have on every node, in bytes: as much as a single one may use unless it was given more.
const ALL_MEMORY_BYTES_MIN: u64 = 2 << 30;
/// What version 1 shows for no limit is above this, in bytes.
const UNLIMITED_BYTES: u64 = 1 << 62;
/// Memory is charged in pieces of up to this size, in bytes: a group that is less than a piece below its limit has reached it.
const CHARGED_AT_ONCE_BYTES: u64 = 1 << 20;
/// A quarter of a group's default processor share. It applies to all compilers together, because the weight of a group counts
/// only among its siblings; all compilers have the same.
const V1_CPU_SHARES: &str = "256";
const V2_CPU_WEIGHT: &str = "25";
/// How long the kernel may take to empty a group whose only process has been reaped.
const REMOVAL: Duration = Duration::from_secs(2);

/// A control group of our own: one directory on version 2, one in each hierarchy on version 1. Dropped, it is removed.
#[derive(Debug)]
pub(super) struct Cgroup {
    directories: Vec<PathBuf>,
    /// Where the kernel counts the processes that it kills because memory ran out; `None` if the node has no memory controller.
    counts: Option<Counts>,
}

/// The files that show why the kernel killed a process of the group.
#[derive(Debug)]
enum Counts {
    /// `memory.oom_control` has the line `oom_kill`, and `memory.max_usage_in_bytes` the most that was used. The count of
    /// failures, `memory.failcnt`, stays 0 on some kernels.
    V1 { kills: PathBuf, peak: PathBuf, limit_bytes: u64 },
    /// `memory.events` has the lines `oom_kill` and `oom`; the latter counts how often the group reached its own limit.
    V2 { events: PathBuf },
}

/// Whose memory ran out when the kernel killed a process of a group.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum OutOfMemory {
    /// The group reached its own limit.
    Own,
    /// All compilers together reached theirs, or the node has no memory left.
    Shared,
}

impl Cgroup {
    /// Makes the group `NAME.PID` and sets its limits.
    ///
    /// # Errors
    /// The host's, if there are no control groups, or one refuses a limit.
    pub(super) fn create(name: &str, memory_bytes: u64) -> Result<Self> {
        let mount = Path::new(MOUNT);
        let is_v2 = mount.join("cgroup.controllers").exists();
        let name = format!("{name}.{}", process::id());
        let mut group = Self { directories: Vec::new(), counts: None };
        let made = memory_of_all().and_then(|of_all| {
            let memory = Memory { bytes: memory_bytes, of_all: of_all.max(memory_bytes) };
            if is_v2 { group.create_v2(mount, &name, &memory) } else { group.create_v1(mount, &name, &memory) }
        });
        made.or_host(format!("cannot make the control group `/{PARENT}/{name}`"))?;
        Ok(group)
    }

    fn create_v1(&mut self, mount: &Path, name: &str, memory: &Memory) -> io::Result<()> {
        for controller in ["memory", "cpu", "pids"] {
            let hierarchy = mount.join(controller);
            if !hierarchy.is_dir() {
                continue;
            }
            let directory = self.create_directory(&hierarchy, name, |parent| match controller {
                "memory" => raise_memory_v1(parent, memory.of_all),
                "cpu" => set(parent, "cpu.shares", V1_CPU_SHARES),
                _ => set(parent, "pids.max", ALL_PIDS_MAX),
            })?;
            match controller {
                "memory" => {
                    set_memory_v1(&directory, memory.bytes)?;
                    let [kills, peak] =
                        ["memory.oom_control", "memory.max_usage_in_bytes"].map(|file| directory.join(file));
                    self.counts = Some(Counts::V1 { kills, peak, limit_bytes: memory.bytes });
                }
                "cpu" => set(&directory, "cpu.shares", V1_CPU_SHARES)?,
                _ => set(&directory, "pids.max", PIDS_MAX)?,
            }
        }
        Ok(())
    }

    fn create_v2(&mut self, mount: &Path, name: &str, memory: &Memory) -> io::Result<()> {
        delegate(mount);
        let directory = self.create_directory(mount, name, |parent| {
            if is_lower(parent, "memory.max", memory.of_all) {
                set_if_there(parent, "memory.max", &memory.of_all.to_string())?;
            }
            set_if_there(parent, "memory.swap.max", "0")?;
            set_if_there(parent, "cpu.weight", V2_CPU_WEIGHT)?;
            set_if_there(parent, "pids.max", ALL_PIDS_MAX)
        })?;
        if directory.join("memory.max").exists() {
            set(&directory, "memory.max", &memory.bytes.to_string())?;
            set_if_there(&directory, "memory.swap.max", "0")?;
            self.counts = Some(Counts::V2 { events: directory.join("memory.events") });
        }
        set_if_there(&directory, "cpu.weight", V2_CPU_WEIGHT)?;
        set_if_there(&directory, "pids.max", PIDS_MAX)
    }

    /// Makes the group in the hierarchy mounted at `mount`. Before that it removes what dead supervisors left there, and limits
    /// the parent with `bound`.
    fn create_directory(
        &mut self,
        mount: &Path,
        name: &str,
        bound: impl Fn(&Path) -> io::Result<()>,
    ) -> io::Result<PathBuf> {
        let parent = mount.join(PARENT);
        let directory = parent.join(name);
        remove_stale(&parent);
        // Another supervisor may remove the empty parent at any moment.
        for _ in 0..8 {
            ignore(fs::create_dir(&parent), ErrorKind::AlreadyExists)?;
            let made = lock(&parent).and_then(|_locked| {
                bound(&parent)?;
                delegate(&parent);
                fs::create_dir(&directory)
            });
            match made {
                Err(error) if error.kind() == ErrorKind::NotFound && !parent.exists() => {}
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
        self.counts.is_some()
    }

    /// Whose memory ran out, if the kernel killed a process of the group because of that.
    pub(super) fn out_of_memory(&self) -> Option<OutOfMemory> {
        let read = |file: &PathBuf| fs::read_to_string(file).unwrap_or_default();
        let (kills, has_reached_its_limit) = match self.counts.as_ref()? {
            Counts::V1 { kills, peak, limit_bytes } => (read(kills), is_peak_of(&read(peak), *limit_bytes)),
            Counts::V2 { events } => (read(events), count_in(&read(events), "oom") > Some(0)),
        };
        match (oom_kills_in(&kills).unwrap_or(0), has_reached_its_limit) {
            (0, _) => None,
            (_, true) => Some(OutOfMemory::Own),
            (_, false) => Some(OutOfMemory::Shared),
        }
    }
}

impl Drop for Cgroup {
    fn drop(&mut self) {
        let deadline = Instant::now() + REMOVAL;
        for directory in &self.directories {
            while is_busy(&fs::remove_dir(directory)) && Instant::now() < deadline {
                // An empty poll waits for a millisecond. The next supervisor removes what remains.
                poll(&mut [], PollTimeout::from(1_u8)).ok();
            }
            if let Some(parent) = directory.parent() {
                // Fails while another compiler runs; its supervisor removes the parent later.
                drop(fs::remove_dir(parent));
            }
        }
    }
}

/// The limits of a group and of its parent, in bytes.
struct Memory {
    bytes: u64,
    of_all: u64,
}

/// How much memory all compilers may use together, in bytes.
fn memory_of_all() -> io::Result<u64> {
    let text = fs::read_to_string("/proc/meminfo")?;
    let total =
        total_bytes(&text).ok_or_else(|| io::Error::other("`/proc/meminfo` does not report the node's memory"))?;
    Ok((total / ALL_MEMORY_SHARE).max(ALL_MEMORY_BYTES_MIN))
}

/// The node's memory in the text of `/proc/meminfo`, in bytes.
fn total_bytes(text: &str) -> Option<u64> {
    let line = text.lines().find_map(|line| line.strip_prefix("MemTotal:"))?;
    line.trim().strip_suffix(" kB")?.parse::<u64>().ok()?.checked_mul(1 << 10)
}

/// Whether the limit in `file` is not there yet, or lower than `bytes`. That of all compilers is never lowered: a compiler that
/// runs may have been given more.
fn is_lower(directory: &Path, file: &str, bytes: u64) -> bool {
    let limit = fs::read_to_string(directory.join(file)).unwrap_or_default();
    // What is no number, or beyond any memory, is no limit.
    limit.trim().parse().map_or(true, |limit: u64| limit < bytes || limit > UNLIMITED_BYTES)
}

/// Keeps other supervisors from limiting the parent between the look at its limit and the change.
fn lock(parent: &Path) -> io::Result<File> {
    let directory = File::open(parent)?;
    loop {
        match directory.lock() {
            Err(error) if error.kind() == ErrorKind::Interrupted => {}
            locked => return locked.map(|()| directory),
        }
    }
}

/// Like [`set_memory_v1`], but only upwards.
fn raise_memory_v1(directory: &Path, bytes: u64) -> io::Result<()> {
    if !is_lower(directory, "memory.limit_in_bytes", bytes) {
        return Ok(());
    }
    // Memory may not be limited above memory with swap.
    if is_lower(directory, "memory.memsw.limit_in_bytes", bytes) {
        set_if_there(directory, "memory.memsw.limit_in_bytes", "-1")?;
    }
    set_memory_v1(directory, bytes)
}

/// Limits memory, and memory with swap where that is counted.
fn set_memory_v1(directory: &Path, bytes: u64) -> io::Result<()> {
    set(directory, "memory.limit_in_bytes", &bytes.to_string())?;
    set_if_there(directory, "memory.memsw.limit_in_bytes", &bytes.to_string())
}

/// Whether `peak`, the text of the file with the most that was used, shows that the group reached its limit.
fn is_peak_of(peak: &str, limit_bytes: u64) -> bool {
    peak.trim().parse::<u64>().is_ok_and(|peak| peak.saturating_add(CHARGED_AT_ONCE_BYTES) >= limit_bytes)
}

/// The supervisor that the group `name` belongs to.
fn supervisor_of(name: &str) -> Option<u32> {
    name.rsplit_once('.')?.1.parse().ok()
}

/// Removes the groups below `parent` whose supervisor is gone. What cannot be removed is left for the next supervisor.
fn remove_stale(parent: &Path) {
    for entry in fs::read_dir(parent).into_iter().flatten().flatten() {
        let name = entry.file_name();
        if name.to_str().and_then(supervisor_of).is_some_and(|pid| !is_supervisor(pid)) {
            drop(fs::remove_dir(entry.path()));
        }
    }
}

/// Whether process `pid` runs this program: another process may have the number by now.
fn is_supervisor(pid: u32) -> bool {
    let name_of = |pid: &str| fs::read(format!("/proc/{pid}/comm")).ok();
    name_of(&pid.to_string()).is_some_and(|name| Some(name) == name_of("self"))
}

/// Enables limits for the children of the version 2 group `directory`. A controller that is unavailable is recognised by its
/// missing files.
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
    fn who_ran_out_of_memory_is_told_on_both_versions() {
        let directory = tempfile::tempdir().unwrap();
        let check = |counts, first: &str, second: &str, expected| {
            fs::write(directory.path().join("first"), first).unwrap();
            fs::write(directory.path().join("second"), second).unwrap();
            let group = Cgroup { directories: Vec::new(), counts: Some(counts) };
            assert_eq!(group.out_of_memory(), expected, "{first:?} {second:?}");
        };
        let [kills, peak] = ["first", "second"].map(|file| directory.path().join(file));
        let v1 = || Counts::V1 { kills: kills.clone(), peak: peak.clone(), limit_bytes: 24 << 20 };
        let killed = "oom_kill_disable 0\nunder_oom 0\noom_kill 2\n";
        check(v1(), killed, "25165824\n", Some(OutOfMemory::Own));
        check(v1(), killed, "25100288\n", Some(OutOfMemory::Own));
        check(v1(), killed, "12582912\n", Some(OutOfMemory::Shared));
        check(v1(), "oom_kill_disable 0\nunder_oom 1\noom_kill 0\n", "25165824\n", None);
        let v2 = || Counts::V2 { events: kills.clone() };
        let events = |oom, kills| format!("low 0\nhigh 0\nmax 31\noom {oom}\noom_kill {kills}\noom_group_kill 0\n");
        check(v2(), &events(1, 1), "", Some(OutOfMemory::Own));
        check(v2(), &events(0, 1), "", Some(OutOfMemory::Shared));
        check(v2(), &events(1, 0), "", None);
        check(v2(), "", "", None);
    }

    #[test]
    fn the_nodes_memory_is_read() {
        assert_eq!(total_bytes("MemTotal:       24684672 kB\nMemFree: 1 kB\n"), Some(24_684_672 << 10));
        assert_eq!(total_bytes("MemFree: 1 kB\n"), None);
        assert!(memory_of_all().unwrap() >= 2 << 30);
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
