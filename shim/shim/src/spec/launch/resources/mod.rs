//! The resources of a specification, as what is written to which files of the container's cgroups. A container that is updated and
//! one that is made are treated alike.

mod devices;
mod limits;
mod v1;
mod v2;

use serde_json::Value;
use skiff_linux::cgroup::{Devices, Hierarchy};

pub(super) use self::devices::{default_nodes, settings_on_v1};
pub(crate) use self::limits::{Limits, Setting, Tolerated};
use super::reason::Reason;
use super::strict::{self, section, without_empty};

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
    let written = match hierarchy {
        Hierarchy::V1 => settings(&named, hierarchy, current_bytes)?,
        // What is written to a file there may depend on limits that are not named again.
        Hierarchy::V2 => settings(&limits, hierarchy, current_bytes)?,
    };
    Ok((written, limits))
}

/// What sets `limits` for a container whose memory limit is `current_bytes` now.
pub(super) fn settings(
    limits: &Limits,
    hierarchy: Hierarchy,
    current_bytes: Option<u64>,
) -> Result<Vec<Setting>, Reason> {
    match hierarchy {
        Hierarchy::V1 => v1::settings(limits, current_bytes),
        Hierarchy::V2 => v2::settings(limits),
    }
}
