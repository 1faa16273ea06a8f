//! The limits of a container, whichever files they are written to.

use std::collections::BTreeMap;

use crate::spec::launch::reason::Reason;
use crate::spec::launch::strict::{self, section};

/// What is written to one file of a cgroup.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Setting {
    /// Whose file it is; on v2, where a container has one directory, this does not matter.
    pub(crate) controller: &'static str,
    pub(crate) file: String,
    pub(crate) value: String,
    /// An error of this kind changes nothing.
    pub(crate) tolerates: Option<Tolerated>,
}

/// An error that does not matter.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Tolerated {
    /// The kernel does not have the file.
    Missing,
    /// The kernel refuses the value as long as another one is not set.
    Early,
}

/// The limits of a container, as far as its specification and its updates have named them.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Limits {
    pub(super) memory: strict::Memory,
    pub(super) cpu: strict::Cpu,
    pub(super) pids: strict::Pids,
    pub(super) pages: Vec<strict::HugepageLimit>,
    pub(super) unified: BTreeMap<String, String>,
}

impl Limits {
    pub(super) fn of(resources: strict::Resources) -> Result<Self, Reason> {
        Ok(Self {
            memory: section("linux.resources.memory", resources.memory)?,
            cpu: section("linux.resources.cpu", resources.cpu)?,
            pids: section("linux.resources.pids", resources.pids)?,
            pages: resources.hugepage_limits,
            unified: resources.unified,
        })
    }

    /// These limits, with those of `before` that the OCI runtime keeps where nothing is said about them.
    pub(super) fn over(&self, before: &Self) -> Self {
        let (mut memory, mut cpu) = (self.memory.clone(), self.cpu.clone());
        for (named, before) in [
            (&mut memory.limit, before.memory.limit),
            (&mut memory.reservation, before.memory.reservation),
            (&mut memory.swap, before.memory.swap),
        ] {
            *named = if *named == 0 { before } else { *named };
        }
        // Memory without a limit needs none of swap.
        if self.memory.limit == -1 && self.memory.swap == 0 {
            memory.swap = 0;
        }
        // A group that is idle has no weight.
        if cpu.shares == 0 && cpu.idle.is_none() {
            cpu.shares = before.cpu.shares;
        }
        match (cpu.quota, cpu.period) {
            (0, 0) => {}
            (0, _) => cpu.quota = before.cpu.quota,
            (_, 0) => cpu.period = before.cpu.period,
            (_, _) => {}
        }
        Self { memory, cpu, ..self.clone() }
    }

    /// The limit of memory below which nobody may be when it is set: the kernel of v2 would kill. `None` if that does not matter.
    pub(crate) fn checked_bytes(&self) -> Option<u64> {
        let limit = u64::try_from(self.memory.limit).ok().filter(|limit| *limit > 0);
        limit.filter(|_| self.memory.check_before_update)
    }

    /// How many processes there may be, in the file that both versions have.
    pub(super) fn of_processes(&self) -> Option<Setting> {
        self.pids.limit.map(|limit| {
            // The OCI runtime does not set 0 either, which systemd does not know.
            let value = if limit < 0 { "max".into() } else { limit.max(1).to_string() };
            setting("pids", "pids.max", value)
        })
    }

    /// The processors and memory nodes, in the files that both versions have.
    pub(super) fn of_places(&self) -> impl Iterator<Item = Setting> {
        let cpus = (!self.cpu.cpus.is_empty()).then(|| setting("cpuset", "cpuset.cpus", self.cpu.cpus.clone()));
        let mems = (!self.cpu.mems.is_empty()).then(|| setting("cpuset", "cpuset.mems", self.cpu.mems.clone()));
        [cpus, mems].into_iter().flatten()
    }
}

pub(super) fn setting(controller: &'static str, file: &str, value: String) -> Setting {
    Setting { controller, file: file.into(), value, tolerates: None }
}
