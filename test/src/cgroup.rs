//! Control groups as a test reads them: limits and counters by their meaning, on cgroup v1 and v2 alike.
//!
//! A missing file is a failed test: a test that reads a limit needs a node with that controller.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use crate::containerd::Containerd;
use crate::names::random_name;
use crate::wait::eventually;

const ROOT: &str = "/sys/fs/cgroup";
/// v1 writes "no limit" as the largest number of whole pages.
const UNLIMITED_FROM: u64 = 1 << 62;

/// A cgroup, by its path below the root: one directory on v2, one in each hierarchy on v1.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Cgroup {
    path: String,
}

/// The cgroup of a pod, with a memory limit of its own. Dropping it removes it; its containers must be gone then.
#[derive(Debug)]
pub struct PodCgroup {
    cgroup: Cgroup,
}

/// Whether the node has the unified hierarchy only. A hybrid node also has hierarchies of v1.
pub fn is_cgroup_v2() -> bool {
    Path::new(ROOT).join("cgroup.controllers").exists()
}

/// Whether systemd manages the containers' cgroups, as it does in a node whose process 1 it is.
pub(crate) fn are_systemds() -> bool {
    std::env::var_os("SKIFF_TEST_SYSTEMD").is_some()
}

/// The directories in which cgroups can be made: one on v2, each hierarchy's on v1.
pub fn hierarchies() -> Vec<PathBuf> {
    if is_cgroup_v2() {
        return vec![ROOT.into()];
    }
    let entries = fs::read_dir(ROOT).expect("cgroups are mounted").flatten();
    entries.filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir())).map(|entry| entry.path()).collect()
}

impl Cgroup {
    /// The cgroup that a specification names: `/parent/name`, or `slice:prefix:name` for systemd, with a slice at the top.
    pub fn at(path: &str) -> Self {
        let path = match *path.split(':').collect::<Vec<_>>() {
            [slice, prefix, name] => format!("{slice}/{prefix}-{name}.scope"),
            _ => path.trim_matches('/').into(),
        };
        Self { path }
    }

    /// Its path below the root, with a slash before it.
    pub fn path(&self) -> String {
        format!("/{}", self.path)
    }

    /// The memory limit in bytes; none for no limit.
    pub fn memory_limit(&self) -> Option<u64> {
        bounded(&self.text("memory", "memory.limit_in_bytes", "memory.max"))
    }

    /// Writes the memory limit as the kubelet does: into the file, without the runtime.
    ///
    /// # Errors
    /// The kernel's: v1 refuses a limit below what is in use, v2 kills to get there.
    pub fn set_memory_limit(&self, bytes: u64) -> io::Result<()> {
        fs::write(self.file("memory", "memory.limit_in_bytes", "memory.max"), bytes.to_string())
    }

    /// The memory in use, in bytes, the page cache included.
    pub fn memory_usage(&self) -> u64 {
        number(&self.text("memory", "memory.usage_in_bytes", "memory.current"))
    }

    /// What the memory in use is, in the kernel's words, for whoever has to find out why there was too little.
    pub fn memory_in_words(&self) -> String {
        let stat = self.text("memory", "memory.stat", "memory.stat");
        let kinds = ["rss", "cache", "mapped_file", "active_file", "inactive_file", "anon", "file", "kernel", "sock"];
        let is_told = |line: &&str| kinds.iter().any(|kind| line.split(' ').next() == Some(kind));
        let lines: Vec<&str> = stat.lines().filter(is_told).collect();
        let kernel = if is_cgroup_v2() { String::new() } else { self.text("memory", "memory.kmem.usage_in_bytes", "") };
        format!("{}, kernel {}, in all {}", lines.join(", "), kernel.trim(), self.memory_usage())
    }

    /// How many of its processes the kernel has killed because memory ran out.
    pub fn oom_kills(&self) -> u64 {
        let text = self.text("memory", "memory.oom_control", "memory.events");
        number(text.lines().find_map(|line| line.strip_prefix("oom_kill ")).expect("a count of OOM kills"))
    }

    /// The processor quota and its period, in microseconds; none for no quota.
    pub fn cpu_quota(&self) -> Option<(u64, u64)> {
        if is_cgroup_v2() {
            let text = self.text("cpu", "", "cpu.max");
            let (quota, period) = text.split_once(' ').expect("quota and period");
            return quota.parse().ok().map(|quota| (quota, number(period)));
        }
        let quota = self.text("cpu", "cpu.cfs_quota_us", "").parse().ok();
        quota.map(|quota| (quota, number(&self.text("cpu", "cpu.cfs_period_us", ""))))
    }

    /// The share of the processors under contention: `cpu.shares` on v1, `cpu.weight` on v2.
    pub fn cpu_weight(&self) -> u64 {
        number(&self.text("cpu", "cpu.shares", "cpu.weight"))
    }

    /// The processors that it may use, as the kernel lists them (`0-1`).
    pub fn cpus(&self) -> String {
        self.text("cpuset", "cpuset.cpus", "cpuset.cpus")
    }

    /// The most tasks; none for no limit.
    pub fn pids_limit(&self) -> Option<u64> {
        bounded(&self.text("pids", "pids.max", "pids.max"))
    }

    /// The limit of huge pages of a size (`2MB`), in bytes; none for no limit.
    pub fn huge_page_limit(&self, size: &str) -> Option<u64> {
        let (v1, v2) = (format!("hugetlb.{size}.limit_in_bytes"), format!("hugetlb.{size}.max"));
        bounded(&self.text("hugetlb", &v1, &v2))
    }

    /// The sizes of huge pages that the node can limit.
    pub fn huge_page_sizes(&self) -> Vec<String> {
        let suffix = if is_cgroup_v2() { ".max" } else { ".limit_in_bytes" };
        let size = |name: &str| {
            let size = name.strip_prefix("hugetlb.")?.strip_suffix(suffix)?;
            (!size.contains('.')).then(|| size.to_string())
        };
        let entries = fs::read_dir(self.directory("hugetlb")).into_iter().flatten().flatten();
        let mut sizes: Vec<_> = entries.filter_map(|entry| size(entry.file_name().to_str()?)).collect();
        sizes.sort();
        sizes
    }

    /// Its processes; none if the cgroup does not exist.
    pub fn processes(&self) -> Vec<u32> {
        let text = fs::read_to_string(self.directory("memory").join("cgroup.procs")).unwrap_or_default();
        text.lines().filter_map(|line| line.parse().ok()).collect()
    }

    /// Moves its processes into another memory cgroup beside it and removes it. Returns the other one.
    pub fn vanish(&self) -> Self {
        let other = Self::at(&format!("{}-elsewhere", self.path));
        fs::create_dir(other.directory("memory")).expect("a cgroup can be made");
        for pid in self.processes() {
            fs::write(other.directory("memory").join("cgroup.procs"), pid.to_string()).expect("a process can be moved");
        }
        self.remove();
        other
    }

    /// Removes its memory cgroup, once it is empty.
    pub fn remove(&self) {
        let directory = self.directory("memory");
        eventually("the cgroup is empty", || fs::remove_dir(&directory).ok());
    }

    fn directory(&self, controller: &str) -> PathBuf {
        let root = Path::new(ROOT);
        if is_cgroup_v2() { root.join(&self.path) } else { root.join(controller).join(&self.path) }
    }

    fn file(&self, controller: &str, v1: &str, v2: &str) -> PathBuf {
        self.directory(controller).join(if is_cgroup_v2() { v2 } else { v1 })
    }

    fn text(&self, controller: &str, v1: &str, v2: &str) -> String {
        let file = self.file(controller, v1, v2);
        fs::read_to_string(&file).unwrap_or_else(|error| panic!("{}: {error}", file.display())).trim().to_string()
    }
}

impl PodCgroup {
    pub(crate) fn make(parent: &str, limit_bytes: u64) -> Self {
        let cgroup = Cgroup::at(&format!("{parent}/{}", random_name("pod")));
        let directory = cgroup.directory("memory");
        fs::create_dir_all(&directory).expect("a cgroup can be made");
        if is_cgroup_v2() {
            let mut ancestors: Vec<_> = directory.ancestors().skip(1).take_while(|at| at.starts_with(ROOT)).collect();
            ancestors.reverse();
            for ancestor in ancestors {
                fs::write(ancestor.join("cgroup.subtree_control"), "+memory").expect("memory can be limited");
            }
        }
        cgroup.set_memory_limit(limit_bytes).expect("an empty cgroup takes every limit");
        Self { cgroup }
    }

    /// The cgroup.
    pub fn cgroup(&self) -> &Cgroup {
        &self.cgroup
    }
}

impl Containerd {
    /// Makes a cgroup for [`crate::Job::in_pod`], with a memory limit in bytes.
    pub fn pod_cgroup(&self, limit_bytes: u64) -> PodCgroup {
        PodCgroup::make(self.cgroup(), limit_bytes)
    }
}

impl Drop for PodCgroup {
    fn drop(&mut self) {
        if std::thread::panicking() {
            // containerd's own clean-up removes it too.
            return;
        }
        for hierarchy in hierarchies() {
            let directory = hierarchy.join(&self.cgroup.path);
            eventually("the pod's cgroup is empty", || {
                (!directory.exists() || fs::remove_dir(&directory).is_ok()).then_some(())
            });
        }
    }
}

fn number(text: &str) -> u64 {
    text.trim().parse().unwrap_or_else(|_| panic!("no number: {text:?}"))
}

fn bounded(text: &str) -> Option<u64> {
    text.parse().ok().filter(|limit| *limit < UNLIMITED_FROM)
}
