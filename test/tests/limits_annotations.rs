//! The annotations with which a pod sets limits for its guests, and which values are refused.

use std::io::{Read, Write};
use std::net::{Ipv4Addr, TcpStream};
use std::time::{Duration, Instant};

use skiff_test::{Connection, Container, Containerd, Image, Job, Outcome, free_port, get, is_alive, serving, until};

const PREFIX: &str = "limits.skiff.dev/";
/// The annotation with a container's name, which containerd sets.
const CONTAINER_NAME: &str = "io.kubernetes.cri.container-name";

/// The memory limit of guests that grow until they are refused.
const MEMORY_BYTES: u64 = 128 << 20;

trait Limited {
    /// Sets a limit for the whole pod.
    fn limit(self, name: &str, value: &str) -> Self;
}

impl Limited for Job<'_> {
    fn limit(self, name: &str, value: &str) -> Self {
        self.annotation(&format!("{PREFIX}{name}"), value)
    }
}

fn text(text: &str) -> Job<'static> {
    let containerd = Containerd::shared();
    containerd.job_of(&Image::of_text(containerd, text))
}

/// Starts a server with a limit.
fn server(guest: &str, name: &str, value: &str) -> (Container<'static>, u16) {
    let port = free_port();
    (serving(Containerd::shared().job(guest).limit(name, value), port), port)
}

fn check_ended_by_time(name: &str, job: Job<'_>) {
    let container = job.limit("run-time", "500ms").create();
    // The module is compiled first, which takes time.
    let began = Instant::now();
    container.start().unwrap();
    let Outcome { code, stderr, .. } = container.finish();
    let took = began.elapsed();
    assert_eq!(code, 143, "{name}: {stderr}");
    assert!(stderr.contains("run-time") && stderr.contains("500ms"), "{name}: {stderr}");
    assert!((Duration::from_millis(500)..Duration::from_secs(10)).contains(&took), "{name}: it took {took:?}");
}

#[test]
fn a_command_over_its_run_time_ends_with_143() {
    let containerd = Containerd::shared();
    check_ended_by_time("a loop", containerd.job("c-spin"));
    check_ended_by_time("a loop in Go", containerd.job("go-spin"));
    check_ended_by_time("a read of nothing", containerd.job("c-cat").stdin());
    check_ended_by_time("a sleep", containerd.job("c-sleep"));
    check_ended_by_time("a sleep of WASI 0.2", containerd.job("rust-p2-hello").args(["sleep", "60000"]));
}

#[test]
fn the_start_function_counts_as_run_time() {
    let endless = "(module (func $f (loop $l (br $l))) (start $f) (func (export \"_start\")))";
    // Before and after a guest in its start function counts as started, and about then.
    for limit in ["1ms", "300ms", "1s", "2s"] {
        let outcome = text(endless).limit("run-time", limit).run();
        assert!(outcome.code == 143 && outcome.stderr.contains("run-time"), "{limit}: {outcome:?}");
    }
}

#[test]
fn a_command_within_its_run_time_ends_by_itself() {
    let outcome = Containerd::shared().job("c-sleep").args(["100"]).limit("run-time", "1m").run();
    assert_eq!((outcome.code, outcome.stdout.as_str()), (0, "sleeping\nwoke\n"), "{outcome:?}");
}

#[test]
fn a_request_over_its_time_is_answered_with_504() {
    for guest in ["rust-p2-http", "rust-p3-http"] {
        let (server, port) = server(guest, "request-time", "500ms");
        for path in ["/slow?ms=60000", "/spin"] {
            let began = Instant::now();
            assert_eq!(get(port, path).unwrap().status, 504, "{guest}: {path}");
            assert!(began.elapsed() < Duration::from_secs(10), "{guest}: {path}: {:?}", began.elapsed());
        }
        assert_eq!(get(port, "/slow?ms=50").unwrap().text(), "slow\n", "{guest}: others are served");
        assert!(is_alive(server.pid), "{guest}");
    }
}

#[test]
fn connections_end_after_their_times() {
    for name in ["header-time", "idle-time"] {
        let (server, port) = server("rust-p2-http", name, "500ms");
        let mut stream = TcpStream::connect((Ipv4Addr::LOCALHOST, port)).unwrap();
        // Less than either time is without the annotation.
        stream.set_read_timeout(Some(Duration::from_secs(25))).unwrap();
        if name == "idle-time" {
            stream.write_all(b"GET / HTTP/1.1\r\nhost: test\r\n\r\n").unwrap();
        }
        let mut answer = Vec::new();
        stream.read_to_end(&mut answer).unwrap_or_else(|error| panic!("{name}: {error}"));
        assert_eq!(answer.is_empty(), name == "header-time", "{name}");
        server.kill(libc::SIGTERM).unwrap();
        assert_eq!(server.finish().code, 0, "{name}");
    }
}

#[test]
fn each_memory_has_its_most_pages() {
    let containerd = Containerd::shared();
    let outcome = containerd.job("c-grow").args(["on", "1"]).memory(MEMORY_BYTES).limit("memory-pages", "64").run();
    assert_eq!((outcome.code, outcome.stdout.as_str()), (0, "refused after 3 MiB\n"), "{outcome:?}");
    // Each of two memories has a limit of its own.
    let both = "(module (memory 1) (memory 1) (func (export \"_start\")
        (if (i32.ne (memory.grow 0 (i32.const 63)) (i32.const 1)) (then unreachable))
        (if (i32.ne (memory.grow 1 (i32.const 63)) (i32.const 1)) (then unreachable))
        (if (i32.ne (memory.grow 1 (i32.const 1)) (i32.const -1)) (then unreachable))))";
    assert_eq!(text(both).limit("memory-pages", "64").run().code, 0);
    let refused = text("(module (memory 65) (func (export \"_start\")))").limit("memory-pages", "64").refused();
    let names = |numbers: [&str; 2]| numbers.iter().all(|number| refused.message.contains(number));
    assert!(names(["65", "64"]) || names(["4259840", "4194304"]), "{refused}");
}

#[test]
fn a_store_has_its_most_instances_memories_and_tables() {
    let containerd = Containerd::shared();
    let memories = "(module (memory 1) (memory 1) (func (export \"_start\")))";
    let tables = "(module (table 1 funcref) (table 1 funcref) (func (export \"_start\")))";
    for (name, least, job) in [
        ("instances", "1000", &(|| containerd.job("rust-p2-hello")) as &dyn Fn() -> Job<'static>),
        ("memories", "2", &|| text(memories)),
        ("tables", "2", &|| text(tables)),
    ] {
        let outcome = job().limit(name, least).run();
        assert_eq!(outcome.code, 0, "{name}: {outcome:?}");
        let refused = job().limit(name, "1").refused();
        let noun = if name == "memories" { "memor" } else { name.trim_end_matches('s') };
        assert!(refused.message.contains(noun), "{name}: {refused}");
    }
}

#[test]
fn the_tables_of_a_store_share_their_elements() {
    let grows = "(module (table $a 1 funcref) (table $b 1 funcref) (func (export \"_start\")
        (if (i32.ne (table.grow $a (ref.null func) (i32.const 600)) (i32.const 1)) (then unreachable))
        (if (i32.ne (table.grow $b (ref.null func) (i32.const 600)) (i32.const -1)) (then unreachable))
        (if (i32.ne (table.grow $b (ref.null func) (i32.const 300)) (i32.const 1)) (then unreachable))))";
    let outcome = text(grows).limit("table-elements", "1000").run();
    assert_eq!(outcome.code, 0, "{outcome:?}");
    let refused =
        text("(module (table 1001 funcref) (func (export \"_start\")))").limit("table-elements", "1000").refused();
    assert!(refused.message.contains("1001") && refused.message.contains("1000"), "{refused}");
}

#[test]
fn requests_beyond_the_most_at_once_wait() {
    for guest in ["rust-p2-http", "rust-p3-http"] {
        let (_server, port) = server(guest, "concurrent-requests", "2");
        let began = Instant::now();
        std::thread::scope(|scope| {
            for _ in 0..6 {
                scope.spawn(move || assert_eq!(get(port, "/slow?ms=400").unwrap().text(), "slow\n"));
            }
        });
        let took = began.elapsed();
        assert!(took >= Duration::from_millis(1200), "{guest}: six requests of 400 ms, two at once, took {took:?}");
    }
}

#[test]
fn a_stack_has_its_size() {
    let containerd = Containerd::shared();
    let run = |stack: &str, depth: &str| containerd.job("c-recurse").args([depth]).limit("stack", stack).run();
    for stack in ["128Ki", "2Mi"] {
        let outcome = run(stack, "100");
        assert_eq!((outcome.code, outcome.stdout.as_str()), (0, "reached 100\n"), "{stack}: {outcome:?}");
    }
    let deep = run("2Mi", "20000");
    assert_eq!((deep.code, deep.stdout.as_str()), (0, "reached 20000\n"), "{deep:?}");
    let deep = run("128Ki", "20000");
    assert!(deep.code == 134 && deep.stderr.contains("stack"), "{deep:?}");
}

#[test]
fn output_has_its_pace() {
    let containerd = Containerd::shared();
    let began = Instant::now();
    let outcome = containerd.job("c-flood").args(["1"]).limit("output-per-second", "256Ki").run();
    let took = began.elapsed();
    assert_eq!((outcome.code, outcome.stdout.len()), (0, 1 << 20), "all of it arrives");
    assert!((Duration::from_millis(2500)..Duration::from_secs(20)).contains(&took), "1 MiB took {took:?}");
}

#[test]
fn a_flood_does_not_hold_up_the_end() {
    let container = Containerd::shared().job("c-flood").args(["1000"]).limit("output-per-second", "1Ki").start();
    assert!(until(Duration::from_secs(10), || !container.streams.stdout().is_empty()));
    container.kill(libc::SIGTERM).unwrap();
    let began = Instant::now();
    assert_eq!(container.finish().code, 143);
    assert!(began.elapsed() < Duration::from_secs(5), "{:?}", began.elapsed());
}

#[test]
fn what_is_set_for_a_container_wins_over_what_is_set_for_its_pod() {
    let containerd = Containerd::shared();
    let job = |name: &str| {
        let job = containerd.job("c-grow").args(["on", "1"]).memory(MEMORY_BYTES).annotation(CONTAINER_NAME, name);
        job.limit("memory-pages", "64").annotation("large.limits.skiff.dev/memory-pages", "320")
    };
    assert_eq!(job("large").run().stdout, "refused after 19 MiB\n");
    assert_eq!(job("small").run().stdout, "refused after 3 MiB\n");
}

#[test]
fn what_is_set_for_another_container_is_checked_there_alone() {
    let containerd = Containerd::shared();
    let job = containerd.job("c-hello").annotation(CONTAINER_NAME, "mine");
    let outcome = job.annotation("other.limits.skiff.dev/run-time", "1s").run();
    assert_eq!(outcome.code, 0, "{outcome:?}");
}

#[test]
fn what_cannot_be_a_limit_is_refused_by_its_name() {
    let containerd = Containerd::shared();
    for (key, value) in [
        ("limits.skiff.dev/no-such-limit", "1"),
        ("limits.skiff.dev/", "1"),
        ("limits.skiff.dev/Run-Time", "1s"),
        ("limits.skiff.dev/run-time", ""),
        ("limits.skiff.dev/run-time", "0s"),
        ("limits.skiff.dev/run-time", "-1s"),
        ("limits.skiff.dev/run-time", "10"),
        ("limits.skiff.dev/run-time", "1x"),
        ("limits.skiff.dev/run-time", "ten seconds"),
        ("limits.skiff.dev/request-time", "1d?"),
        ("limits.skiff.dev/memory-pages", "0"),
        ("limits.skiff.dev/memory-pages", "64Ki pages"),
        ("limits.skiff.dev/instances", "-5"),
        ("limits.skiff.dev/memories", "1.5"),
        ("limits.skiff.dev/tables", "many"),
        ("limits.skiff.dev/table-elements", "99999999999999999999999"),
        ("limits.skiff.dev/concurrent-requests", "0"),
        ("limits.skiff.dev/stack", "0"),
        ("limits.skiff.dev/stack", "512 KB"),
        ("limits.skiff.dev/output-per-second", "0Ki"),
        ("mine.limits.skiff.dev/no-such-limit", "1"),
        ("mine.limits.skiff.dev/stack", "huge"),
    ] {
        let job = containerd.job("c-hello").annotation(CONTAINER_NAME, "mine").annotation(key, value);
        let refused = job.try_create().err().unwrap_or_else(|| panic!("`{key}: {value}` was taken"));
        assert!(refused.message.contains(key), "`{key}: {value}`: {refused}");
    }
}

#[test]
fn annotations_of_others_and_of_native_containers_are_left_alone() {
    let containerd = Containerd::shared();
    let outcome = containerd.job("c-hello").annotation("example.com/limits", "0").run();
    assert_eq!(outcome.code, 0, "{outcome:?}");
    // It does not concern native containers of the same pod.
    let outcome = containerd.shell("exit 4").limit("run-time", "1h").run();
    assert_eq!(outcome.code, 4, "{outcome:?}");
}

#[test]
fn a_connection_is_kept_while_requests_on_it_time_out() {
    let (_server, port) = server("rust-p2-http", "request-time", "300ms");
    let mut connection = Connection::open(port).unwrap();
    for (path, status) in [("/slow?ms=60000", 504), ("/", 200)] {
        connection.send(format!("GET {path} HTTP/1.1\r\nhost: x\r\n\r\n").as_bytes()).unwrap();
        assert_eq!(connection.answer().unwrap().status, status, "{path}");
    }
}
