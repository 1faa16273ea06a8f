//! Limits in the files of cgroup v2. Values that a specification gives in the terms of v1 are converted as the OCI runtime does.

use super::limits::{Limits, Setting, Tolerated, setting};
use crate::spec::launch::reason::Reason;
use crate::spec::launch::strict;

/// The period that the kernel has unless it is told another one, in microseconds.
const PERIOD_US: u64 = 100_000;
/// The smallest share of processor time, which has the smallest weight.
const SHARES_MIN: u64 = 2;
/// The largest one.
const SHARES_MAX: u64 = 262_144;

pub(super) fn settings(limits: &Limits) -> Result<Vec<Setting>, Reason> {
    let mut settings: Vec<Setting> = limits.of_processes().into_iter().collect();
    settings.extend(of_memory(&limits.memory)?);
    settings.extend(of_cpu(&limits.cpu));
    settings.extend(limits.of_places());
    for limit in &limits.pages {
        let file = |suffix: &str| {
            setting("hugetlb", &format!("hugetlb.{}.{suffix}", limit.page_size), limit.limit.to_string())
        };
        settings.extend([file("max"), Setting { tolerates: Some(Tolerated::Missing), ..file("rsvd.max") }]);
    }
    for (file, value) in &limits.unified {
        if file.contains('/') {
            return Err(Reason(format!("`linux.resources.unified`: `{file}` is not the name of a file")));
        }
        settings.extend(value.split_inclusive('\n').map(|line| setting("", file, line.into())));
    }
    Ok(settings)
}

fn of_memory(memory: &strict::Memory) -> Result<impl Iterator<Item = Setting>, Reason> {
    let text = |value: i64| if value == -1 { "max".into() } else { value.to_string() };
    let limit = |file: &str, value: i64| (value != 0).then(|| setting("memory", file, text(value)));
    let swap = swap_of(memory)?.map(|swap| {
        // A kernel that does not count swap does not limit it either.
        let tolerates = (swap <= 0).then_some(Tolerated::Missing);
        Setting { tolerates, ..setting("memory", "memory.swap.max", text(swap)) }
    });
    Ok([swap, limit("memory.max", memory.limit), limit("memory.low", memory.reservation)].into_iter().flatten())
}

/// The swap alone, where the specification has the sum of memory and swap; -1 means no limit.
fn swap_of(memory: &strict::Memory) -> Result<Option<i64>, Reason> {
    match (memory.limit, memory.swap) {
        (-1, 0) | (_, -1) => Ok(Some(-1)),
        (_, 0) => Ok(None),
        (-1, swap) => Ok(Some(swap)),
        (limit, swap) if limit > 0 && swap >= limit => Ok(Some(swap - limit)),
        (limit, swap) => {
            Err(Reason(format!("`linux.resources.memory`: a limit of {swap} bytes with swap, and {limit} without")))
        }
    }
}

fn of_cpu(cpu: &strict::Cpu) -> impl Iterator<Item = Setting> {
    let has_quota = cpu.quota != 0;
    let idle = cpu.idle.map(|idle| setting("cpu", "cpu.idle", idle.to_string()));
    let weight = weight_of(cpu.shares).map(|weight| setting("cpu", "cpu.weight", weight.to_string()));
    let burst = || cpu.burst.map(|burst| setting("cpu", "cpu.max.burst", burst.to_string()));
    let max = (has_quota || cpu.period != 0).then(|| {
        let quota = if cpu.quota > 0 { cpu.quota.to_string() } else { "max".into() };
        let period = if cpu.period == 0 { PERIOD_US } else { cpu.period };
        setting("cpu", "cpu.max", format!("{quota} {period}"))
    });
    // A burst may be too large for the quota that was there, and small enough for the new one.
    let first = burst().map(|setting| Setting { tolerates: has_quota.then_some(Tolerated::Early), ..setting });
    let again = has_quota.then(burst).flatten();
    [idle, weight, first, max, again].into_iter().flatten()
}

/// The weight that stands for `shares`, of which 1024 are the usual 100. `None` where nothing is said.
#[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "it is between 1 and 10,000")]
#[expect(clippy::cast_precision_loss, reason = "shares are less than 2^18 there")]
fn weight_of(shares: u64) -> Option<u64> {
    match shares {
        0 => None,
        1..=SHARES_MIN => Some(1),
        SHARES_MAX.. => Some(10_000),
        _ => {
            // A quadratic function through the smallest, the usual and the largest one.
            let log = (shares as f64).log2();
            let exponent = (log * log + 125.0 * log) / 612.0 - 7.0 / 34.0;
            Some(10_f64.powf(exponent).ceil() as u64)
        }
    }
}
