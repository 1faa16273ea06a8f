//! The cgroup of everything that a run starts: containerd and its shims in one part of it, and each container in a part of its
//! own. So it counts the processor time of all of them.

use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result};

const ROOT: &str = "/sys/fs/cgroup";
const PATIENCE: Duration = Duration::from_secs(5);
const OFTEN: Duration = Duration::from_millis(10);

/// Whether the node's controllers are those of version 1.
pub(crate) fn is_version_1() -> bool {
    Path::new(ROOT).join("memory").is_dir()
}

/// A cgroup, by its name below the root.
pub(crate) struct Group {
    name: String,
}

impl Group {
    /// Makes the group `name`, where processor time is counted, and puts `containerd` into it.
    ///
    /// # Errors
    /// The kernel's.
    pub(crate) fn of(name: &str, containerd: u32) -> Result<Self> {
        let group = Self { name: name.into() };
        let own = group.counting().join("containerd");
        std::fs::create_dir_all(&own)
            .and_then(|()| std::fs::write(own.join("cgroup.procs"), containerd.to_string()))
            .with_context(|| format!("cannot put containerd into `{}`", own.display()))?;
        Ok(group)
    }

    /// The path of the container `id` in it.
    pub(crate) fn path_of(&self, id: &str) -> String {
        format!("/{}/{id}", self.name)
    }

    /// The processor time that all have used so far, whether they still run or not.
    ///
    /// # Errors
    /// When the kernel does not count it.
    pub(crate) fn processor_time(&self) -> Result<Duration> {
        let directory = self.counting();
        if let Ok(nanoseconds) = std::fs::read_to_string(directory.join("cpuacct.usage")) {
            return Ok(Duration::from_nanos(nanoseconds.trim().parse()?));
        }
        let statistics = std::fs::read_to_string(directory.join("cpu.stat"))?;
        let used = statistics.lines().find_map(|line| line.strip_prefix("usage_usec "));
        Ok(Duration::from_micros(used.context("the kernel does not count processor time")?.parse()?))
    }

    /// The file that holds the memory limit of the container `id`.
    pub(crate) fn memory_limit_file(&self, id: &str) -> PathBuf {
        let below = |root: PathBuf| root.join(&self.name).join(id);
        let version_1 = below(Path::new(ROOT).join("memory")).join("memory.limit_in_bytes");
        if version_1.exists() { version_1 } else { below(ROOT.into()).join("memory.max") }
    }

    /// Removes it, with what is below it; some of that is gone only once its last process is.
    pub(crate) async fn remove(&self) {
        let deadline = tokio::time::Instant::now() + PATIENCE;
        while !self.everywhere().iter().all(|group| is_removed(group)) {
            if tokio::time::Instant::now() > deadline {
                return;
            }
            tokio::time::sleep(OFTEN).await;
        }
    }

    /// Where processor time is counted.
    fn counting(&self) -> PathBuf {
        let version_1 = Path::new(ROOT).join("cpuacct");
        if version_1.is_dir() { version_1.join(&self.name) } else { Path::new(ROOT).join(&self.name) }
    }

    /// Its directories: in the one hierarchy of version 2, and in each hierarchy of version 1.
    fn everywhere(&self) -> Vec<PathBuf> {
        let roots = directories_in(Path::new(ROOT)).into_iter().chain([ROOT.into()]);
        roots.map(|root| root.join(&self.name)).filter(|group| group.is_dir()).collect()
    }
}

/// Removes a group and those in it, as far as they are empty.
fn is_removed(group: &Path) -> bool {
    directories_in(group).iter().all(|inner| is_removed(inner)) && std::fs::remove_dir(group).is_ok()
}

fn directories_in(directory: &Path) -> Vec<PathBuf> {
    let entries = std::fs::read_dir(directory).into_iter().flatten().flatten();
    entries.filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir())).map(|entry| entry.path()).collect()
}
