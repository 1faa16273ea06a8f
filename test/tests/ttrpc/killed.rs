//! A shim that is killed at any step: `delete` removes whatever it left.

use std::time::Duration;

use containerd_shim_protos::api::PauseRequest;
use nix::sys::signal::Signal;
use serde_json::Value;
use skiff_test::fake_containerd::{FakeContainerd, annotations, call, runtime_options};
use skiff_test::{guest, holds, is_alive, signal, tools};

use crate::{calls, kill_and_delete, kill_now, logging_runtime};

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
