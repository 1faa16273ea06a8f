//! The real shim binary, started and called as containerd does it, without containerd: what it returns, which events it
//! publishes, and what is left of it when it is killed at any step. Each module is a chapter; this file has what they share.

mod confinement;
mod events;
mod killed;
mod life;
mod options;
mod refusals;
mod sandbox;
mod start;

use std::fs;

use containerd_shim_protos::api::{ExecProcessRequest, StartRequest};
use containerd_shim_protos::protobuf::MessageField;
use nix::sys::signal::Signal;
use serde_json::json;
use skiff_test::fake_containerd::{Bundle, FakeContainerd, Shim, any, call};
use skiff_test::{holds, is_alive, signal, tasks_of};

const VERSION_2: &str = "containerd.task.v2.Task";
const VERSION_3: &str = "containerd.task.v3.Task";

/// Sends SIGKILL and waits until the process and the last of its threads are gone; the main thread may end earlier.
async fn kill_now(pid: u32) {
    signal(pid, Signal::SIGKILL).unwrap();
    holds("the process is gone", || !is_alive(pid) && tasks_of(pid) <= 1).await;
}

/// Kills the shim and has `delete` clean up, as containerd does.
async fn kill_and_delete(containerd: &FakeContainerd, shim: u32, bundle: &Bundle) {
    kill_now(shim).await;
    let answer = containerd.delete(bundle).await;
    assert_eq!(answer.exit_status, 137);
    containerd.assert_nothing_left().await;
    // containerd may ask again.
    containerd.delete(bundle).await;
}

fn assert_is_sentence(text: &str) {
    let begins_well = text.starts_with(|c: char| c.is_lowercase() || c == '`') || text.starts_with("OCI");
    assert!(text.len() > 10 && begins_well, "{text}");
    assert!(!text.contains('\n') && !text.contains("Error {") && !text.contains("Some("), "{text}");
}

/// An OCI runtime that logs its arguments for [`calls`], does `more` and then runs runc.
fn logging_runtime(containerd: &FakeContainerd, more: &str) -> String {
    let log = containerd.dir.join("calls");
    containerd.oci_runtime(&format!("echo \"$*\" >> {}\n{more}", log.display()))
}

fn calls(containerd: &FakeContainerd) -> String {
    fs::read_to_string(containerd.dir.join("calls")).unwrap_or_default()
}

/// Describes a further process `e` of the container, at a terminal or not, and returns what starts it.
async fn add_exec(shim: &Shim, bundle: &Bundle, args: &[&str], terminal: bool) -> StartRequest {
    let process = json!({"args": args, "cwd": "/", "env": [], "user": {"uid": 0, "gid": 0}, "terminal": terminal});
    let spec = MessageField::some(any("process", process.to_string().as_bytes()));
    let (id, exec_id) = (bundle.id.clone(), "e".to_string());
    let added = ExecProcessRequest { id: id.clone(), exec_id: exec_id.clone(), terminal, spec, ..Default::default() };
    shim.tasks.exec(call(), &added).await.unwrap();
    StartRequest { id, exec_id, ..StartRequest::default() }
}
