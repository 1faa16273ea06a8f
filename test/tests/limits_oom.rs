//! A container that ran out of memory reports it, to containerd and to the container's owner. No other container does.

use skiff_test::{
    Container, Containerd, Events, Image, Job, Outcome, free_port, get, is_alive, is_cgroup_v2, serving, until,
};
use std::os::unix::fs::PermissionsExt;
use std::time::Duration;

/// Where containerd says which container of its pod this is.
const CONTAINER_NAME: &str = "io.kubernetes.cri.container-name";
const MIB: u64 = 1 << 20;
const LIMIT_BYTES: u64 = 64 * MIB;

const OUT_OF_MEMORY: [&str; 5] = ["create", "start", "oom", "exit", "delete"];
const NOT_OUT_OF_MEMORY: [&str; 4] = ["create", "start", "exit", "delete"];

/// Runs a job to its end and returns its outcome and its events.
fn run(job: Job<'_>, events_expected: usize) -> (Outcome, Vec<String>) {
    let events = Events::listen(Containerd::shared());
    let container = job.start();
    let id = container.id.clone();
    let outcome = container.finish();
    let exits: Vec<_> = events.of(&id).into_iter().filter_map(|event| event.code).collect();
    assert!(exits.iter().all(|code| *code == outcome.code), "{exits:?}: {outcome:?}");
    let topics = events.topics(&id, events_expected);
    (outcome, topics)
}

/// A guest that runs out of memory under [`LIMIT_BYTES`] ends as if the kernel had killed it.
fn check_out_of_memory(name: &str, job: Job<'_>) {
    let (outcome, topics) = run(job.memory(LIMIT_BYTES), OUT_OF_MEMORY.len());
    assert_eq!(outcome.code, 137, "{name}: {outcome:?}");
    assert_eq!(topics, OUT_OF_MEMORY, "{name}");
    let line = outcome.stderr.lines().find(|line| line.contains(&LIMIT_BYTES.to_string()));
    let line = line.unwrap_or_else(|| panic!("{name}: no line names the limit: {:?}", outcome.stderr));
    assert!(line.contains("memory"), "{name}: {line}");
    let mut numbers = line.split(|c: char| !c.is_ascii_digit()).filter_map(|word| word.parse::<u64>().ok());
    assert!(numbers.any(|number| number >= 65536 && number != LIMIT_BYTES), "{name}: how much was asked for? {line}");
}

/// A guest that was refused memory and ended for another reason keeps its own exit code.
fn check_own_affair(name: &str, job: Job<'_>, code: u32) {
    let (outcome, topics) = run(job.memory(LIMIT_BYTES), NOT_OUT_OF_MEMORY.len());
    assert_eq!(outcome.code, code, "{name}: {outcome:?}");
    assert_eq!(topics, NOT_OUT_OF_MEMORY, "{name}");
}

#[test]
fn a_guest_that_gives_up_after_a_refusal_is_out_of_memory() {
    let containerd = Containerd::shared();
    for then in ["abort", "unchecked", "say"] {
        check_out_of_memory(then, containerd.job("c-grow").args([then]));
    }
}

#[test]
fn a_go_program_that_leaks_is_out_of_memory() {
    check_out_of_memory("go-leak", Containerd::shared().job("go-leak"));
}

#[test]
fn tables_and_the_heap_of_collected_objects_count() {
    let containerd = Containerd::shared();
    let tables = "(module (table $t 1 funcref) (func (export \"_start\")
        (loop $again (br_if $again (i32.ne (table.grow $t (ref.null func) (i32.const 100000)) (i32.const -1))))
        unreachable))";
    let objects =
        "(module (type $bytes (array (mut i8))) (type $list (struct (field (ref $bytes)) (field (ref null $list))))
        (func (export \"_start\") (local $kept (ref null $list))
          (loop $again
            (local.set $kept (struct.new $list (array.new $bytes (i32.const 1) (i32.const 100000)) (local.get $kept)))
            (br $again))))";
    for (name, text) in [("tables", tables), ("objects", objects)] {
        check_out_of_memory(name, containerd.job_of(&Image::of_text(containerd, text)));
    }
}

#[test]
fn a_component_that_gives_up_after_a_refusal_is_out_of_memory() {
    let text = "(component
        (core module $m (memory 1) (func (export \"run\") (result i32)
          (loop $again (br_if $again (i32.ne (memory.grow (i32.const 16)) (i32.const -1))))
          unreachable))
        (core instance $i (instantiate $m))
        (func $run (result (result)) (canon lift (core func $i \"run\")))
        (instance $exported (export \"run\" (func $run)))
        (export \"wasi:cli/run@0.2.0\" (instance $exported)))";
    let containerd = Containerd::shared();
    check_out_of_memory("a component", containerd.job_of(&Image::of_text(containerd, text)));
}

#[test]
fn a_guest_that_handles_the_refusal_keeps_its_exit_code() {
    let containerd = Containerd::shared();
    for (then, code) in [("on", 0), ("exit", 3)] {
        check_own_affair(then, containerd.job("c-grow").args([then]), code);
    }
}

#[test]
fn a_failure_long_after_a_refusal_or_after_a_granted_growth_is_the_guests_own() {
    let containerd = Containerd::shared();
    check_own_affair("late", containerd.job("c-grow").args(["late"]), 134);
    // Steps of 16 MiB leave room for one more page.
    check_own_affair("smaller", containerd.job("c-grow").args(["smaller", "256"]), 134);
    check_own_affair("no refusal at all", containerd.job("c-trap").args(["unreachable"]), 134);
}

#[test]
fn a_kill_by_somebody_is_no_want_of_memory() {
    let events = Events::listen(Containerd::shared());
    let container = Containerd::shared().job("c-grow").args(["wait"]).stdin().memory(LIMIT_BYTES).start();
    container.streams.wait_for_stdout("refused after");
    let id = container.id.clone();
    container.kill(libc::SIGKILL).unwrap();
    assert_eq!(container.finish().code, 137);
    assert_eq!(events.topics(&id, NOT_OUT_OF_MEMORY.len()), NOT_OUT_OF_MEMORY);
}

#[test]
fn a_request_that_runs_out_of_memory_takes_only_itself_along() {
    let containerd = Containerd::shared();
    for guest in ["rust-p2-http", "rust-p3-http"] {
        let events = Events::listen(containerd);
        let port = free_port();
        let server = serving(containerd.job(guest).memory(LIMIT_BYTES), port);
        assert_eq!(get(port, "/leak").unwrap().status, 500, "{guest}");
        assert_eq!(get(port, "/").unwrap().status, 200, "{guest}");
        let says_so = || server.streams.stderr().contains(&LIMIT_BYTES.to_string());
        assert!(until(Duration::from_secs(5), says_so), "{guest}: {}", server.streams.stderr());
        let id = server.id.clone();
        server.kill(libc::SIGTERM).unwrap();
        assert_eq!(server.finish().code, 0, "{guest}");
        assert_eq!(events.topics(&id, NOT_OUT_OF_MEMORY.len()), NOT_OUT_OF_MEMORY, "{guest}");
    }
}

#[test]
fn a_wasm_container_that_the_kernel_kills_says_so() {
    // As the kubelet makes it.
    let folder = tempfile::tempdir().unwrap();
    let log = folder.path().join("pods/8d1/containers/main/0");
    std::fs::create_dir_all(log.parent().unwrap()).unwrap();
    std::fs::write(&log, "").unwrap();
    std::fs::set_permissions(&log, std::fs::Permissions::from_mode(0o666)).unwrap();
    // Files of a tmpfs are memory of the container, but not of the guest.
    let job = Containerd::shared().job("c-fill").args(["/data/file"]).mount(
        "/data",
        "tmpfs",
        "tmpfs",
        &["nosuid", "nodev", "size=256m"],
    );
    let job = job.annotation(CONTAINER_NAME, "main").bind(&log, "/dev/termination-log", &["rw"]);
    let (outcome, topics) = run(job.memory(LIMIT_BYTES), OUT_OF_MEMORY.len());
    assert_eq!(outcome.code, 137, "{outcome:?}");
    assert_eq!(topics, OUT_OF_MEMORY);
    check_kernel_line(&outcome.stderr, LIMIT_BYTES);
    let words = std::fs::read_to_string(&log).unwrap();
    assert!(!words.is_empty() && outcome.stderr.ends_with(&format!("{words}\n")), "{words:?}: {outcome:?}");
}

fn check_kernel_line(stderr: &str, limit_bytes: u64) {
    let line = stderr.lines().find(|line| line.contains("kernel") && line.contains("memory"));
    let line = line.unwrap_or_else(|| panic!("no line reports a kill because memory ran out: {stderr:?}"));
    assert!(line.contains(&limit_bytes.to_string()), "the limit is not named: {line}");
}

#[test]
fn a_limit_written_below_what_is_in_use_is_refused_by_v1_and_kills_on_v2() {
    let containerd = Containerd::shared();
    let events = Events::listen(containerd);
    let container = containerd.job("c-grow").args(["wait", "16", "40"]).stdin().memory(LIMIT_BYTES).start();
    container.streams.wait_for_stdout("grew 40 MiB\n");
    let written = container.cgroup.set_memory_limit(16 * MIB);
    if !is_cgroup_v2() {
        written.expect_err("v1 refuses");
        assert!(is_alive(container.pid));
        return end(container);
    }
    let id = container.id.clone();
    let outcome = container.finish();
    assert_eq!(outcome.code, 137, "{outcome:?}");
    assert_eq!(events.topics(&id, OUT_OF_MEMORY.len()), OUT_OF_MEMORY);
    check_kernel_line(&outcome.stderr, 16 * MIB);
}

fn end(container: Container<'_>) {
    container.streams.close_stdin();
    container.close_io().unwrap();
    assert_eq!(container.finish().code, 0);
}
