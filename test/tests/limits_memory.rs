//! The memory limit of a container and of its pod bounds the guest: growth is refused before the kernel has to kill, and a
//! changed limit takes effect while the guest runs.

use std::time::Duration;

use serde_json::json;
use skiff_test::{
    Container, Containerd, Disk, Events, Image, Job, free_port, get, is_alive, is_cgroup_v2, is_user_mode_linux,
    request, serving, until,
};

const MIB: u64 = 1 << 20;
/// The limits that the property is checked with.
const LIMITS_MIB: [u64; 4] = [16, 64, 256, 1024];
/// The largest limit in user-mode Linux: each page that one of its processes touches may be a mapping on the machine, where a
/// process can have some 65,000. Beyond that it ends with SIGSEGV. How many adjacent pages share a mapping is chance.
const USER_MODE_LIMIT_MAX_MIB: u64 = 256;
/// How many requests are made at once.
const CLIENTS: u64 = 64;

fn limits_mib() -> impl Iterator<Item = u64> {
    let max = if is_user_mode_linux() { USER_MODE_LIMIT_MAX_MIB } else { u64::MAX };
    LIMITS_MIB.into_iter().filter(move |limit| *limit <= max)
}

/// The last full line of `c-grow`: whether it was granted the growth, and the MiB that it has.
fn said(container: &Container<'_>) -> (bool, u64) {
    let stdout = container.streams.stdout();
    let line = stdout.lines().last().unwrap_or_else(|| panic!("nothing was said"));
    (line.starts_with("grew"), mib_in(line).unwrap_or_else(|| panic!("no number in {line:?}")))
}

/// The number in `grew N MiB` or `refused after N MiB`.
fn mib_in(text: &str) -> Option<u64> {
    text.split(' ').find_map(|word| word.parse().ok())
}

/// Waits for line number `count` of `c-grow`, and reads it.
fn nth_said(container: &Container<'_>, count: usize) -> (bool, u64) {
    let has_come = until(Duration::from_secs(20), || container.streams.stdout().matches('\n').count() >= count);
    assert!(has_come, "line {count} did not come: {:?}", container.streams.stdout());
    said(container)
}

/// A `c-grow` that grows by `mib`, and then by the number in each line of its standard input.
fn waiting<'a>(job: Job<'a>, mib: u64) -> Container<'a> {
    job.args(["wait", "16", &mib.to_string()]).stdin().start()
}

/// Has a waiting guest try to grow by `mib` more; `count` is the number of the line that it prints then.
fn try_more(container: &Container<'_>, mib: u64, count: usize) -> (bool, u64) {
    container.streams.write(format!("{mib}\n").as_bytes());
    nth_said(container, count)
}

/// skiff reads a limit at most every 10 ms.
fn wait_for_a_limit_to_be_known() {
    until(Duration::from_millis(20), || false);
}

/// Lets a waiting guest end. It must end by itself, without a kill by the kernel.
fn end(container: Container<'_>) {
    assert!(is_alive(container.pid), "the guest has ended: {:?}", container.streams.stderr());
    assert_eq!(container.cgroup.oom_kills(), 0);
    container.streams.close_stdin();
    container.close_io().unwrap();
    assert_eq!(container.finish().code, 0);
}

/// Runs a guest, which must end by itself with 0 and without a kill by the kernel, and returns its output.
fn run_unharmed(job: Job<'_>, name: &str) -> String {
    let container = job.start();
    assert_eq!(container.wait(), 0, "{name}: {}", container.streams.stderr());
    assert_eq!(container.cgroup.oom_kills(), 0, "{name}");
    container.finish().stdout
}

/// cgroup v1 does not throttle.
#[test]
fn a_guest_is_refused_where_the_kernel_would_throttle_it() {
    if !is_cgroup_v2() {
        return;
    }
    let job = Containerd::shared().job("c-grow").args(["on", "16"]).memory(64 * MIB);
    let job = job.edit(|spec| spec["linux"]["resources"]["unified"] = json!({"memory.high": (32 * MIB).to_string()}));
    let stdout = run_unharmed(job, "memory.high");
    let grown = mib_in(stdout.lines().last().unwrap()).unwrap();
    assert!((20..32).contains(&grown), "{stdout}");
}

#[test]
fn a_guest_that_touches_all_it_gets_is_never_killed() {
    let containerd = Containerd::shared();
    for limit_mib in limits_mib() {
        for step_pages in [1, 16, 100] {
            let name = format!("{limit_mib} MiB by {step_pages} pages");
            let job = containerd.job("c-grow").args(["on", &step_pages.to_string()]).memory(limit_mib * MIB);
            let stdout = run_unharmed(job, &name);
            assert!(stdout.starts_with("refused after"), "{name}: {stdout}");
        }
    }
}

#[test]
fn three_memories_that_touch_all_they_get_are_never_killed() {
    // They take turns to grow by one page and to fill it, until all of them are refused.
    let turn = |memory: u32| {
        format!(
            "(local.set $first (memory.grow {memory} (i32.const 1)))
             (if (i32.ne (local.get $first) (i32.const -1)) (then
               (memory.fill {memory} (i32.mul (local.get $first) (i32.const 65536)) (i32.const 1) (i32.const 65536))
               (local.set $granted (i32.const 1))))"
        )
    };
    let text = format!(
        "(module (memory 1) (memory 1) (memory 1) (func (export \"_start\") (local $first i32) (local $granted i32)
           (loop $again (local.set $granted (i32.const 0)) {} {} {} (br_if $again (local.get $granted)))))",
        turn(0),
        turn(1),
        turn(2)
    );
    let containerd = Containerd::shared();
    let image = Image::of_text(containerd, &text);
    for limit_mib in limits_mib() {
        run_unharmed(containerd.job_of(&image).memory(limit_mib * MIB), &format!("{limit_mib} MiB"));
    }
}

#[test]
fn a_memory_and_a_table_that_fill_all_they_get_are_never_killed() {
    let text = "(module (memory 1) (table $t 1 funcref) (elem declare func $f) (func $f)
      (func (export \"_start\") (local $first i32)
        (loop $again
          (local.set $first (memory.grow (i32.const 16)))
          (if (i32.ne (local.get $first) (i32.const -1)) (then
            (memory.fill (i32.mul (local.get $first) (i32.const 65536)) (i32.const 1) (i32.const 1048576))))
          (br_if $again (i32.ne (table.grow $t (ref.func $f) (i32.const 100000)) (i32.const -1))))))";
    let containerd = Containerd::shared();
    let image = Image::of_text(containerd, text);
    for limit_mib in [16, 64] {
        run_unharmed(containerd.job_of(&image).memory(limit_mib * MIB), &format!("{limit_mib} MiB"));
    }
}

#[test]
fn a_server_with_64_requests_that_hold_memory_is_never_killed() {
    for guest in ["rust-p2-http", "rust-p3-http"] {
        for limit_mib in limits_mib() {
            hold_under(guest, limit_mib);
        }
    }
}

/// Makes requests that together hold four times the limit.
fn hold_under(guest: &str, limit_mib: u64) {
    let name = format!("{guest} under {limit_mib} MiB");
    let port = free_port();
    let server = serving(Containerd::shared().job(guest).memory(limit_mib * MIB), port);
    let wanted_mib = limit_mib * 4 / CLIENTS;
    let path = format!("/hold?mib={wanted_mib}");
    let answers: Vec<_> = std::thread::scope(|scope| {
        let clients: Vec<_> = (0..CLIENTS).map(|_| scope.spawn(|| get(port, &path))).collect();
        clients.into_iter().map(|client| client.join().unwrap()).collect()
    });
    let mut held_mib = 0;
    for answer in answers {
        let answer = answer.unwrap_or_else(|error| panic!("{name}: a request was not answered: {error}"));
        assert!([200, 503].contains(&answer.status), "{name}: {answer:?}");
        held_mib += mib_in(&answer.text()).filter(|_| answer.status == 200).unwrap_or(0);
    }
    assert!(held_mib > limit_mib / 4, "{name}: the requests got {held_mib} MiB");
    // What those requests' instances have left for the next ones is not one's own.
    let all = get(port, &format!("/hold?mib={limit_mib}")).unwrap();
    assert!([200, 503].contains(&all.status), "{name}: {all:?}");
    assert!(is_alive(server.pid), "{name}");
    assert_eq!(server.cgroup.oom_kills(), 0, "{name}");
    assert_eq!(get(port, "/").unwrap().status, 200, "{name}: it still answers");
    server.kill(libc::SIGTERM).unwrap();
    assert_eq!(server.finish().code, 0, "{name}");
}

#[test]
fn a_hello_runs_in_8_mib() {
    let containerd = Containerd::shared();
    for (guest, greeting) in
        [("c-hello", "hello\n"), ("rust-hello", "hello from Rust\n"), ("rust-p2-hello", "hello from WASI 0.2\n")]
    {
        assert_eq!(run_unharmed(containerd.job(guest).memory(8 * MIB), guest), greeting);
    }
}

#[test]
fn the_smallest_limit_from_the_container_to_the_pod_holds() {
    let containerd = Containerd::shared();
    let pod = containerd.pod_cgroup(64 * MIB);
    for (name, job) in [
        ("a larger limit of the container's", containerd.job("c-grow").memory(256 * MIB)),
        ("no limit of the container's", containerd.job("c-grow")),
        ("a smaller limit of the container's", containerd.job("c-grow").memory(32 * MIB)),
    ] {
        let expected = if name.contains("smaller") { 20..32 } else { 40..64 };
        let container = job.in_pod(&pod).start();
        assert_eq!(container.wait(), 0, "{name}: {}", container.streams.stderr());
        container.streams.wait_for_the_end();
        let (granted, grown_mib) = said(&container);
        assert!(!granted && expected.contains(&grown_mib), "{name}: {grown_mib} MiB");
        container.finish();
        assert_eq!(pod.cgroup().oom_kills(), 0, "{name}");
    }
}

#[test]
fn files_in_memory_leave_less_for_the_guest() {
    let port = free_port();
    let job = Containerd::shared().job("rust-p2-http").mount("/files", "tmpfs", "tmpfs", &["mode=1777"]);
    let server = serving(job.memory(64 * MIB), port);
    for name in ["a", "b", "c", "d"] {
        let written = request(port, "POST", &format!("/write?path=/files/{name}"), &vec![1; 8 << 20]).unwrap();
        assert_eq!(written.status, 200, "{name}: {}", written.text());
    }
    wait_for_a_limit_to_be_known();
    let grown = get(port, "/grow?mib=60").unwrap().text();
    let mib = mib_in(&grown).unwrap_or_else(|| panic!("{grown}"));
    assert!(grown.starts_with("refused") && (20..29).contains(&mib), "{grown}");
    assert_eq!(server.cgroup.oom_kills(), 0);
    server.kill(libc::SIGTERM).unwrap();
    assert_eq!(server.finish().code, 0);
}

/// The container that wrote them is gone, but they are the pod's.
#[test]
fn files_in_memory_of_a_container_that_has_ended_still_count() {
    let containerd = Containerd::shared();
    let pod = containerd.pod_cgroup(64 * MIB);
    let volume = Disk::new("64m", "755");
    let writer = containerd.shell("head -c 33554432 /dev/zero > /files/big").bind(volume.path(), "/files", &["rw"]);
    let written = writer.in_pod(&pod).run();
    assert_eq!(written.code, 0, "{written:?}");
    let container = containerd.job("c-grow").bind(volume.path(), "/files", &["rw"]).in_pod(&pod).start();
    assert_eq!(container.wait(), 0, "{}", container.streams.stderr());
    container.streams.wait_for_the_end();
    let (granted, mib) = said(&container);
    assert!(!granted && (20..29).contains(&mib), "{mib} MiB");
    container.finish();
    assert_eq!(pod.cgroup().oom_kills(), 0);
}

#[test]
fn no_limit_is_no_limit() {
    let containerd = Containerd::shared();
    let job = containerd.job("c-grow").args(["on", "16", "300"]).edit(|spec| {
        spec["linux"]["resources"]["memory"] = json!({"limit": -1});
    });
    assert_eq!(run_unharmed(job, "unlimited"), "grew 300 MiB\n");
}

#[test]
fn a_raised_limit_lets_a_refused_guest_continue() {
    let container = waiting(Containerd::shared().job("c-grow").memory(64 * MIB), 1000);
    let (granted, before_mib) = nth_said(&container, 1);
    assert!(!granted && before_mib < 64, "{before_mib} MiB");
    container.update(&json!({"memory": {"limit": 128 * MIB}})).unwrap();
    assert_eq!(container.cgroup.memory_limit(), Some(128 * MIB));
    let (granted, after_mib) = try_more(&container, 1000, 2);
    assert!(!granted && (100..128).contains(&after_mib), "{before_mib} MiB, then {after_mib} MiB");
    assert_eq!(container.state().unwrap().pid, container.pid, "it is the same process");
    end(container);
}

#[test]
fn a_lowered_limit_refuses_further_growth_and_kills_nobody() {
    let container = waiting(Containerd::shared().job("c-grow").memory(256 * MIB), 40);
    assert_eq!(nth_said(&container, 1), (true, 40));
    container.update(&json!({"memory": {"limit": 128 * MIB}})).unwrap();
    assert_eq!(container.cgroup.memory_limit(), Some(128 * MIB));
    let (granted, grown_mib) = try_more(&container, 1000, 2);
    assert!(!granted && (100..128).contains(&grown_mib), "{grown_mib} MiB");
    end(container);
}

#[test]
fn a_limit_below_what_is_in_use_is_an_error_and_kills_nobody() {
    let container = waiting(Containerd::shared().job("c-grow").memory(128 * MIB), 60);
    assert_eq!(nth_said(&container, 1), (true, 60));
    let refused = container.update(&json!({"memory": {"limit": 32 * MIB}})).unwrap_err();
    assert!(refused.message.contains("memory"), "{refused}");
    assert_eq!(container.cgroup.memory_limit(), Some(128 * MIB), "the limit stays");
    assert_eq!(try_more(&container, 1, 2), (true, 61));
    end(container);
}

#[test]
fn a_limit_that_is_written_past_the_runtime_is_followed() {
    let containerd = Containerd::shared();
    let pod = containerd.pod_cgroup(64 * MIB);
    let container = waiting(containerd.job("c-grow").memory(256 * MIB).in_pod(&pod), 1000);
    let (granted, first_mib) = nth_said(&container, 1);
    assert!(!granted && first_mib < 64, "{first_mib} MiB");
    pod.cgroup().set_memory_limit(128 * MIB).unwrap();
    wait_for_a_limit_to_be_known();
    let (granted, second_mib) = try_more(&container, 1000, 2);
    assert!(!granted && (100..128).contains(&second_mib), "the pod's limit: {second_mib} MiB");
    pod.cgroup().set_memory_limit(1024 * MIB).unwrap();
    container.cgroup.set_memory_limit(160 * MIB).unwrap();
    wait_for_a_limit_to_be_known();
    let (granted, third_mib) = try_more(&container, 1000, 3);
    assert!(!granted && (second_mib + 1..160).contains(&third_mib), "the container's own limit: {third_mib} MiB");
    end(container);
}

#[test]
fn a_server_follows_a_raised_limit() {
    for guest in ["rust-p2-http", "rust-p3-http"] {
        let port = free_port();
        let server = serving(Containerd::shared().job(guest).memory(64 * MIB), port);
        assert!(get(port, "/grow?mib=100").unwrap().text().starts_with("refused after"), "{guest}");
        server.update(&json!({"memory": {"limit": 256 * MIB}})).unwrap();
        let grew =
            until(Duration::from_secs(10), || get(port, "/grow?mib=100").is_ok_and(|a| a.text() == "grew 100 MiB\n"));
        assert!(grew, "{guest}: {:?}", get(port, "/grow?mib=100"));
        assert_eq!(server.cgroup.oom_kills(), 0, "{guest}");
    }
}

#[test]
fn a_server_has_more_instances_under_a_raised_limit() {
    let port = free_port();
    let server = serving(Containerd::shared().job("rust-p2-http").memory(16 * MIB), port);
    server.update(&json!({"memory": {"limit": 512 * MIB}})).unwrap();
    // 16 at a time would take 26 s, and whoever waits for 10 s gets 503.
    std::thread::scope(|scope| {
        let clients: Vec<_> = (0..200).map(|_| scope.spawn(move || get(port, "/slow?ms=2000"))).collect();
        for client in clients {
            assert_eq!(client.join().unwrap().unwrap().status, 200);
        }
    });
    assert_eq!(server.cgroup.oom_kills(), 0);
}

#[test]
fn a_guest_whose_cgroup_vanishes_keeps_its_limit_and_can_be_ended() {
    let containerd = Containerd::shared();
    let events = Events::listen(containerd);
    let mut container = waiting(containerd.job("c-grow").memory(64 * MIB), 40);
    assert_eq!(nth_said(&container, 1), (true, 40));
    let elsewhere = container.cgroup.vanish();
    let (granted, grown_mib) = try_more(&container, 1000, 2);
    assert!(!granted && (40..64).contains(&grown_mib), "{grown_mib} MiB");
    assert!(is_alive(container.pid));
    container.kill(libc::SIGKILL).unwrap();
    assert_eq!(container.wait(), 137);
    elsewhere.remove();
    container.delete().unwrap();
    assert_eq!(events.topics(&container.id, 4), ["create", "start", "exit", "delete"]);
}
