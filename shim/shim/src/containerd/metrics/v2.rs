//! The metrics of cgroup v2: <https://docs.kernel.org/admin-guide/cgroup-v2.html>.

use std::collections::HashMap;
use std::io;
use std::path::Path;

use containerd_shim_protos::cgroups_v2::metrics::{
    CPUStat, HugeTlbStat, IOEntry, IOStat, MemoryEvents, MemoryStat, Metrics, PSIData, PSIStats, PidsStat, RdmaEntry,
    RdmaStat,
};
use protobuf::MessageField;

use super::read;
use skiff_linux::cgroup::Cgroup;

/// Reads the metrics from the container's cgroup.
pub(super) fn metrics(cgroup: &Cgroup) -> io::Result<Metrics> {
    match cgroup.dir("") {
        Some(dir) => metrics_in(dir),
        None => Ok(Metrics::new()),
    }
}

pub(super) fn metrics_in(dir: &Path) -> io::Result<Metrics> {
    Ok(Metrics {
        pids: MessageField::some(PidsStat {
            current: read::value(dir, "pids.current")?,
            limit: read::value(dir, "pids.max")?,
            ..PidsStat::default()
        }),
        cpu: MessageField::some(cpu(dir)?),
        memory: MessageField::some(memory(dir)?),
        memory_events: read::keyed(dir, "memory.events")?.map(|stat| memory_events(&stat)).into(),
        io: MessageField::some(IOStat {
            usage: io_entries(&read::text(dir, "io.stat")?.unwrap_or_default()),
            psi: pressure(dir, "io.pressure")?,
            ..IOStat::default()
        }),
        rdma: MessageField::some(rdma(dir)?),
        hugetlb: huge_pages(dir)?,
        ..Metrics::default()
    })
}

fn cpu(dir: &Path) -> io::Result<CPUStat> {
    let stat = read::keyed(dir, "cpu.stat")?.unwrap_or_default();
    let value = |key: &str| stat.get(key).copied().unwrap_or(0);
    Ok(CPUStat {
        usage_usec: value("usage_usec"),
        user_usec: value("user_usec"),
        system_usec: value("system_usec"),
        nr_periods: value("nr_periods"),
        nr_throttled: value("nr_throttled"),
        throttled_usec: value("throttled_usec"),
        nr_bursts: value("nr_bursts"),
        burst_usec: value("burst_usec"),
        psi: pressure(dir, "cpu.pressure")?,
        ..CPUStat::default()
    })
}

fn memory(dir: &Path) -> io::Result<MemoryStat> {
    Ok(MemoryStat {
        usage: read::value(dir, "memory.current")?,
        usage_limit: read::value(dir, "memory.max")?,
        max_usage: read::value(dir, "memory.peak")?,
        swap_usage: read::value(dir, "memory.swap.current")?,
        swap_limit: read::value(dir, "memory.swap.max")?,
        swap_max_usage: read::value(dir, "memory.swap.peak")?,
        psi: pressure(dir, "memory.pressure")?,
        ..memory_stat(&read::keyed(dir, "memory.stat")?.unwrap_or_default())
    })
}

fn memory_stat(stat: &HashMap<String, u64>) -> MemoryStat {
    let value = |key: &str| stat.get(key).copied().unwrap_or(0);
    MemoryStat {
        anon: value("anon"),
        file: value("file"),
        kernel_stack: value("kernel_stack"),
        slab: value("slab"),
        sock: value("sock"),
        shmem: value("shmem"),
        file_mapped: value("file_mapped"),
        file_dirty: value("file_dirty"),
        file_writeback: value("file_writeback"),
        anon_thp: value("anon_thp"),
        inactive_anon: value("inactive_anon"),
        active_anon: value("active_anon"),
        inactive_file: value("inactive_file"),
        active_file: value("active_file"),
        unevictable: value("unevictable"),
        slab_reclaimable: value("slab_reclaimable"),
        slab_unreclaimable: value("slab_unreclaimable"),
        pgfault: value("pgfault"),
        pgmajfault: value("pgmajfault"),
        workingset_refault: value("workingset_refault"),
        workingset_activate: value("workingset_activate"),
        workingset_nodereclaim: value("workingset_nodereclaim"),
        pgrefill: value("pgrefill"),
        pgscan: value("pgscan"),
        pgsteal: value("pgsteal"),
        pgactivate: value("pgactivate"),
        pgdeactivate: value("pgdeactivate"),
        pglazyfree: value("pglazyfree"),
        pglazyfreed: value("pglazyfreed"),
        thp_fault_alloc: value("thp_fault_alloc"),
        thp_collapse_alloc: value("thp_collapse_alloc"),
        ..MemoryStat::default()
    }
}

fn memory_events(stat: &HashMap<String, u64>) -> MemoryEvents {
    let value = |key: &str| stat.get(key).copied().unwrap_or(0);
    MemoryEvents {
        low: value("low"),
        high: value("high"),
        max: value("max"),
        oom: value("oom"),
        oom_kill: value("oom_kill"),
        oom_group_kill: value("oom_group_kill"),
        ..MemoryEvents::default()
    }
}

/// `8:0 rbytes=1 wbytes=2 rios=3 wios=4 dbytes=5 dios=6`.
pub(super) fn io_entries(text: &str) -> Vec<IOEntry> {
    let parse = |line: &str| {
        let (device, pairs) = line.split_once(' ')?;
        let (major, minor) = read::device_number(device)?;
        let value = |key: &str| {
            let pair = pairs.split_whitespace().find_map(|pair| pair.strip_prefix(key)?.strip_prefix('='));
            pair.and_then(read::number).unwrap_or(0)
        };
        Some(IOEntry {
            major,
            minor,
            rbytes: value("rbytes"),
            wbytes: value("wbytes"),
            rios: value("rios"),
            wios: value("wios"),
            ..IOEntry::default()
        })
    };
    text.lines().filter_map(parse).collect()
}

fn pressure(dir: &Path, file: &str) -> io::Result<MessageField<PSIStats>> {
    Ok(read::text(dir, file)?.map(|text| pressure_of(&text)).into())
}

/// `some avg10=0.00 avg60=0.00 avg300=0.00 total=0` and the same with `full`
/// (<https://docs.kernel.org/accounting/psi.html>).
pub(super) fn pressure_of(text: &str) -> PSIStats {
    let data_of = |kind: &str| {
        let line = text.lines().find_map(|line| line.strip_prefix(kind))?;
        let field = |key: &str| line.split_whitespace().find_map(|pair| pair.strip_prefix(key)?.strip_prefix('='));
        let average = |key: &str| field(key).and_then(|value| value.parse().ok()).unwrap_or(0.0);
        Some(PSIData {
            avg10: average("avg10"),
            avg60: average("avg60"),
            avg300: average("avg300"),
            total: field("total").and_then(read::number).unwrap_or(0),
            ..PSIData::default()
        })
    };
    PSIStats { some: data_of("some ").into(), full: data_of("full ").into(), ..PSIStats::default() }
}

fn huge_pages(dir: &Path) -> io::Result<Vec<HugeTlbStat>> {
    let stat = |size: String| {
        let events = read::keyed(dir, &format!("hugetlb.{size}.events"))?.unwrap_or_default();
        Ok(HugeTlbStat {
            current: read::value(dir, &format!("hugetlb.{size}.current"))?,
            max: read::value(dir, &format!("hugetlb.{size}.max"))?,
            failcnt: events.get("max").copied().unwrap_or(0),
            pagesize: size,
            ..HugeTlbStat::default()
        })
    };
    read::huge_page_sizes(dir, "current")?.into_iter().map(stat).collect()
}

fn rdma(dir: &Path) -> io::Result<RdmaStat> {
    let entries = |file: &str| {
        let entry = |count: read::RdmaCount| RdmaEntry {
            device: count.device,
            hca_handles: count.handles,
            hca_objects: count.objects,
            ..RdmaEntry::default()
        };
        let text = read::text(dir, file)?.unwrap_or_default();
        io::Result::Ok(read::rdma_counts(&text).into_iter().map(entry).collect())
    };
    Ok(RdmaStat { current: entries("rdma.current")?, limit: entries("rdma.max")?, ..RdmaStat::default() })
}
