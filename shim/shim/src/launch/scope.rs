//! The scope of systemd that is a container's cgroup, where a specification names one as `slice:prefix:name`.

use std::io;
use std::sync::mpsc::sync_channel;
use std::time::Duration;

use cgroups_rs::systemd::props::PropertiesBuilder;
use cgroups_rs::systemd::{
    CPU_QUOTA_PER_SEC_US, CPU_QUOTA_PERIOD_US, CPU_WEIGHT, MEMORY_LOW, MEMORY_MAX, MEMORY_SWAP_MAX, Property,
    SystemdClient, TASKS_MAX, cpuset,
};

use crate::spec::launch::Setting;

/// How long systemd may take to answer; what programs usually wait on its bus.
const LIMIT: Duration = Duration::from_secs(25);
/// Of which unit of time systemd counts the processor time that is allowed, and how finely, in microseconds.
const SECOND_US: u64 = 1_000_000;
const QUOTA_STEP_US: u64 = 10_000;
/// What no constant of the library stands for.
const MEMORY_HIGH: &str = "MemoryHigh";
const MEMORY_MIN: &str = "MemoryMin";
/// No limit.
const INFINITY: u64 = u64::MAX;

/// A scope, whether it is there or not.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Scope {
    unit: String,
    slice: String,
}

impl Scope {
    /// The one that this `cgroupsPath` names. `None` for a path of another form, and for one without a slice or of a slice.
    pub(super) fn named(cgroups_path: &str) -> Option<Self> {
        match cgroups_path.split(':').collect::<Vec<_>>()[..] {
            [slice, prefix, name] if !slice.is_empty() && !name.ends_with(".slice") => {
                Some(Self { unit: format!("{prefix}-{name}.scope"), slice: slice.into() })
            }
            _ => None,
        }
    }

    /// Asks systemd to make it for the process `pid`, with what is in `settings` of the things that it writes itself: it writes them
    /// again whenever it reads its configuration anew. The process is moved into it some time later.
    ///
    /// # Errors
    /// systemd's, and those of the bus.
    pub(super) fn make(&self, id: &str, pid: u32, settings: &[Setting]) -> io::Result<()> {
        let made = PropertiesBuilder::default_cgroup(&self.slice, &self.unit);
        let mut properties = made.description(format!("skiff container {id}")).pids(vec![pid]).build();
        properties.extend(properties_of(settings));
        let unit = self.unit.clone();
        self.ask("make", LIMIT, move || SystemdClient::new(&unit, properties)?.start())
    }

    /// Tells systemd what has become of these settings.
    ///
    /// # Errors
    /// systemd's, and those of the bus.
    pub(super) fn update(&self, settings: &[Setting]) -> io::Result<()> {
        let (unit, properties) = (self.unit.clone(), properties_of(settings));
        self.ask("update", LIMIT, move || SystemdClient::new(&unit, Vec::new())?.set_properties(&properties))
    }

    /// Removes it. One that is gone is no error.
    ///
    /// # Errors
    /// systemd's, and those of the bus.
    pub(super) fn remove(&self) -> io::Result<()> {
        let unit = self.unit.clone();
        self.ask("remove", LIMIT, move || SystemdClient::new(&unit, Vec::new())?.stop())
    }

    /// Waits for systemd, but for no longer than `limit`. A question that it has not answered by then is left to a thread of its own.
    fn ask(
        &self,
        doing: &str,
        limit: Duration,
        question: impl FnOnce() -> cgroups_rs::systemd::dbus::error::Result<()> + Send + 'static,
    ) -> io::Result<()> {
        let (answer, answered) = sync_channel(1);
        // Whoever asked may be gone.
        std::thread::Builder::new().name("systemd".into()).spawn(move || drop(answer.send(question())))?;
        let words = match answered.recv_timeout(limit) {
            Ok(Ok(())) => return Ok(()),
            Ok(Err(error)) => crate::error::chain(&error),
            Err(_) => format!("it has not answered within {} s", limit.as_secs()),
        };
        Err(io::Error::other(format!("systemd cannot {doing} the scope `{}`: {words}", self.unit)))
    }
}

/// What systemd calls these settings; what it cannot be told is left out.
fn properties_of(settings: &[Setting]) -> Vec<Property<'static>> {
    settings.iter().flat_map(|setting| property_of(&setting.file, &setting.value)).collect()
}

fn property_of(file: &str, value: &str) -> Vec<Property<'static>> {
    let limit = |name: &'static str| number(value).map(|limit| (name, limit.into())).into_iter().collect();
    let places = |places: cgroups_rs::systemd::error::Result<(&'static str, Vec<u8>)>| {
        places.into_iter().map(|(name, mask)| (name, mask.into())).collect()
    };
    match file {
        "memory.max" => limit(MEMORY_MAX),
        "memory.high" => limit(MEMORY_HIGH),
        "memory.low" => limit(MEMORY_LOW),
        "memory.min" => limit(MEMORY_MIN),
        "memory.swap.max" => limit(MEMORY_SWAP_MAX),
        "pids.max" => limit(TASKS_MAX),
        "cpu.weight" => limit(CPU_WEIGHT),
        "cpu.max" => quota(value),
        "cpuset.cpus" => places(cpuset::cpus(value)),
        "cpuset.mems" => places(cpuset::mems(value)),
        _ => Vec::new(),
    }
}

/// A quota and its period, as in `cpu.max`.
fn quota(value: &str) -> Vec<Property<'static>> {
    let Some((Some(quota_us), Some(period_us))) =
        value.split_once(' ').map(|(quota, period)| (number(quota), number(period)))
    else {
        return Vec::new();
    };
    // systemd rounds down, so this is rounded up.
    let per_second_us = match quota_us {
        INFINITY => INFINITY,
        _ => (quota_us.saturating_mul(SECOND_US) / period_us.max(1)).next_multiple_of(QUOTA_STEP_US),
    };
    vec![(CPU_QUOTA_PERIOD_US, period_us.into()), (CPU_QUOTA_PER_SEC_US, per_second_us.into())]
}

fn number(value: &str) -> Option<u64> {
    if value == "max" { Some(INFINITY) } else { value.trim().parse().ok() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_path_of_three_parts_names_a_scope() {
        let scope = |unit: &str, slice: &str| Some(Scope { unit: unit.into(), slice: slice.into() });
        for (path, expected) in [
            ("kubepods-pod1.slice:cri-containerd:abc", scope("cri-containerd-abc.scope", "kubepods-pod1.slice")),
            ("/kubepods/pod1/abc", None),
            ("", None),
            (":cri:abc", None),
            ("a.slice:cri:b.slice", None),
        ] {
            assert_eq!(Scope::named(path), expected, "{path}");
        }
    }

    #[test]
    fn systemd_is_not_waited_for_for_ever() {
        let scope = Scope::named("a.slice:cri:b").unwrap();
        let (asked, silent) = std::sync::mpsc::channel::<()>();
        let question = move || {
            silent.recv().ok();
            Ok(())
        };
        let error = scope.ask("make", Duration::ZERO, question).unwrap_err();
        assert_eq!(error.to_string(), "systemd cannot make the scope `cri-b.scope`: it has not answered within 0 s");
        drop(asked);
        scope.ask("make", LIMIT, || Ok(())).unwrap();
    }

    #[test]
    fn systemd_is_told_what_is_written() {
        let told = |file: &str, value: &str| format!("{:?}", property_of(file, value));
        for (file, value, expected) in [
            ("memory.max", "67108864", r#"[("MemoryMax", U64(67108864))]"#),
            ("memory.swap.max", "max", r#"[("MemorySwapMax", U64(18446744073709551615))]"#),
            ("pids.max", "100", r#"[("TasksMax", U64(100))]"#),
            (
                "cpu.max",
                "50000 100000",
                r#"[("CPUQuotaPeriodUSec", U64(100000)), ("CPUQuotaPerSecUSec", U64(500000))]"#,
            ),
            (
                "cpu.max",
                "33333 100000",
                r#"[("CPUQuotaPeriodUSec", U64(100000)), ("CPUQuotaPerSecUSec", U64(340000))]"#,
            ),
            (
                "cpu.max",
                "max 100000",
                r#"[("CPUQuotaPeriodUSec", U64(100000)), ("CPUQuotaPerSecUSec", U64(18446744073709551615))]"#,
            ),
            ("cpu.idle", "1", "[]"),
            ("memory.high", "10%", "[]"),
        ] {
            assert_eq!(told(file, value), expected, "{file}");
        }
        assert!(told("cpuset.cpus", "0-1").starts_with(r#"[("AllowedCPUs", "#));
        assert!(told("cpuset.mems", "0").starts_with(r#"[("AllowedMemoryNodes", "#));
    }
}
