//! The resources of a specification, as what is written to which files of cgroup v1. A container that is updated and one that is
//! made are treated alike.

use serde_json::Value;

use super::reason::Reason;
use super::strict::{self, section, without_empty};

/// What is written to one file of a cgroup.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Setting {
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

/// The devices that every container may use (type, major and minor number, access), and those that it may make. The OCI runtime
/// adds them, too.
const DEVICES: [(&str, &str, &str, Option<&str>); 11] = [
    ("c", "*:*", "m", None),
    ("b", "*:*", "m", None),
    ("c", "1:3", "rwm", Some("/dev/null")),
    ("c", "1:8", "rwm", Some("/dev/random")),
    ("c", "1:7", "rwm", Some("/dev/full")),
    ("c", "5:0", "rwm", Some("/dev/tty")),
    ("c", "1:5", "rwm", Some("/dev/zero")),
    ("c", "1:9", "rwm", Some("/dev/urandom")),
    ("c", "136:*", "rwm", None),
    ("c", "5:2", "rwm", None),
    ("c", "10:200", "rwm", None),
];

/// The device nodes that every container gets unless it describes one at the same path: path, major and minor number.
pub(super) fn default_nodes() -> impl Iterator<Item = (&'static str, (u32, u32))> {
    DEVICES.into_iter().filter_map(|(_, number, _, path)| {
        let (major, minor) = number.split_once(':')?;
        Some((path?, (major.parse().ok()?, minor.parse().ok()?)))
    })
}

/// What sets `resources` for a container whose memory limit is `current_bytes` now, and which describes devices at `paths`.
pub(super) fn settings(resources: Value, paths: &[&str], current_bytes: Option<u64>) -> Result<Vec<Setting>, Reason> {
    let resources: strict::Resources = section("linux.resources", without_empty(resources))?;
    let mut settings = Vec::new();
    settings.extend(devices(resources.devices, paths)?);
    settings.extend(limits(resources.memory, resources.cpu, resources.pids, resources.hugepage_limits, current_bytes)?);
    Ok(settings)
}

/// What sets the limits of `resources` for a container whose memory limit is `current_bytes` now. Its devices stay as they are.
///
/// # Errors
/// The reason why they are not understood.
pub(crate) fn update(resources: Value, current_bytes: Option<u64>) -> Result<Vec<Setting>, Reason> {
    let resources: strict::Resources = section("linux.resources", without_empty(resources))?;
    limits(resources.memory, resources.cpu, resources.pids, resources.hugepage_limits, current_bytes)
}

fn limits(
    memory: Value,
    cpu: Value,
    pids: Value,
    pages: Vec<strict::HugepageLimit>,
    current_bytes: Option<u64>,
) -> Result<Vec<Setting>, Reason> {
    let mut settings = of_memory(&section("linux.resources.memory", memory)?, current_bytes);
    settings.extend(of_cpu(&section("linux.resources.cpu", cpu)?));
    let strict::Pids { limit } = section("linux.resources.pids", pids)?;
    settings.extend(limit.map(|limit| {
        // The OCI runtime does not set 0 either, which systemd does not know.
        let value = if limit < 0 { "max".into() } else { limit.max(1).to_string() };
        setting("pids", "pids.max", value)
    }));
    settings.extend(pages.iter().map(|limit| {
        setting("hugetlb", &format!("hugetlb.{}.limit_in_bytes", limit.page_size), limit.limit.to_string())
    }));
    Ok(settings)
}

fn of_memory(memory: &strict::Memory, current_bytes: Option<u64>) -> Vec<Setting> {
    let is_set = |value: i64| value != 0;
    let limit = is_set(memory.limit).then(|| setting("memory", "memory.limit_in_bytes", memory.limit.to_string()));
    // Without a limit of memory there is none of memory and swap.
    let (swap, tolerates) = match memory.swap {
        0 if memory.limit == -1 => (-1, Some(Tolerated::Missing)),
        swap => (swap, None),
    };
    let swap = is_set(swap)
        .then(|| Setting { tolerates, ..setting("memory", "memory.memsw.limit_in_bytes", swap.to_string()) });
    // The kernel never lets the sum be below the memory.
    let grows =
        memory.swap == -1 || u64::try_from(memory.swap).is_ok_and(|swap| current_bytes.is_some_and(|now| now < swap));
    let mut settings: Vec<Setting> =
        if grows || tolerates.is_some() { [swap, limit] } else { [limit, swap] }.into_iter().flatten().collect();
    let reservation = is_set(memory.reservation);
    settings
        .extend(reservation.then(|| setting("memory", "memory.soft_limit_in_bytes", memory.reservation.to_string())));
    settings
}

fn of_cpu(cpu: &strict::Cpu) -> Vec<Setting> {
    let early = |has_quota: bool| has_quota.then_some(Tolerated::Early);
    let has_quota = cpu.quota != 0;
    let shares = (cpu.shares != 0).then(|| setting("cpu", "cpu.shares", cpu.shares.to_string()));
    let period = || (cpu.period != 0).then(|| setting("cpu", "cpu.cfs_period_us", cpu.period.to_string()));
    let burst = || {
        let burst = cpu.burst.map(|burst| setting("cpu", "cpu.cfs_burst_us", burst.to_string()));
        burst.map(|setting| Setting { tolerates: Some(Tolerated::Missing), ..setting })
    };
    let quota = has_quota.then(|| setting("cpu", "cpu.cfs_quota_us", cpu.quota.to_string()));
    let idle = cpu.idle.map(|idle| setting("cpu", "cpu.idle", idle.to_string()));
    let cpus = (!cpu.cpus.is_empty()).then(|| setting("cpuset", "cpuset.cpus", cpu.cpus.clone()));
    let mems = (!cpu.mems.is_empty()).then(|| setting("cpuset", "cpuset.mems", cpu.mems.clone()));
    // A period may be too short for the quota that was there, and long enough for the new one.
    let first = period().map(|setting| Setting { tolerates: early(has_quota), ..setting });
    let again = has_quota.then(period).flatten();
    [shares, first, quota, again, burst(), idle, cpus, mems].into_iter().flatten().collect()
}

/// Nothing but what the rules allow; a rule that takes back a part of what another one allows is not understood.
fn devices(rules: Vec<Value>, paths: &[&str]) -> Result<Vec<Setting>, Reason> {
    let write = |file: &str, value: String| setting("devices", file, value);
    let (mut allows_all, mut allowed) = (false, Vec::new());
    for rule in rules {
        let rule: strict::DeviceRule = section("linux.resources.devices", rule)?;
        let kind = if rule.kind.is_empty() { "a" } else { rule.kind.as_str() };
        let is_all = kind == "a";
        if !["a", "b", "c"].contains(&kind) || rule.access.chars().any(|access| !"rwm".contains(access)) {
            return Err(Reason(format!("`linux.resources.devices`: a rule for `{kind}` and `{}`", rule.access)));
        }
        match (rule.allow, is_all) {
            (_, true) => {
                allows_all = rule.allow;
                allowed.clear();
            }
            (true, false) => {
                let number = |number: Option<i64>| {
                    number.filter(|number| *number >= 0).map_or("*".into(), |number| number.to_string())
                };
                allowed.push(format!("{kind} {}:{} {}", number(rule.major), number(rule.minor), rule.access));
            }
            (false, false) => {
                return Err(Reason("`linux.resources.devices`: a rule that takes back a device".into()));
            }
        }
    }
    if allows_all {
        return Ok(vec![write("devices.allow", "a".into())]);
    }
    let defaults = DEVICES.iter().filter(|(_, _, _, path)| !path.is_some_and(|path| paths.contains(&path)));
    for rule in defaults.map(|(kind, number, access, _)| format!("{kind} {number} {access}")) {
        if !allowed.contains(&rule) {
            allowed.push(rule);
        }
    }
    let allowed = allowed.into_iter().map(|rule| write("devices.allow", rule));
    Ok(std::iter::once(write("devices.deny", "a".into())).chain(allowed).collect())
}

fn setting(controller: &'static str, file: &str, value: String) -> Setting {
    Setting { controller, file: file.into(), value, tolerates: None }
}
