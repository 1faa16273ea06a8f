use std::fs;
use std::io::{Read, Write};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use containerd_shim_protos::{cgroups, cgroups_v2};

use super::*;

/// A fresh cgroup, removed at the end with everything in it.
struct Scratch(Cgroup);

impl Scratch {
    fn new() -> Self {
        let cgroup = Cgroup::from_spec(&Self::path(), false, "").unwrap();
        cgroup.create_empty().unwrap();
        Self(cgroup)
    }

    fn path() -> String {
        static COUNT: AtomicUsize = AtomicUsize::new(0);
        format!("/skiff-test-metrics-{}-{}", std::process::id(), COUNT.fetch_add(1, Ordering::Relaxed))
    }

    /// The unified tree of a hybrid node, taken for a v2 node; none if it is not mounted.
    fn unified() -> Option<Self> {
        let mountpoint = Path::new("/sys/fs/cgroup/unified");
        let cgroup = Cgroup::unified(mountpoint, mountpoint.join(Self::path().trim_start_matches('/')));
        mountpoint.join("cgroup.procs").exists().then(|| {
            cgroup.create_empty().unwrap();
            Self(cgroup)
        })
    }

    /// A process in the cgroup that uses the processor.
    fn busy(&self) -> Child {
        let mut command = Command::new("sh");
        command.args(["-c", "read go; echo; while :; do :; done"]);
        let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
        self.0.join(child.id()).unwrap();
        child.stdin.as_mut().unwrap().write_all(b"go\n").unwrap();
        child.stdout.as_mut().unwrap().read_exact(&mut [0]).unwrap();
        child
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        self.0.kill_all().unwrap();
        self.0.remove().unwrap();
    }
}

/// The metrics once they say that the processor was used: total, user and kernel time, in the unit of the version.
fn once_busy<M: Message + std::fmt::Debug>(scratch: &Scratch, type_url: &str, used: impl Fn(&M) -> bool) -> M {
    let deadline = Instant::now() + Duration::from_secs(20);
    loop {
        let any = collect(&scratch.0).unwrap();
        assert_eq!(any.type_url, type_url);
        let metrics = M::parse_from_bytes(&any.value).unwrap();
        if used(&metrics) {
            return metrics;
        }
        assert!(Instant::now() < deadline, "{metrics:?}");
        std::thread::yield_now();
    }
}

#[test]
fn a_busy_process_shows_in_the_metrics_of_this_node() {
    let scratch = Scratch::new();
    let mut child = scratch.busy();
    match scratch.0.hierarchy() {
        Hierarchy::V1 => check_v1(&scratch),
        Hierarchy::V2 => check_v2(&scratch),
    }
    scratch.0.kill_all().unwrap();
    child.wait().unwrap();
}

fn check_v1(scratch: &Scratch) {
    fs::write(scratch.0.dir("pids").unwrap().join("pids.max"), "10").unwrap();
    fs::write(scratch.0.dir("memory").unwrap().join("memory.limit_in_bytes"), "64M").unwrap();
    let cpu = scratch.0.dir("cpu").unwrap();
    fs::write(cpu.join("cpu.cfs_period_us"), "10000").unwrap();
    fs::write(cpu.join("cpu.cfs_quota_us"), "5000").unwrap();
    let metrics = once_busy(scratch, "io.containerd.cgroups.v1.Metrics", |metrics: &cgroups::metrics::Metrics| {
        metrics.cpu.usage.user > 0 && metrics.cpu.throttling.throttled_time > 0 && metrics.memory.rss > 0
    });
    let usage = &metrics.cpu.usage;
    assert!(usage.total > 1_000_000 && usage.total < 20_000_000_000, "{usage:?}");
    assert!(usage.per_cpu.iter().sum::<u64>() > 0, "{usage:?}");
    let throttling = &metrics.cpu.throttling;
    assert!(throttling.throttled_periods > 0 && throttling.periods >= throttling.throttled_periods, "{throttling:?}");
    assert_eq!((metrics.pids.current, metrics.pids.limit), (1, 10));
    let memory = &metrics.memory;
    assert!(memory.usage.usage > 0 && memory.usage.max >= memory.usage.usage, "{memory:?}");
    assert_eq!((memory.usage.limit, memory.hierarchical_memory_limit), (64 << 20, 64 << 20));
    assert!(memory.total_rss == memory.rss && memory.pg_fault > 0, "{memory:?}");
    assert!(memory.swap.is_some() && memory.kernel.is_some() && memory.kernel_tcp.is_some());
    assert_eq!(metrics.memory_oom_control.oom_kill, 0);
    assert!(metrics.memory_oom_control.is_some() && metrics.blkio.is_some());
}

fn check_v2(scratch: &Scratch) {
    let metrics = once_busy(scratch, "io.containerd.cgroups.v2.Metrics", |metrics: &cgroups_v2::metrics::Metrics| {
        metrics.cpu.usage_usec > 1000 && metrics.cpu.user_usec > 0 && metrics.memory.anon > 0
    });
    assert_eq!((metrics.pids.current, metrics.pids.limit), (1, u64::MAX));
    assert!(metrics.memory.usage > 0, "{metrics:?}");
    assert_eq!(metrics.memory.usage_limit, u64::MAX);
    assert!(metrics.memory_events.is_some());
}

#[test]
fn a_busy_process_shows_in_the_unified_tree_of_a_hybrid_node() {
    let Some(scratch) = Scratch::unified() else { return };
    let mut child = scratch.busy();
    let metrics = once_busy(&scratch, "io.containerd.cgroups.v2.Metrics", |metrics: &cgroups_v2::metrics::Metrics| {
        metrics.cpu.usage_usec > 1000
    });
    assert!(metrics.cpu.usage_usec >= metrics.cpu.user_usec + metrics.cpu.system_usec - 1, "{metrics:?}");
    scratch.0.kill_all().unwrap();
    child.wait().unwrap();
}

#[test]
fn a_cgroup_that_is_gone_has_no_metrics() {
    for scratch in [Some(Scratch::new()), Scratch::unified()].into_iter().flatten() {
        scratch.0.remove().unwrap();
        assert_eq!(collect(&scratch.0).unwrap_err().kind(), ErrorKind::NotFound);
    }
}

#[test]
fn the_nodes_own_figures_are_not_a_containers() {
    let ours = Cgroup::of_pid(nix::unistd::getpid().as_raw()).unwrap();
    assert_eq!(collect(&ours).unwrap_err().kind(), ErrorKind::NotFound);
}

#[test]
fn a_file_of_a_cgroup_that_is_gone_is_not_found_and_a_missing_file_is_nothing() {
    let scratch = Scratch::new();
    let dir = scratch.0.dir("memory").unwrap();
    assert_eq!(read::text(dir, "no.such.file").unwrap(), None);
    assert_eq!(read::value(dir, "no.such.file").unwrap(), 0);
    assert!(read::keyed(dir, "memory.stat").unwrap().unwrap().len() > 10);
}

#[test]
fn every_file_of_v2_finds_its_field() {
    let dir = tempfile::tempdir().unwrap();
    for (file, text) in [
        ("pids.current", "3\n"),
        ("pids.max", "max\n"),
        ("cpu.stat", "usage_usec 10\nuser_usec 6\nsystem_usec 4\nnr_periods 5\nnr_throttled 2\nthrottled_usec 7\n"),
        (
            "cpu.pressure",
            "some avg10=1.50 avg60=0.20 avg300=0.03 total=42\nfull avg10=0.00 avg60=0.00 avg300=0.00 total=1\n",
        ),
        ("memory.stat", "anon 4096\nfile 8192\nthp_collapse_alloc 9\nsome_new_field 1\n"),
        ("memory.current", "12288\n"),
        ("memory.max", "1048576\n"),
        ("memory.peak", "16384\n"),
        ("memory.swap.max", "max\n"),
        ("memory.events", "low 1\nhigh 2\nmax 3\noom 4\noom_kill 5\noom_group_kill 6\n"),
        ("io.stat", "8:0 rbytes=1 wbytes=2 rios=3 wios=4 dbytes=5 dios=6\n7:1 \n"),
        ("rdma.current", "mlx4_0 hca_handle=2 hca_object=2000\n"),
        ("rdma.max", "mlx4_0 hca_handle=max hca_object=5\n"),
        ("hugetlb.2MB.current", "2097152\n"),
        ("hugetlb.2MB.max", "max\n"),
        ("hugetlb.2MB.events", "max 8\n"),
        ("hugetlb.2MB.rsvd.current", "1\n"),
    ] {
        fs::write(dir.path().join(file), text).unwrap();
    }
    let metrics = v2::metrics_in(dir.path()).unwrap();
    assert_eq!((metrics.pids.current, metrics.pids.limit), (3, u64::MAX));
    let cpu = &metrics.cpu;
    assert_eq!((cpu.usage_usec, cpu.user_usec, cpu.system_usec), (10, 6, 4));
    assert_eq!((cpu.nr_periods, cpu.nr_throttled, cpu.throttled_usec), (5, 2, 7));
    assert_eq!((cpu.psi.some.avg10, cpu.psi.some.total, cpu.psi.full.total), (1.5, 42, 1));
    let memory = &metrics.memory;
    assert_eq!((memory.anon, memory.file, memory.thp_collapse_alloc), (4096, 8192, 9));
    assert_eq!((memory.usage, memory.usage_limit, memory.max_usage), (12288, 1_048_576, 16384));
    assert_eq!((memory.swap_usage, memory.swap_limit), (0, u64::MAX));
    assert!(memory.psi.is_none());
    let events = &metrics.memory_events;
    assert_eq!((events.low, events.max, events.oom, events.oom_kill, events.oom_group_kill), (1, 3, 4, 5, 6));
    let io = &metrics.io.usage;
    assert_eq!((io[0].major, io[0].rbytes, io[0].wbytes, io[0].rios, io[0].wios), (8, 1, 2, 3, 4));
    assert_eq!((io.len(), io[1].major, io[1].minor, io[1].rbytes), (2, 7, 1, 0));
    assert_eq!((metrics.rdma.current[0].hca_handles, metrics.rdma.current[0].hca_objects), (2, 2000));
    assert_eq!((metrics.rdma.limit[0].hca_handles, metrics.rdma.limit[0].hca_objects), (u32::MAX, 5));
    let [huge] = &metrics.hugetlb[..] else { panic!("{metrics:?}") };
    assert_eq!((huge.pagesize.as_str(), huge.current, huge.max, huge.failcnt), ("2MB", 2_097_152, u64::MAX, 8));
}

#[test]
fn every_file_of_v1_finds_its_field() {
    let dir = tempfile::tempdir().unwrap();
    for (file, text) in [
        ("cpuacct.usage", "123456789\n"),
        ("cpuacct.usage_percpu", "100 200 \n"),
        ("cpuacct.stat", "user 7\nsystem 5\n"),
        ("cpu.stat", "nr_periods 9\nnr_throttled 4\nthrottled_time 77\n"),
        (
            "memory.stat",
            "cache 1\nrss 2\npgpgin 3\nhierarchical_memsw_limit 9223372036854771712\ntotal_unevictable 4\n",
        ),
        ("memory.usage_in_bytes", "5\n"),
        ("memory.limit_in_bytes", "9223372036854771712\n"),
        ("memory.memsw.max_usage_in_bytes", "6\n"),
        ("memory.kmem.failcnt", "7\n"),
        ("memory.kmem.tcp.usage_in_bytes", "8\n"),
        ("memory.oom_control", "oom_kill_disable 0\nunder_oom 1\noom_kill 2\n"),
        ("pids.current", "1\n"),
        ("pids.max", "max\n"),
        ("blkio.bfq.io_service_bytes_recursive", "Total 0\n"),
        ("blkio.throttle.io_service_bytes_recursive", "8:0 Read 512\n8:0 Write 0\n9:1 Read 3\nTotal 515\n"),
        ("blkio.throttle.io_serviced_recursive", "8:0 Read 2\nTotal 2\n"),
        ("hugetlb.1GB.usage_in_bytes", "1\n"),
        ("hugetlb.1GB.max_usage_in_bytes", "2\n"),
        ("hugetlb.1GB.failcnt", "3\n"),
        ("hugetlb.1GB.rsvd.usage_in_bytes", "9\n"),
    ] {
        fs::write(dir.path().join(file), text).unwrap();
    }
    let devices = read::devices("major minor  #blocks  name\n\n   8        0   10 sda\n   8        0   10 other\n");
    let metrics = v1::metrics_in(|_| Some(dir.path()), &devices).unwrap();
    let usage = &metrics.cpu.usage;
    assert_eq!((usage.total, usage.user, usage.kernel), (123_456_789, 70_000_000, 50_000_000));
    assert_eq!(usage.per_cpu, [100, 200]);
    let throttling = &metrics.cpu.throttling;
    assert_eq!((throttling.periods, throttling.throttled_periods, throttling.throttled_time), (9, 4, 77));
    let memory = &metrics.memory;
    assert_eq!((memory.cache, memory.rss, memory.pg_pg_in, memory.total_unevictable), (1, 2, 3, 4));
    assert_eq!(memory.hierarchical_swap_limit, 9_223_372_036_854_771_712);
    assert_eq!((memory.usage.usage, memory.usage.limit), (5, 9_223_372_036_854_771_712));
    assert_eq!((memory.swap.max, memory.kernel.failcnt, memory.kernel_tcp.usage), (6, 7, 8));
    assert_eq!((metrics.memory_oom_control.under_oom, metrics.memory_oom_control.oom_kill), (1, 2));
    assert_eq!((metrics.pids.current, metrics.pids.limit), (1, 0));
    let bytes = &metrics.blkio.io_service_bytes_recursive;
    assert_eq!(
        (bytes.len(), bytes[0].device.as_str(), bytes[0].op.as_str(), bytes[0].value),
        (3, "/dev/sda", "Read", 512)
    );
    assert_eq!((bytes[2].device.as_str(), bytes[2].major, bytes[2].minor), ("", 9, 1));
    assert_eq!(metrics.blkio.io_serviced_recursive.len(), 1);
    let [huge] = &metrics.hugetlb[..] else { panic!("{metrics:?}") };
    assert_eq!((huge.pagesize.as_str(), huge.usage, huge.max, huge.failcnt), ("1GB", 1, 2, 3));

    let nothing = v1::metrics_in(|_| None, &devices).unwrap();
    assert!(nothing.memory.is_none() && nothing.pids.is_none() && nothing.blkio.is_none() && nothing.rdma.is_none());
    let empty = tempfile::tempdir().unwrap();
    let nothing = v1::metrics_in(|_| Some(empty.path()), &devices).unwrap();
    assert!(nothing.memory.is_none() && nothing.pids.is_none() && nothing.hugetlb.is_empty());
}

#[test]
fn numbers_are_read_and_oddities_are_not_numbers() {
    let check = |text: &str, expected: Option<u64>| assert_eq!(read::number(text), expected, "`{text}`");
    check("0\n", Some(0));
    check("18446744073709551615", Some(u64::MAX));
    check("max\n", Some(u64::MAX));
    check("-1\n", Some(0));
    check("", None);
    check("18446744073709551616", None);
    check("12 34", None);
}

#[test]
fn block_counts_are_read_with_and_without_operations() {
    let check = |text: &str, expected: &[(u64, u64, &str, u64)]| {
        let counts = read::block_counts(text);
        let found: Vec<_> = counts
            .iter()
            .map(|count| (count.device.0, count.device.1, count.operation.as_str(), count.count))
            .collect();
        assert_eq!(found, expected, "{text}");
    };
    check("", &[]);
    check("Total 0\n", &[]);
    check("8:0 Read 1\n8:0 Total 1\nTotal 1\n", &[(8, 0, "Read", 1), (8, 0, "Total", 1)]);
    check("259:12 77\n", &[(259, 12, "", 77)]);
    check("8:x Read 1\n8 Read 1\n8:0 Read x\n8:0 a b c\n", &[]);
}

#[test]
fn huge_page_sizes_come_from_file_names() {
    let check = |name: &str, expected: Option<&str>| {
        assert_eq!(read::huge_page_size(name, "current").as_deref(), expected, "{name}");
    };
    check("hugetlb.2MB.current", Some("2MB"));
    check("hugetlb.64KB.current", Some("64KB"));
    check("hugetlb.2MB.rsvd.current", None);
    check("hugetlb.2MB.max", None);
    check("memory.current", None);
}

#[test]
fn pressure_is_read_where_only_a_part_is_there() {
    let some_only = v2::pressure_of("some avg10=0.00 avg60=12.34 avg300=0.00 total=7\n");
    assert_eq!((some_only.some.avg60, some_only.some.total), (12.34, 7));
    assert!(some_only.full.is_none());
    assert!(v2::pressure_of("").some.is_none());
}
