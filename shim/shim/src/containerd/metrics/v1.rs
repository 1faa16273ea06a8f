//! The metrics of cgroup v1: <https://docs.kernel.org/admin-guide/cgroup-v1/>.

use std::collections::HashMap;
use std::fs;
use std::io;
use std::path::Path;

use containerd_shim_protos::cgroups::metrics::{
    BlkIOEntry, BlkIOStat, CPUStat, CPUUsage, HugetlbStat, MemoryEntry, MemoryOomControl, MemoryStat, Metrics,
    PidsStat, RdmaEntry, RdmaStat, Throttle,
};
use protobuf::MessageField;

use super::read;
use skiff_linux::cgroup::Cgroup;

/// A tick of `cpuacct.stat`: the kernel shows user space 100 of them a second (USER_HZ).
const TICK_NANOS: u64 = 10_000_000;

type Field = fn(&mut BlkIOStat) -> &mut Vec<BlkIOEntry>;

/// The files of the schedulers, the one in use first; each list is taken whole, if its first file has anything.
const BLOCK_FILES: [&[(&str, Field)]; 4] = [
    &[
        ("blkio.bfq.io_service_bytes_recursive", |stat| &mut stat.io_service_bytes_recursive),
        ("blkio.bfq.io_serviced_recursive", |stat| &mut stat.io_serviced_recursive),
        ("blkio.bfq.io_queued_recursive", |stat| &mut stat.io_queued_recursive),
        ("blkio.bfq.io_service_time_recursive", |stat| &mut stat.io_service_time_recursive),
        ("blkio.bfq.io_wait_time_recursive", |stat| &mut stat.io_wait_time_recursive),
        ("blkio.bfq.io_merged_recursive", |stat| &mut stat.io_merged_recursive),
        ("blkio.bfq.time_recursive", |stat| &mut stat.io_time_recursive),
        ("blkio.bfq.sectors_recursive", |stat| &mut stat.sectors_recursive),
    ],
    &[
        ("blkio.io_service_bytes_recursive", |stat| &mut stat.io_service_bytes_recursive),
        ("blkio.io_serviced_recursive", |stat| &mut stat.io_serviced_recursive),
        ("blkio.io_queued_recursive", |stat| &mut stat.io_queued_recursive),
        ("blkio.io_service_time_recursive", |stat| &mut stat.io_service_time_recursive),
        ("blkio.io_wait_time_recursive", |stat| &mut stat.io_wait_time_recursive),
        ("blkio.io_merged_recursive", |stat| &mut stat.io_merged_recursive),
        ("blkio.time_recursive", |stat| &mut stat.io_time_recursive),
        ("blkio.sectors_recursive", |stat| &mut stat.sectors_recursive),
    ],
    &[
        ("blkio.throttle.io_service_bytes_recursive", |stat| &mut stat.io_service_bytes_recursive),
        ("blkio.throttle.io_serviced_recursive", |stat| &mut stat.io_serviced_recursive),
    ],
    &[
        ("blkio.throttle.io_service_bytes", |stat| &mut stat.io_service_bytes_recursive),
        ("blkio.throttle.io_serviced", |stat| &mut stat.io_serviced_recursive),
    ],
];

/// Reads the metrics from the hierarchies in which the container has a cgroup of its own.
pub(super) fn metrics(cgroup: &Cgroup) -> io::Result<Metrics> {
    let partitions = fs::read_to_string("/proc/partitions").unwrap_or_default();
    metrics_in(|controller| cgroup.dir(controller), &read::devices(&partitions))
}

pub(super) fn metrics_in<'a>(
    dir_of: impl Fn(&str) -> Option<&'a Path>,
    devices: &HashMap<(u64, u64), String>,
) -> io::Result<Metrics> {
    Ok(Metrics {
        cpu: MessageField::some(CPUStat {
            usage: MessageField::some(dir_of("cpuacct").map(cpu_usage).transpose()?.unwrap_or_default()),
            throttling: MessageField::some(dir_of("cpu").map(throttling).transpose()?.unwrap_or_default()),
            ..CPUStat::default()
        }),
        memory: dir_of("memory").map(memory).transpose()?.flatten().into(),
        memory_oom_control: dir_of("memory").map(oom_control).transpose()?.flatten().into(),
        pids: dir_of("pids").map(pids).transpose()?.flatten().into(),
        blkio: dir_of("blkio").map(|dir| block(dir, devices)).transpose()?.into(),
        hugetlb: dir_of("hugetlb").map(huge_pages).transpose()?.unwrap_or_default(),
        rdma: dir_of("rdma").map(rdma).transpose()?.into(),
        ..Metrics::default()
    })
}

fn cpu_usage(dir: &Path) -> io::Result<CPUUsage> {
    let per_cpu = read::text(dir, "cpuacct.usage_percpu")?.unwrap_or_default();
    let stat = read::keyed(dir, "cpuacct.stat")?.unwrap_or_default();
    let nanos_of = |key: &str| stat.get(key).copied().unwrap_or(0).saturating_mul(TICK_NANOS);
    Ok(CPUUsage {
        total: read::value(dir, "cpuacct.usage")?,
        kernel: nanos_of("system"),
        user: nanos_of("user"),
        per_cpu: per_cpu.split_whitespace().filter_map(read::number).collect(),
        ..CPUUsage::default()
    })
}

fn throttling(dir: &Path) -> io::Result<Throttle> {
    let stat = read::keyed(dir, "cpu.stat")?.unwrap_or_default();
    let value = |key: &str| stat.get(key).copied().unwrap_or(0);
    Ok(Throttle {
        periods: value("nr_periods"),
        throttled_periods: value("nr_throttled"),
        throttled_time: value("throttled_time"),
        ..Throttle::default()
    })
}

fn memory(dir: &Path) -> io::Result<Option<MemoryStat>> {
    let Some(stat) = read::keyed(dir, "memory.stat")? else { return Ok(None) };
    Ok(Some(MemoryStat {
        usage: memory_entry(dir, "memory")?,
        swap: memory_entry(dir, "memory.memsw")?,
        kernel: memory_entry(dir, "memory.kmem")?,
        kernel_tcp: memory_entry(dir, "memory.kmem.tcp")?,
        ..memory_stat(&stat)
    }))
}

/// Always there, as with containerd: its clients do not expect less.
fn memory_entry(dir: &Path, name: &str) -> io::Result<MessageField<MemoryEntry>> {
    Ok(MessageField::some(MemoryEntry {
        limit: read::value(dir, &format!("{name}.limit_in_bytes"))?,
        usage: read::value(dir, &format!("{name}.usage_in_bytes"))?,
        max: read::value(dir, &format!("{name}.max_usage_in_bytes"))?,
        failcnt: read::value(dir, &format!("{name}.failcnt"))?,
        ..MemoryEntry::default()
    }))
}

fn memory_stat(stat: &HashMap<String, u64>) -> MemoryStat {
    let value = |key: &str| stat.get(key).copied().unwrap_or(0);
    MemoryStat {
        cache: value("cache"),
        rss: value("rss"),
        rss_huge: value("rss_huge"),
        mapped_file: value("mapped_file"),
        dirty: value("dirty"),
        writeback: value("writeback"),
        pg_pg_in: value("pgpgin"),
        pg_pg_out: value("pgpgout"),
        pg_fault: value("pgfault"),
        pg_maj_fault: value("pgmajfault"),
        inactive_anon: value("inactive_anon"),
        active_anon: value("active_anon"),
        inactive_file: value("inactive_file"),
        active_file: value("active_file"),
        unevictable: value("unevictable"),
        hierarchical_memory_limit: value("hierarchical_memory_limit"),
        hierarchical_swap_limit: value("hierarchical_memsw_limit"),
        total_cache: value("total_cache"),
        total_rss: value("total_rss"),
        total_rss_huge: value("total_rss_huge"),
        total_mapped_file: value("total_mapped_file"),
        total_dirty: value("total_dirty"),
        total_writeback: value("total_writeback"),
        total_pg_pg_in: value("total_pgpgin"),
        total_pg_pg_out: value("total_pgpgout"),
        total_pg_fault: value("total_pgfault"),
        total_pg_maj_fault: value("total_pgmajfault"),
        total_inactive_anon: value("total_inactive_anon"),
        total_active_anon: value("total_active_anon"),
        total_inactive_file: value("total_inactive_file"),
        total_active_file: value("total_active_file"),
        total_unevictable: value("total_unevictable"),
        ..MemoryStat::default()
    }
}

fn oom_control(dir: &Path) -> io::Result<Option<MemoryOomControl>> {
    let Some(stat) = read::keyed(dir, "memory.oom_control")? else { return Ok(None) };
    let value = |key: &str| stat.get(key).copied().unwrap_or(0);
    Ok(Some(MemoryOomControl {
        oom_kill_disable: value("oom_kill_disable"),
        under_oom: value("under_oom"),
        oom_kill: value("oom_kill"),
        ..MemoryOomControl::default()
    }))
}

fn pids(dir: &Path) -> io::Result<Option<PidsStat>> {
    let Some(current) = read::text(dir, "pids.current")?.and_then(|text| read::number(&text)) else { return Ok(None) };
    // containerd's v1 metrics say "no limit" with 0.
    let limit = Some(read::value(dir, "pids.max")?).filter(|limit| *limit != u64::MAX).unwrap_or(0);
    Ok(Some(PidsStat { current, limit, ..PidsStat::default() }))
}

fn block(dir: &Path, devices: &HashMap<(u64, u64), String>) -> io::Result<BlkIOStat> {
    let mut stat = BlkIOStat::new();
    for files in BLOCK_FILES {
        for (file, field) in files {
            *field(&mut stat) = block_entries(&read::text(dir, file)?.unwrap_or_default(), devices);
        }
        if files.first().is_some_and(|(_, field)| !field(&mut stat).is_empty()) {
            break;
        }
    }
    Ok(stat)
}

fn block_entries(text: &str, devices: &HashMap<(u64, u64), String>) -> Vec<BlkIOEntry> {
    let entry = |count: read::BlockCount| BlkIOEntry {
        op: count.operation,
        device: devices.get(&count.device).cloned().unwrap_or_default(),
        major: count.device.0,
        minor: count.device.1,
        value: count.count,
        ..BlkIOEntry::default()
    };
    read::block_counts(text).into_iter().map(entry).collect()
}

fn huge_pages(dir: &Path) -> io::Result<Vec<HugetlbStat>> {
    let stat = |size: String| {
        Ok(HugetlbStat {
            usage: read::value(dir, &format!("hugetlb.{size}.usage_in_bytes"))?,
            max: read::value(dir, &format!("hugetlb.{size}.max_usage_in_bytes"))?,
            failcnt: read::value(dir, &format!("hugetlb.{size}.failcnt"))?,
            pagesize: size,
            ..HugetlbStat::default()
        })
    };
    read::huge_page_sizes(dir, "usage_in_bytes")?.into_iter().map(stat).collect()
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
