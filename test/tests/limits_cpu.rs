//! A guest gets the processor time of its cgroup and never takes any from its shim.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use containerd_client::types::v1::Status;
use serde_json::json;
use skiff_test::{
    Connection, Container, Containerd, Job, free_port, get, is_cgroup_v2, is_user_mode_linux, mostly, serving,
    status_field, tasks_of, until,
};

/// How often each call is made.
const CALLS: usize = 20;
const MEDIAN_MAX: Duration = Duration::from_millis(20);
const LONGEST_MAX: Duration = Duration::from_millis(100);
/// How long a killed container may take to end.
const KILL_MAX: Duration = Duration::from_secs(1);
/// How long a share is measured.
const WINDOW: Duration = Duration::from_secs(2);
/// How long a raised quota may take to have an effect.
const RAISED_MAX: Duration = Duration::from_secs(30);

/// Guests that never return: from their own code, and from a call of the host.
fn endless() -> [(&'static str, Job<'static>); 4] {
    let containerd = Containerd::shared();
    [
        ("a loop in C", containerd.job("c-spin")),
        ("a loop in Go", containerd.job("go-spin")),
        ("a read of nothing", containerd.job("c-cat").stdin()),
        ("a sleep", containerd.job("c-sleep")),
    ]
}

/// Makes a call again and again. The times must be those of a shim that is not delayed.
fn check_times(name: &str, call: impl Fn()) {
    let series = || {
        let mut times: Vec<Duration> = (0..CALLS)
            .map(|_| {
                let began = Instant::now();
                call();
                began.elapsed()
            })
            .collect();
        times.sort();
        (name, times)
    };
    if is_user_mode_linux() {
        series();
        return;
    }
    // Beside other tests, a call in ten may have to wait for a processor.
    mostly(series, |(_, times)| times[CALLS / 2] < MEDIAN_MAX && times[CALLS * 9 / 10] < LONGEST_MAX);
}

/// The processors' worth of time that a container gets.
fn share_of(container: &Container<'_>) -> f64 {
    let (before, began) = (container.figures().unwrap().cpu_ns, Instant::now());
    until(WINDOW, || false);
    let (after, took) = (container.figures().unwrap().cpu_ns, began.elapsed());
    Duration::from_nanos(after - before).as_secs_f64() / took.as_secs_f64()
}

#[test]
fn the_shim_answers_at_once_whatever_the_guest_does() {
    for (name, job) in endless() {
        let container = job.start();
        check_times(&format!("{name}: State"), || {
            assert_eq!(container.state().unwrap().status(), Status::Running, "{name}");
        });
        check_times(&format!("{name}: Stats"), || assert!(container.figures().unwrap().memory_bytes > 0, "{name}"));
        check_times(&format!("{name}: Pids"), || assert_eq!(container.pids().unwrap(), [container.pid], "{name}"));
        container.kill(libc::SIGKILL).unwrap();
        assert_eq!(container.finish().code, 137, "{name}");
    }
}

#[test]
fn an_endless_guest_can_be_paused_and_killed() {
    for (name, job) in endless() {
        let mut container = job.start();
        container.pause_patiently();
        assert_eq!(container.state().unwrap().status(), Status::Paused, "{name}");
        container.resume().unwrap();
        assert_eq!(container.state().unwrap().status(), Status::Running, "{name}");
        let began = Instant::now();
        container.kill(libc::SIGKILL).unwrap();
        assert_eq!(container.wait(), 137, "{name}");
        let took = began.elapsed();
        assert!(is_user_mode_linux() || took < KILL_MAX, "{name}: it ended after {took:?}");
        let began = Instant::now();
        container.delete_task().unwrap();
        let took = began.elapsed();
        assert!(is_user_mode_linux() || took < KILL_MAX, "{name}: it was deleted after {took:?}");
        container.forget();
    }
}

#[test]
fn a_request_that_spins_does_not_hold_up_the_shim() {
    let port = free_port();
    let server = serving(Containerd::shared().job("rust-p2-http"), port);
    let mut spinning = skiff_test::Connection::open(port).unwrap();
    spinning.send(b"GET /spin HTTP/1.1\r\nhost: x\r\n\r\n").unwrap();
    assert_eq!(get(port, "/").unwrap().status, 200);
    check_times("State", || assert_eq!(server.state().unwrap().status(), Status::Running));
    let began = Instant::now();
    server.kill(libc::SIGKILL).unwrap();
    assert_eq!(server.wait(), 137);
    assert!(is_user_mode_linux() || began.elapsed() < KILL_MAX, "{:?}", began.elapsed());
}

#[test]
fn a_quota_is_the_share_that_a_guest_gets_and_follows_an_update() {
    let container = Containerd::shared().job("c-spin").cpu_quota(20_000, 100_000).start();
    container.streams.wait_for_stdout("spinning\n");
    assert_eq!(container.cgroup.cpu_quota(), Some((20_000, 100_000)));
    let share = share_of(&container);
    assert!((0.1..0.3).contains(&share), "{share} of a processor");
    container.update(&json!({"cpu": {"quota": 60_000, "period": 100_000}})).unwrap();
    assert_eq!(container.cgroup.cpu_quota(), Some((60_000, 100_000)));
    // While other tests use the same processor, it gets less than its share.
    let is_raised = until(RAISED_MAX, || {
        let raised = share_of(&container);
        assert!(raised < 0.75, "{share}, then {raised} of a processor");
        raised > share * 1.5
    });
    assert!(is_raised, "no more than {share} of a processor");
}

#[test]
fn the_processors_are_those_of_the_cgroup() {
    let container = Containerd::shared().job("c-spin").cpus("0").start();
    assert_eq!(container.cgroup.cpus(), "0");
    assert_eq!(status_field(container.pid, "Cpus_allowed_list").as_deref(), Some("0"));
}

#[test]
fn an_update_reaches_the_cgroup() {
    let cpus = std::thread::available_parallelism().unwrap().get();
    let list = format!("{}", cpus - 1);
    let container = Containerd::shared().job("c-spin").memory(64 << 20).pids(30).cpus("0").start();
    let cgroup = &container.cgroup;
    container
        .update(
            &json!({"cpu": {"quota": 30_000, "period": 50_000, "shares": 512, "cpus": list}, "pids": {"limit": 40}}),
        )
        .unwrap();
    assert_eq!(cgroup.cpu_quota(), Some((30_000, 50_000)));
    assert_eq!((cgroup.cpus(), cgroup.pids_limit()), (list, Some(40)));
    // The OCI runtime turns shares of v1 into a weight of v2.
    let weight = cgroup.cpu_weight();
    assert!(if is_cgroup_v2() { weight < 100 } else { weight == 512 }, "{weight}");
    assert_eq!(cgroup.memory_limit(), Some(64 << 20), "what is not named stays");
    for size in cgroup.huge_page_sizes() {
        container.update(&json!({"hugepageLimits": [{"pageSize": size, "limit": 0}]})).unwrap();
        assert_eq!(cgroup.huge_page_limit(&size), Some(0), "{size}");
    }
    assert_eq!(container.state().unwrap().status(), Status::Running);
}

#[test]
fn a_server_uses_the_processors_of_a_raised_quota() {
    let processors = std::thread::available_parallelism().unwrap().get();
    for guest in ["rust-p2-http", "rust-p3-http"] {
        let port = free_port();
        let server = serving(Containerd::shared().job(guest).cpu_quota(50_000, 100_000), port);
        let mut clients: Vec<_> = (0..4).map(|_| Connection::open(port).unwrap()).collect();
        for client in &mut clients {
            client.send(b"GET /spin HTTP/1.1\r\nhost: x\r\n\r\n").unwrap();
        }
        server.update(&json!({"cpu": {"quota": 200_000, "period": 100_000}})).unwrap();
        let before = busy_ticks(server.pid);
        // Half a second of processor time each, however long that takes beside other tests.
        let busy = || {
            let now = busy_ticks(server.pid);
            now.iter().filter(|(task, ticks)| *ticks - before.get(*task).unwrap_or(&0) >= 50).count()
        };
        assert!(until(RAISED_MAX, || busy() >= processors.min(2)), "{guest}: {} busy threads", busy());
    }
}

/// The processor time of each task of a process, in hundredths of a second.
fn busy_ticks(pid: u32) -> BTreeMap<String, u64> {
    let tasks = std::fs::read_dir(format!("/proc/{pid}/task")).unwrap();
    let times = tasks.filter_map(|task| {
        let task = task.unwrap();
        let stat = std::fs::read_to_string(task.path().join("stat")).ok()?;
        // After the name, which is in parentheses: state, 10 others, then user and system time.
        let fields: Vec<&str> = stat.rsplit_once(')')?.1.split_whitespace().collect();
        let ticks = fields.get(11)?.parse::<u64>().ok()? + fields.get(12)?.parse::<u64>().ok()?;
        Some((task.file_name().into_string().ok()?, ticks))
    });
    times.collect()
}

#[test]
fn the_threads_of_a_server_are_bounded_and_not_by_its_load() {
    for guest in ["rust-p2-http", "rust-p3-http"] {
        let containerd = Containerd::shared();
        let port = free_port();
        let server = serving(containerd.job(guest).cpu_quota(50_000, 100_000), port);
        let processors = std::thread::available_parallelism().unwrap().get();
        let most = tasks_under_load(&server, port);
        // A quota can be raised: there is a thread for each of up to 8 processors.
        assert!(most <= 4 + processors.min(8), "{guest}: {most} tasks at half a processor");
    }
}

/// The largest number of tasks that a server had while 64 requests were under way.
fn tasks_under_load(server: &Container<'_>, port: u16) -> usize {
    std::thread::scope(|scope| {
        let clients: Vec<_> = (0..64).map(|_| scope.spawn(move || get(port, "/slow?ms=500"))).collect();
        let mut most = 0;
        until(Duration::from_secs(30), || {
            most = most.max(tasks_of(server.pid));
            clients.iter().all(|client| client.is_finished())
        });
        for client in clients {
            assert_eq!(client.join().unwrap().unwrap().status, 200);
        }
        most
    })
}
