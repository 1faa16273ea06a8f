//! Attacks on a shim at work, which is called as containerd calls it: volumes that do not answer, deletions while something
//! is made, and ids that are used again. Each was tried against skiff as it was before there were walls, and succeeded;
//! of two Deletes of one id the moment cannot be hit from outside.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "what goes wrong in a test fails it")]

use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::time::{Duration, Instant};

use nix::sys::signal::Signal;
use serde_json::{Value, json};
use skiff_test::ttrpc_shim::{
    Bundle, Host, Shim, annotations, eventually, processes_with, refusal, runtime_options, spec,
};
use skiff_test::{Silence, Volume, children_of, command_line_of, guest, is_alive, slow_module, tools};
use tokio::task::JoinHandle;
use ttrpc::Code;

/// Whatever is asked about another container is answered within this, on a machine that has nothing else to do.
const ANSWER: Duration = Duration::from_millis(100);
/// After so long a shim that nobody needs is gone.
const END: Duration = Duration::from_secs(10);

/// A module that takes long to compile, as a file of the host.
fn slow_file(host: &Host, seed: u32) -> std::path::PathBuf {
    let path = host.dir.join(format!("slow{seed}.wasm"));
    fs::write(&path, slow_module(seed, 700)).unwrap();
    path
}

/// A container's create, under way.
fn creating(shim: &Shim, bundle: &Bundle) -> JoinHandle<ttrpc::Result<u32>> {
    let (tasks, request) = (shim.tasks.clone(), bundle.create_request());
    let context = skiff_test::ttrpc_shim::call();
    tokio::spawn(async move { tasks.create(context, &request).await.map(|created| created.pid) })
}

fn compilers_of(shim: i32) -> Vec<u32> {
    let children = children_of(u32::try_from(shim).unwrap()).into_iter();
    children.filter(|child| command_line_of(*child).contains(" compile ")).collect()
}

async fn is_gone(pid: i32) -> bool {
    let deadline = Instant::now() + END;
    while is_alive(u32::try_from(pid).unwrap()) {
        if Instant::now() > deadline {
            return false;
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    true
}

/// The fastest of some answers: what else the machine does must not count.
async fn fastest(shim: &Shim, bundle: &Bundle) -> Duration {
    let mut fastest = Duration::MAX;
    for _ in 0..5 {
        let since = Instant::now();
        let answered = tokio::time::timeout(Duration::from_secs(2), shim.state(bundle)).await;
        answered.expect("the state is told").unwrap();
        fastest = fastest.min(since.elapsed());
    }
    fastest
}

const IN_THE_VOLUME: &str = "/v/app.wasm";

/// Has a container of a pod wait for a volume that is silent from some moment on, and then does without it.
async fn check_silence(since: Silence, module: &str) {
    let host = Host::new().await;
    let pod = host.id("pod");
    let volume = Volume::silent(since);
    let neighbour = host.native_with("neighbour", &["sleep", "1000"], |spec| {
        spec["annotations"] = annotations(&pod, "container");
    });
    let waiting = host.wasm_with("waiting", &guest("c-sleep"), &[], |spec| {
        if module == IN_THE_VOLUME {
            spec["process"]["args"] = json!([module]);
        }
        let volume = json!({"destination": "/v", "type": "bind", "source": volume.path(), "options": ["rbind", "ro"]});
        spec["mounts"].as_array_mut().unwrap().push(volume);
        spec["annotations"] = annotations(&pod, "container");
    });
    let shim = host.run(&neighbour).await;
    let pid = shim.pid().await;
    host.start(&waiting).await;
    let create = creating(&shim, &waiting);
    eventually("the volume is waited for", || volume.has_turned()).await;

    assert!(fastest(&shim, &neighbour).await < ANSWER, "{since:?}");
    assert!(!create.is_finished(), "{since:?}");
    let ended = tokio::time::timeout(END, shim.end(&neighbour)).await;
    assert!(ended.is_ok(), "{since:?}: the neighbour cannot be killed and deleted");
    let deleted = tokio::time::timeout(END * 2, shim.delete(&waiting)).await.expect("Delete is answered");
    assert_eq!(refusal(&deleted.unwrap_err()).0, Code::NOT_FOUND, "{since:?}");
    shim.shutdown_after(&waiting).await;
    assert!(is_gone(pid).await, "{since:?}: the shim outlives its pod");
    drop(create.await);
    drop(volume);
    host.assert_nothing_left().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_volume_that_cannot_be_mounted_holds_up_its_own_container_only_and_not_the_end_of_the_pod() {
    check_silence(Silence::All, "of the image").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_volume_that_is_not_reached_holds_up_its_own_container_only_and_not_the_end_of_the_pod() {
    check_silence(Silence::All, IN_THE_VOLUME).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_module_that_cannot_be_read_holds_up_its_own_container_only_and_not_the_end_of_the_pod() {
    check_silence(Silence::Read, IN_THE_VOLUME).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_container_that_is_deleted_while_it_is_compiled_is_not_made() {
    let host = Host::new().await;
    let bundle = host.wasm_with("a", &slow_file(&host, 1), &[], |_| {});
    let shim = host.start(&bundle).await;
    let pid = shim.pid().await;
    let create = creating(&shim, &bundle);
    eventually("the compiler runs", || !compilers_of(pid).is_empty()).await;
    let compiler = compilers_of(pid)[0];
    let deleted = shim.delete(&bundle).await.unwrap_err();
    assert_eq!(refusal(&deleted).0, Code::NOT_FOUND);
    shim.shutdown_after(&bundle).await;
    assert!(is_gone(pid).await, "the shim outlives its container");
    assert!(!is_alive(compiler), "{}", command_line_of(compiler));
    create.await.unwrap().expect_err("the container is not made");
    host.assert_nothing_left().await;
}

/// The specification of a pod's sandbox on the node's network.
fn sandbox(pod: &str) -> Value {
    let mut spec = spec(&["/pause"]);
    spec["annotations"] = annotations(pod, "sandbox");
    spec["linux"]["namespaces"].as_array_mut().unwrap().retain(|namespace| namespace["type"] != "network");
    spec
}

#[tokio::test(flavor = "multi_thread")]
async fn a_container_whose_sandbox_is_deleted_while_it_is_compiled_is_not_made() {
    let host = Host::new().await;
    let pod = host.id("pod");
    let box_of_the_pod = host.bundle("pod", &sandbox(&pod), |_| {});
    let late = host.wasm_with("late", &slow_file(&host, 2), &[], |spec| {
        spec["annotations"] = annotations(&pod, "container");
    });
    let shim = host.run(&box_of_the_pod).await;
    let pid = shim.pid().await;
    host.start(&late).await;
    let create = creating(&shim, &late);
    eventually("the compiler runs", || !compilers_of(pid).is_empty()).await;
    shim.end(&box_of_the_pod).await;
    let refused = create.await.unwrap().expect_err("the container is not made");
    assert!(refusal(&refused).1.contains(&late.id), "{refused}");
    let strays: Vec<_> =
        processes_with(&host.token).into_iter().filter(|(process, _)| *process != pid && is_engine(*process)).collect();
    assert!(strays.is_empty(), "{strays:?}");
    shim.shutdown_after(&late).await;
    assert!(is_gone(pid).await, "the shim outlives its pod");
    host.assert_nothing_left().await;
}

/// Whether a process is one of a container's.
fn is_engine(pid: i32) -> bool {
    fs::read_to_string(format!("/proc/{pid}/cgroup")).is_ok_and(|groups| groups.contains("skiff-test-"))
}

/// Has the shim run a stand-in for the OCI runtime, whose calls of `delete` wait: the first one for a file `first`, the
/// others for a file `second` in the host's directory.
fn waiting_runtime(host: &Host) -> String {
    let (path, dir, runc) = (host.dir.join("runtime.sh"), host.dir.display(), tools().join("runc"));
    let script = format!(
        "#!/bin/sh\n\
         case \" $* \" in *' delete '*)\n\
           turn=second; mkdir {dir}/deleting 2> /dev/null && turn=first\n\
           touch {dir}/asked-$turn; while [ ! -e {dir}/$turn ]; do sleep 0.05; done;;\n\
         esac\n\
         exec {} \"$@\"\n",
        runc.display()
    );
    fs::write(&path, script).unwrap();
    fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).unwrap();
    path.to_str().unwrap().into()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_second_delete_leaves_the_next_container_of_that_id_alone() {
    let host = Host::new().await;
    let mut bundle = host.native("a", &["sleep", "1000"]);
    bundle.options = runtime_options(&host.toml(&format!("BinaryName = \"{}\"", waiting_runtime(&host))));
    let shim = host.run(&bundle).await;
    shim.kill(&bundle, Signal::SIGKILL).await.unwrap();
    shim.wait(&bundle).await;
    let delete = || {
        let (tasks, id) = (shim.tasks.clone(), bundle.id.clone());
        let request = containerd_shim_protos::api::DeleteRequest { id, ..Default::default() };
        tokio::spawn(async move { tasks.delete(skiff_test::ttrpc_shim::call(), &request).await })
    };
    let first = delete();
    eventually("the runtime is asked", || host.dir.join("asked-first").exists()).await;
    let second = delete();
    // The second is under way once something that came later was answered.
    tokio::time::timeout(END, shim.state(&bundle)).await.unwrap().unwrap();
    fs::write(host.dir.join("first"), "").unwrap();
    first.await.unwrap().unwrap();
    let pid = shim.create(&bundle).await.unwrap();
    shim.run(&bundle).await.unwrap();
    fs::write(host.dir.join("second"), "").unwrap();
    let refused = second.await.unwrap().unwrap_err();
    assert_eq!(refusal(&refused).0, Code::NOT_FOUND, "{refused}");
    assert!(is_alive(u32::try_from(pid).unwrap()), "the new container lives");
    assert_eq!(shim.state(&bundle).await.unwrap().pid, u32::try_from(pid).unwrap());
    shim.end(&bundle).await;
    shim.shutdown().await;
    host.assert_nothing_left().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_socket_of_a_shim_is_roots_alone() {
    let host = Host::new().await;
    let bundle = host.wasm("a", "c-hello", &[]);
    // containerd may have been started so.
    let mut start = host.command(&bundle, "start");
    let open_to_all = || {
        nix::sys::stat::umask(nix::sys::stat::Mode::empty());
        Ok(())
    };
    // SAFETY: the closure makes one system call and allocates nothing.
    unsafe { start.pre_exec(open_to_all) };
    let output = start.output().await.unwrap();
    let answer: Value = serde_json::from_slice(&output.stdout).unwrap();
    let shim = host.connect(answer["address"].as_str().unwrap()).await;
    assert_eq!(fs::metadata(&shim.socket).unwrap().mode() & 0o777, 0o600);
    shim.shutdown().await;
    host.assert_nothing_left().await;
}
