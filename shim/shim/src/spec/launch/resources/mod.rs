//! The resources of a specification, as what is written to which files of the container's cgroups. A container that is updated and
//! one that is made are treated alike.

mod devices;
mod v1;
mod v2;

use std::collections::BTreeMap;

use serde_json::Value;
use skiff_linux::cgroup::{Devices, Hierarchy};

pub(super) use self::devices::{default_nodes, settings_on_v1};
use super::reason::Reason;
use super::strict::{self, section, without_empty};

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
    memory: strict::Memory,
    cpu: strict::Cpu,
    pids: strict::Pids,
    pages: Vec<strict::HugepageLimit>,
    unified: BTreeMap<String, String>,
}

/// What `resources` are for a container which describes devices at `paths`.
pub(super) fn understand(resources: Value, paths: &[&str]) -> Result<(Limits, Devices), Reason> {
    let mut resources: strict::Resources = section("linux.resources", without_empty(resources))?;
    let devices = devices::understand(std::mem::take(&mut resources.devices), paths)?;
    Ok((Limits::of(resources)?, devices))
}

/// What sets the limits that `resources` name, and the limits from then on. The container has the limits `before`, and its memory
/// is limited to `current_bytes`. Its devices stay as they are.
///
/// # Errors
/// The reason why they are not understood.
pub(crate) fn update(
    resources: Value,
    hierarchy: Hierarchy,
    before: &Limits,
    current_bytes: Option<u64>,
) -> Result<(Vec<Setting>, Limits), Reason> {
    let named = Limits::of(section("linux.resources", without_empty(resources))?)?;
    let limits = named.over(before);
    let settings = match hierarchy {
        Hierarchy::V1 => named.settings(hierarchy, current_bytes)?,
        // What is written to a file there may depend on limits that are not named again.
        Hierarchy::V2 => limits.settings(hierarchy, current_bytes)?,
    };
    Ok((settings, limits))
}

impl Limits {
    fn of(resources: strict::Resources) -> Result<Self, Reason> {
        Ok(Self {
            memory: section("linux.resources.memory", resources.memory)?,
            cpu: section("linux.resources.cpu", resources.cpu)?,
            pids: section("linux.resources.pids", resources.pids)?,
            pages: resources.hugepage_limits,
            unified: resources.unified,
        })
    }

    /// What sets them for a container whose memory limit is `current_bytes` now.
    pub(super) fn settings(&self, hierarchy: Hierarchy, current_bytes: Option<u64>) -> Result<Vec<Setting>, Reason> {
        match hierarchy {
            Hierarchy::V1 => v1::settings(self, current_bytes),
            Hierarchy::V2 => v2::settings(self),
        }
    }

    /// These limits, with those of `before` that the OCI runtime keeps where nothing is said about them.
    fn over(&self, before: &Self) -> Self {
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

    /// How many processes there may be, in the file that both versions have.
    fn of_processes(&self) -> Option<Setting> {
        self.pids.limit.map(|limit| {
            // The OCI runtime does not set 0 either, which systemd does not know.
            let value = if limit < 0 { "max".into() } else { limit.max(1).to_string() };
            setting("pids", "pids.max", value)
        })
    }

    /// The processors and memory nodes, in the files that both versions have.
    fn of_places(&self) -> impl Iterator<Item = Setting> {
        let cpus = (!self.cpu.cpus.is_empty()).then(|| setting("cpuset", "cpuset.cpus", self.cpu.cpus.clone()));
        let mems = (!self.cpu.mems.is_empty()).then(|| setting("cpuset", "cpuset.mems", self.cpu.mems.clone()));
        [cpus, mems].into_iter().flatten()
    }
}

fn setting(controller: &'static str, file: &str, value: String) -> Setting {
    Setting { controller, file: file.into(), value, tolerates: None }
}
