//! Limits in the files of cgroup v1.

use super::limits::{Limits, Setting, Tolerated, setting};
use crate::spec::launch::reason::Reason;
use crate::spec::launch::strict;

pub(super) fn settings(limits: &Limits, current_bytes: Option<u64>) -> Result<Vec<Setting>, Reason> {
    // The OCI runtime refuses them there.
    if !limits.unified.is_empty() {
        return Err(Reason("`linux.resources`: `unified` on cgroup v1".into()));
    }
    let mut settings = of_memory(&limits.memory, current_bytes);
    settings.extend(of_cpu(&limits.cpu));
    settings.extend(limits.of_places());
    settings.extend(limits.of_processes());
    settings.extend(limits.pages.iter().map(|limit| {
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

fn of_cpu(cpu: &strict::Cpu) -> impl Iterator<Item = Setting> {
    let early = |has_quota: bool| has_quota.then_some(Tolerated::Early);
    let has_quota = cpu.quota != 0;
    let shares = (cpu.shares != 0).then(|| setting("cpu", "cpu.shares", cpu.shares.to_string()));
    let period = || (cpu.period != 0).then(|| setting("cpu", "cpu.cfs_period_us", cpu.period.to_string()));
    let burst = cpu.burst.map(|burst| {
        let setting = setting("cpu", "cpu.cfs_burst_us", burst.to_string());
        Setting { tolerates: Some(Tolerated::Missing), ..setting }
    });
    let quota = has_quota.then(|| setting("cpu", "cpu.cfs_quota_us", cpu.quota.to_string()));
    let idle = cpu.idle.map(|idle| setting("cpu", "cpu.idle", idle.to_string()));
    // A period may be too short for the quota that was there, and long enough for the new one.
    let first = period().map(|setting| Setting { tolerates: early(has_quota), ..setting });
    let again = has_quota.then(period).flatten();
    [shares, first, quota, again, burst, idle].into_iter().flatten()
}
