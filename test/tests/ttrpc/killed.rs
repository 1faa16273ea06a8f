//! A shim that is killed at any step: `delete` removes whatever it left.

use std::fs;
use std::path::Path;
use std::time::Duration;

use containerd_shim_protos::api::{CreateTaskRequest, PauseRequest};
use nix::sys::signal::Signal;
use nix::sys::stat::Mode;
use nix::unistd::mkfifo;
use serde_json::{Value, json};
use skiff_test::fake_containerd::{FakeContainerd, annotations, call, runtime_options};
use skiff_test::{TERMINALS, guest, holds, is_alive, signal, tools};

use crate::{add_exec, calls, kill_and_delete, kill_now, logging_runtime};

#[tokio::test(flavor = "multi_thread")]
async fn a_shim_killed_before_any_create_leaves_nothing_behind_delete() {
    let containerd = FakeContainerd::new().await;
    let bundle = containerd.wasm("a", "c-sleep", &[]);
    let shim = containerd.start(&bundle).await;
    kill_and_delete(&containerd, shim.pid().await, &bundle).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_shim_killed_after_create_leaves_nothing_behind_delete() {
    for native in [false, true] {
        let containerd = FakeContainerd::new().await;
        let bundle =
            if native { containerd.native("a", &["sleep", "1000"]) } else { containerd.wasm("a", "c-sleep", &[]) };
        let shim = containerd.start(&bundle).await;
        shim.create(&bundle).await.unwrap();
        kill_and_delete(&containerd, shim.pid().await, &bundle).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_shim_killed_after_start_leaves_nothing_behind_delete() {
    for native in [false, true] {
        let containerd = FakeContainerd::new().await;
        // The native container has children of its own, in the pid namespace of the node.
        let share = |spec: &mut Value| {
            spec["linux"]["namespaces"].as_array_mut().unwrap().retain(|namespace| namespace["type"] != "pid");
        };
        let script = "sleep 1000 & setsid sleep 1000 & wait";
        let bundle = if native {
            containerd.native_with("a", &["sh", "-c", script], share)
        } else {
            containerd.wasm("a", "c-spin", &[])
        };
        let shim = containerd.run(&bundle).await;
        kill_and_delete(&containerd, shim.pid().await, &bundle).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_shim_killed_beside_a_paused_container_leaves_nothing_behind_delete() {
    let containerd = FakeContainerd::new().await;
    let bundle = containerd.wasm("a", "c-spin", &[]);
    let shim = containerd.run(&bundle).await;
    shim.tasks.pause(call(), &PauseRequest { id: bundle.id.clone(), ..PauseRequest::default() }).await.unwrap();
    kill_and_delete(&containerd, shim.pid().await, &bundle).await;
}

/// Nobody calls `delete` before the guest has ended.
#[tokio::test(flavor = "multi_thread")]
async fn a_guest_ends_when_its_terminal_hangs_up() {
    for in_pod in [false, true] {
        let containerd = FakeContainerd::new().await;
        let bundle = containerd.wasm_with("a", &guest("c-sleep"), &[], |spec| {
            spec["process"]["terminal"] = json!(true);
            if in_pod {
                spec["annotations"] = annotations("a", "container");
            }
        });
        let shim = containerd.start(&bundle).await;
        let request = CreateTaskRequest { terminal: true, stderr: String::new(), ..bundle.create_request() };
        let pid = shim.tasks.create(call(), &request).await.unwrap().pid;
        shim.run(&bundle).await.unwrap();
        bundle.stdout.says("sleeping\r\n").await;
        let shim_pid = shim.pid().await;
        kill_now(shim_pid).await;
        holds("the guest has ended", || !is_alive(pid)).await;
        containerd.delete(&bundle).await;
        containerd.assert_nothing_left().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_shim_killed_while_it_compiles_leaves_nothing_behind_delete() {
    let containerd = FakeContainerd::new().await;
    let bundle = containerd.wasm("a", "go-hello", &[]);
    let shim = containerd.start(&bundle).await;
    let pid = shim.pid().await;
    let (tasks, request) = (shim.tasks.clone(), bundle.create_request());
    tokio::spawn(async move { tasks.create(call(), &request).await });
    holds("it compiles", || containerd.processes().iter().any(|(_, line)| line.contains("compile --confine"))).await;
    kill_and_delete(&containerd, pid, &bundle).await;
    // The module can still be compiled afterwards.
    let again = containerd.wasm("again", "go-hello", &[]);
    let shim = containerd.run(&again).await;
    assert_eq!(shim.wait(&again).await, 0);
    shim.delete(&again).await.unwrap();
    shim.shutdown().await;
    containerd.assert_nothing_left().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_shim_killed_while_the_oci_runtime_works_leaves_nothing_behind_delete() {
    // Before the runtime does anything, and after it has made the container.
    for (moment, script) in [
        ("before", "case \"$*\" in *' create '*) sleep 0.5;; esac".to_string()),
        (
            "after",
            format!(
                "case \"$*\" in *' create '*) {} \"$@\"; code=$?; sleep 0.5; exit $code;; esac",
                tools().join("runc").display()
            ),
        ),
    ] {
        let containerd = FakeContainerd::new().await;
        let mut bundle = containerd.native(moment, &["sleep", "1000"]);
        let slow = logging_runtime(&containerd, &script);
        bundle.options = runtime_options(&containerd.toml(&format!("BinaryName = \"{slow}\"")));
        let shim = containerd.start(&bundle).await;
        let pid = shim.pid().await;
        let (tasks, request) = (shim.tasks.clone(), bundle.create_request());
        tokio::spawn(async move { tasks.create(call(), &request).await });
        holds("runc was asked", || calls(&containerd).contains(" create ")).await;
        if moment == "after" {
            holds("runc has made it", || bundle.path.join("init.pid").exists()).await;
        }
        kill_now(pid).await;
        containerd.delete(&bundle).await;
        tokio::time::sleep(Duration::from_millis(700)).await;
        containerd.assert_nothing_left().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_shim_killed_at_any_moment_of_create_leaves_nothing_behind_delete() {
    let containerd = FakeContainerd::new().await;
    for delay_ms in [1, 4, 8, 14, 22, 32, 45, 60] {
        let bundle = containerd.native(&format!("after{delay_ms}"), &["sleep", "1000"]);
        let shim = containerd.start(&bundle).await;
        let pid = shim.pid().await;
        let (tasks, request) = (shim.tasks.clone(), bundle.create_request());
        tokio::spawn(async move { tasks.create(call(), &request).await });
        tokio::time::sleep(Duration::from_millis(delay_ms)).await;
        kill_and_delete(&containerd, pid, &bundle).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_shim_killed_at_any_step_of_an_exec_leaves_nothing_behind_delete() {
    // Before the runtime does anything, after it has made the process, and when that runs.
    let moments = ["before", "after", "running"].map(|moment| [(moment, false), (moment, true)]);
    for (moment, terminal) in moments.concat() {
        let containerd = FakeContainerd::new().await;
        let never = containerd.dir.join("never");
        mkfifo(&never, Mode::S_IRWXU).unwrap();
        let (runc, stop) = (tools().join("runc").display().to_string(), format!("read line <> {}", never.display()));
        let script = match moment {
            "before" => format!("case \"$*\" in *' exec '*) {stop};; esac"),
            "after" => format!("case \"$*\" in *' exec '*) {runc} \"$@\"; {stop};; esac"),
            _ => String::new(),
        };
        let mut bundle = containerd.wasm(moment, "c-sleep", &[]);
        fs::copy(guest("c-sleep"), bundle.image.join("beside.wasm")).unwrap();
        let runtime = logging_runtime(&containerd, &script);
        bundle.options = runtime_options(&containerd.toml(&format!("OwnLauncher = false\nBinaryName = \"{runtime}\"")));
        let shim = containerd.run(&bundle).await;
        let pid = shim.pid().await;
        let request = add_exec(&shim, &bundle, &["beside"], terminal).await;
        let tasks = shim.tasks.clone();
        let starting = tokio::spawn(async move { tasks.start(call(), &request).await });
        match moment {
            "before" => holds("runc was asked", || calls(&containerd).contains(" exec ")).await,
            "after" => holds("runc has made it", || bundle.path.join("exec-e.pid").exists()).await,
            _ => drop(starting.await.unwrap().unwrap()),
        }
        kill_and_delete(&containerd, pid, &bundle).await;
    }
}

/// A service with a call that says something, and never ends.
const SERVICE: &str = r#"(module
    (import "wasi_snapshot_preview1" "fd_write" (func $write (param i32 i32 i32 i32) (result i32)))
    (memory (export "memory") 1)
    (data (i32.const 0) "\10\00\00\00\08\00\00\00") (data (i32.const 16) "calling\n")
    (func (export "call")
        (drop (call $write (i32.const 1) (i32.const 0) (i32.const 1) (i32.const 32)))
        (loop $again (br $again))))"#;

#[tokio::test(flavor = "multi_thread")]
async fn a_shim_killed_during_a_call_leaves_nothing_behind_delete() {
    let containerd = FakeContainerd::new().await;
    let module = containerd.dir.join("service.wasm");
    fs::write(&module, wat::parse_str(SERVICE).unwrap()).unwrap();
    let bundle = containerd.wasm_with("a", &module, &[], |_| {});
    let shim = containerd.run(&bundle).await;
    let request = add_exec(&shim, &bundle, &["invoke", "call()"], false).await;
    shim.tasks.start(call(), &request).await.unwrap();
    bundle.stdout.says("calling\n").await;
    kill_and_delete(&containerd, shim.pid().await, &bundle).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_other_containers_of_a_killed_shim_are_deleted_one_by_one() {
    let containerd = FakeContainerd::new().await;
    let pod = containerd.id("pod");
    let annotate = |spec: &mut Value| spec["annotations"] = annotations(&pod, "container");
    let first = containerd.wasm_with("first", &guest("c-sleep"), &[], annotate);
    let second = containerd.native_with("second", &["sleep", "1000"], annotate);
    let shim = containerd.run(&first).await;
    containerd.start(&second).await;
    shim.create(&second).await.unwrap();
    kill_now(shim.pid().await).await;
    containerd.delete(&first).await;
    let left = containerd.leftovers();
    assert!(!left.iter().any(|line| line.contains(&first.id)), "{left:#?}");
    assert!(left.iter().any(|line| line.contains(&second.id)), "{left:#?}");
    containerd.delete(&second).await;
    containerd.assert_nothing_left().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_sockets_of_terminals_go_with_the_shim_and_not_before() {
    let containerd = FakeContainerd::new().await;
    let pod = containerd.id("pod");
    let annotate = |spec: &mut Value| spec["annotations"] = annotations(&pod, "container");
    let [first, second] = ["first", "second"].map(|name| containerd.wasm_with(name, &guest("c-sleep"), &[], annotate));
    let shim = containerd.run(&first).await;
    containerd.start(&second).await;
    shim.create(&second).await.unwrap();
    let pid = shim.pid().await;
    // Where an OCI runtime would connect to.
    fs::create_dir_all(TERMINALS).unwrap();
    let waiting = Path::new(TERMINALS).join(format!("tty-{pid}-waiting"));
    fs::write(&waiting, "").unwrap();
    // containerd does this after each container of a pod.
    containerd.delete(&second).await;
    assert!(waiting.exists(), "another container of the pod waits for its terminal");
    kill_now(pid).await;
    containerd.delete(&first).await;
    containerd.assert_nothing_left().await;
    assert!(!waiting.exists());
}

#[tokio::test(flavor = "multi_thread")]
async fn sigterm_ends_the_shim_and_delete_cleans_up_behind_it() {
    let containerd = FakeContainerd::new().await;
    let bundle = containerd.wasm("a", "c-sleep", &[]);
    let shim = containerd.run(&bundle).await;
    let pid = shim.pid().await;
    containerd.events.are(&bundle.id, &["create", "start"]).await;
    signal(pid, Signal::SIGTERM).unwrap();
    holds("the shim has ended", || !is_alive(pid)).await;
    assert!(!shim.socket.exists());
    containerd.delete(&bundle).await;
    containerd.assert_nothing_left().await;
}
