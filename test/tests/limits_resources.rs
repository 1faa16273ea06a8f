//! Tasks, open files and storage of a wasm container are bounded as a native one's are, and so are its figures reported.

use std::process::{Command, Output};
use std::time::Duration;

use serde_json::{Value, json};
use skiff_test::{Containerd, Image, eventually, free_port, get, is_alive, programs, serving, until};

const MIB: u64 = 1 << 20;

#[test]
fn a_native_fork_bomb_fails_inside_its_container() {
    let containerd = Containerd::shared();
    let beside = containerd.job("c-sleep").pids(20).start();
    let bomb = containerd.shell("n=0; while [ $n -lt 100 ]; do sleep 3600 & n=$((n+1)); done; echo all").pids(20);
    let container = bomb.start();
    let has_failed = until(Duration::from_secs(20), || container.streams.stderr().contains("fork"));
    assert!(has_failed, "stdout {:?}, stderr {:?}", container.streams.stdout(), container.streams.stderr());
    assert!(!container.streams.stdout().contains("all"));
    assert!(container.pids().is_ok_and(|pids| pids.len() <= 20) || !is_alive(container.pid));
    assert!(is_alive(beside.pid), "a neighbour goes on");
}

#[test]
fn a_guest_runs_under_a_limit_of_tasks() {
    let containerd = Containerd::shared();
    for (guest, greeting) in
        [("c-hello", "hello\n"), ("go-hello", "hello\n"), ("rust-p3-hello", "hello from WASI 0.3\n")]
    {
        let outcome = containerd.job(guest).pids(20).run();
        assert_eq!((outcome.code, outcome.stdout.as_str()), (0, greeting), "{guest}: {outcome:?}");
    }
    let port = free_port();
    let server = serving(containerd.job("rust-p2-http").pids(20), port);
    assert_eq!(server.cgroup.pids_limit(), Some(20));
    std::thread::scope(|scope| {
        for _ in 0..64 {
            scope.spawn(move || assert_eq!(get(port, "/slow?ms=100").unwrap().status, 200));
        }
    });
    assert!(server.figures().unwrap().pids <= 20);
}

#[test]
fn a_guest_that_wants_threads_is_refused_by_the_name_of_its_import() {
    let containerd = Containerd::shared();
    let image = Image::of_text(
        containerd,
        "(module (import \"wasi\" \"thread-spawn\" (func $spawn (param i32) (result i32)))
           (func (export \"wasi_thread_start\") (param i32 i32))
           (func (export \"_start\") (loop $again (drop (call $spawn (i32.const 0))) (br $again))))",
    );
    let refused = containerd.job_of(&image).pids(20).refused();
    assert!(refused.message.contains("wasi") && refused.message.contains("thread-spawn"), "{refused}");
}

#[test]
fn a_guest_has_the_open_files_of_its_rlimit() {
    let containerd = Containerd::shared();
    let opened = |most: u64| {
        let job = containerd.job("c-descriptors").args(["/c-descriptors.wasm"]).edit(|spec| {
            spec["process"]["rlimits"] = json!([{"type": "RLIMIT_NOFILE", "hard": most, "soft": most}]);
        });
        let outcome = job.run();
        assert_eq!(outcome.code, 0, "under {most}: {outcome:?}");
        let number = outcome.stdout.trim().strip_prefix("opened ").and_then(|number| number.parse::<u64>().ok());
        number.unwrap_or_else(|| panic!("under {most}: {outcome:?}"))
    };
    for most in [64, 256, 1024] {
        let count = opened(most);
        assert!((most / 2..most).contains(&count), "{count} files under {most}");
    }
}

#[test]
fn a_full_file_system_is_an_error_of_the_write() {
    let job = Containerd::shared().job("c-fill").args(["/data/file"]).memory(64 * MIB);
    let outcome = job.mount("/data", "tmpfs", "tmpfs", &["nosuid", "nodev", "size=2m"]).run();
    assert_eq!((outcome.code, outcome.stdout.as_str()), (0, "wrote 2048 KiB, then ENOSPC\n"), "{outcome:?}");
}

#[test]
fn a_file_has_the_size_of_its_rlimit() {
    let job = Containerd::shared().job("c-fill").args(["/data/file", "64"]).memory(64 * MIB).edit(|spec| {
        spec["process"]["rlimits"] = json!([{"type": "RLIMIT_FSIZE", "hard": MIB, "soft": MIB}]);
    });
    let outcome = job.mount("/data", "tmpfs", "tmpfs", &["nosuid", "nodev", "size=8m"]).run();
    assert_eq!((outcome.code, outcome.stdout.as_str()), (0, "wrote 1024 KiB, then EFBIG\n"), "{outcome:?}");
}

#[test]
fn the_figures_are_those_of_the_guest() {
    let containerd = Containerd::shared();
    let job = containerd.job("c-grow").args(["wait", "16", "40"]).stdin().memory(64 * MIB).pids(20);
    let container = job.start();
    container.streams.wait_for_stdout("grew 40 MiB\n");
    let figures = container.figures().unwrap();
    assert!((40 * MIB..64 * MIB).contains(&figures.memory_bytes), "{figures:?}");
    assert_eq!((figures.memory_limit_bytes, figures.oom_kills), (64 * MIB, 0));
    assert!((1..20).contains(&figures.pids), "{figures:?}");
    let spinning = containerd.job("c-spin").start();
    let before = spinning.figures().unwrap().cpu_ns;
    eventually("processor time rises", || (spinning.figures().unwrap().cpu_ns > before + 50_000_000).then_some(()));
}

fn skiff(arguments: &[&str]) -> Output {
    let output = Command::new(programs().join("skiff")).args(arguments).output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    output
}

/// The output of `skiff stats` for a container, by what names it.
fn stats(name: &str) -> Value {
    let output = skiff(&["stats", name, "--json"]);
    let list: Value = serde_json::from_slice(&output.stdout).unwrap_or_else(|error| panic!("{error}: {output:?}"));
    assert_eq!(list.as_array().unwrap().len(), 1, "{list}");
    list[0].clone()
}

#[test]
fn skiff_stats_knows_the_guests_memory_its_peak_and_the_refusals() {
    let job = Containerd::shared().job("c-grow").args(["wait", "16", "40"]).stdin().memory(64 * MIB);
    let container = job.start();
    container.streams.wait_for_stdout("grew 40 MiB\n");
    let before = stats(&container.id);
    let memory = before["linear_memory_bytes"].as_u64().unwrap();
    assert!((40 * MIB..43 * MIB).contains(&memory), "{before}");
    assert_eq!((&before["peak_bytes"], &before["refusals"]), (&json!(memory), &json!(0)), "{before}");
    container.streams.write(b"1000\n");
    container.streams.wait_for_stdout("refused after");
    let bundle = Containerd::shared().bundle(&container.id);
    let after = stats(bundle.to_str().unwrap());
    assert!(after["peak_bytes"].as_u64().unwrap() > 50 * MIB, "{after}");
    assert_eq!((&after["refusals"], &after["ran_out"]), (&json!(1), &json!(false)), "{after}");
    let text = String::from_utf8(skiff(&["stats", &container.id]).stdout).unwrap();
    let lines: Vec<_> = text.lines().collect();
    assert!(lines.len() == 2 && lines[0].starts_with("NAMESPACE") && lines[1].contains(&container.id), "{text}");
    container.kill(libc::SIGKILL).unwrap();
    assert_eq!(container.finish().code, 137);
}

#[test]
fn skiff_ps_lists_the_wasm_containers_of_the_node_by_pod_and_name() {
    let containerd = Containerd::shared();
    let pod = skiff_test::random_name("pod");
    let job = containerd.job("c-spin").annotation("io.kubernetes.cri.sandbox-name", &pod);
    let hostile = "a\u{1b}[31m\nb";
    let container = job.annotation("io.kubernetes.cri.container-name", hostile).start();
    let native = containerd.shell("sleep 3600").start();
    let list: Value = serde_json::from_slice(&skiff(&["ps", "--json"]).stdout).unwrap();
    let named = |id: &str| list.as_array().unwrap().iter().find(|one| one["id"] == id);
    let found = named(&container.id).unwrap_or_else(|| panic!("{} is not in {list}", container.id));
    assert_eq!((&found["pod"], &found["name"]), (&json!(pod), &json!(hostile)), "{found}");
    assert_eq!((&found["module"], &found["pid"]), (&json!("/c-spin.wasm"), &json!(container.pid)));
    assert!(found["linear_memory_bytes"].as_u64().unwrap() > 0, "{found}");
    assert!(named(&native.id).is_none(), "a native container is not one of wasm: {list}");
    assert_eq!(stats(&pod)["id"], json!(container.id));
    let text = String::from_utf8(skiff(&["ps"]).stdout).unwrap();
    let line = text.lines().find(|line| line.contains(&pod)).unwrap_or_else(|| panic!("{pod} is not in {text}"));
    assert!(line.contains("a\\u{1b}[31m\\nb") && !text.contains('\u{1b}'), "{line}");
    container.kill(libc::SIGKILL).unwrap();
    assert_eq!(container.finish().code, 137);
}

#[test]
fn skiff_stats_of_what_is_no_wasm_container_is_a_sentence() {
    let container = Containerd::shared().shell("sleep 3600").start();
    for place in [Containerd::shared().bundle(&container.id), "/no/such/bundle".into()] {
        let output = Command::new(programs().join("skiff")).arg("stats").arg(&place).output().unwrap();
        let stderr = String::from_utf8_lossy(&output.stderr);
        assert!(!output.status.success() && stderr.contains(&*place.to_string_lossy()), "{output:?}");
    }
}
