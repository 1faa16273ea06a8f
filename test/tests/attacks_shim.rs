//! Attacks on a shim at work, which is called as containerd calls it: volumes that do not answer, deletions during a create, and
//! ids that are used again. Each one succeeded against skiff before the walls were built, except the two Deletes of one id: the
//! moment cannot be hit from outside.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::time::{Duration, Instant};

use nix::sys::signal::Signal;
use serde_json::{Value, json};
use skiff_test::fake_containerd::{
    Bundle, FakeContainerd, Shim, annotations, call, refusal, runtime_options, sandbox_spec,
};
use skiff_test::{
    Silence, Volume, command_line_of, compilers_of, guest, holds, holds_within, is_alive, processes_touching,
    slow_module,
};
use tokio::task::JoinHandle;
use ttrpc::Code;

/// A call about another container is answered within this time on an idle machine.
const ANSWER: Duration = Duration::from_millis(100);
/// A shim without containers ends within this time.
const END: Duration = Duration::from_secs(10);

/// A module that takes long to compile, as a file.
fn slow_file(containerd: &FakeContainerd, seed: u32) -> std::path::PathBuf {
    let path = containerd.dir.join(format!("slow{seed}.wasm"));
    fs::write(&path, slow_module(seed, 700)).unwrap();
    path
}

/// A create that is under way.
fn creating(shim: &Shim, bundle: &Bundle) -> JoinHandle<ttrpc::Result<u32>> {
    let (tasks, request) = (shim.tasks.clone(), bundle.create_request());
    let context = call();
    tokio::spawn(async move { tasks.create(context, &request).await.map(|created| created.pid) })
}

async fn is_gone(pid: u32) -> bool {
    holds_within(END, || !is_alive(pid)).await
}

/// The fastest of a few answers, so that other load on the machine does not count.
async fn fastest(shim: &Shim, bundle: &Bundle) -> Duration {
    let mut fastest = Duration::MAX;
    for _ in 0..5 {
        let since = Instant::now();
        let answered = tokio::time::timeout(Duration::from_secs(2), shim.state(bundle)).await;
        answered.expect("the state is returned").unwrap();
        fastest = fastest.min(since.elapsed());
    }
    fastest
}

const IN_THE_VOLUME: &str = "/v/app.wasm";

/// Makes a container of a pod wait for a volume that stops answering, and deletes the container meanwhile.
async fn check_silence(since: Silence, module: &str) {
    let containerd = FakeContainerd::new().await;
    let pod = containerd.id("pod");
    let volume = Volume::silent(since);
    let neighbour = containerd.native_with("neighbour", &["sleep", "1000"], |spec| {
        spec["annotations"] = annotations(&pod, "container");
    });
    let waiting = containerd.wasm_with("waiting", &guest("c-sleep"), &[], |spec| {
        if module == IN_THE_VOLUME {
            spec["process"]["args"] = json!([module]);
        }
        let volume = json!({"destination": "/v", "type": "bind", "source": volume.path(), "options": ["rbind", "ro"]});
        spec["mounts"].as_array_mut().unwrap().push(volume);
        spec["annotations"] = annotations(&pod, "container");
    });
    let shim = containerd.run(&neighbour).await;
    let pid = shim.pid().await;
    containerd.start(&waiting).await;
    let create = creating(&shim, &waiting);
    holds("the volume is waited for", || volume.has_turned()).await;

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
    containerd.assert_nothing_left().await;
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
    let containerd = FakeContainerd::new().await;
    let bundle = containerd.wasm_with("a", &slow_file(&containerd, 1), &[], |_| {});
    let shim = containerd.start(&bundle).await;
    let pid = shim.pid().await;
    let create = creating(&shim, &bundle);
    holds("the compiler runs", || !compilers_of(pid).is_empty()).await;
    let compiler = compilers_of(pid)[0];
    let deleted = shim.delete(&bundle).await.unwrap_err();
    assert_eq!(refusal(&deleted).0, Code::NOT_FOUND);
    shim.shutdown_after(&bundle).await;
    assert!(is_gone(pid).await, "the shim outlives its container");
    assert!(!is_alive(compiler), "{}", command_line_of(compiler));
    create.await.unwrap().expect_err("the container is not made");
    containerd.assert_nothing_left().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_container_whose_sandbox_is_deleted_while_it_is_compiled_is_not_made() {
    let containerd = FakeContainerd::new().await;
    let pod = containerd.id("pod");
    let box_of_the_pod = containerd.bundle("pod", &sandbox_spec(&pod), |_| {});
    let late = containerd.wasm_with("late", &slow_file(&containerd, 2), &[], |spec| {
        spec["annotations"] = annotations(&pod, "container");
    });
    let shim = containerd.run(&box_of_the_pod).await;
    let pid = shim.pid().await;
    containerd.start(&late).await;
    let create = creating(&shim, &late);
    holds("the compiler runs", || !compilers_of(pid).is_empty()).await;
    shim.end(&box_of_the_pod).await;
    let refused = create.await.unwrap().expect_err("the container is not made");
    assert!(refusal(&refused).1.contains(&late.id), "{refused}");
    let strays: Vec<_> = processes_touching(&containerd.token)
        .into_iter()
        .filter(|(process, _)| *process != pid && is_engine(*process))
        .collect();
    assert!(strays.is_empty(), "{strays:?}");
    shim.shutdown_after(&late).await;
    assert!(is_gone(pid).await, "the shim outlives its pod");
    containerd.assert_nothing_left().await;
}

/// Whether a process belongs to a container.
fn is_engine(pid: u32) -> bool {
    fs::read_to_string(format!("/proc/{pid}/cgroup")).is_ok_and(|groups| groups.contains("skiff-test-"))
}

/// An OCI runtime whose calls of `delete` wait: the first one for a file `first`, the others for a file `second`, in the
/// directory of containerd.
fn waiting_runtime(containerd: &FakeContainerd) -> String {
    let dir = containerd.dir.display();
    containerd.oci_runtime(&format!(
        "case \" $* \" in *' delete '*)\n\
           turn=second; mkdir {dir}/deleting 2> /dev/null && turn=first\n\
           touch {dir}/asked-$turn; while [ ! -e {dir}/$turn ]; do sleep 0.05; done;;\n\
         esac"
    ))
}

#[tokio::test(flavor = "multi_thread")]
async fn a_second_delete_leaves_the_next_container_of_that_id_alone() {
    let containerd = FakeContainerd::new().await;
    let mut bundle = containerd.native("a", &["sleep", "1000"]);
    bundle.options = runtime_options(&containerd.toml(&format!("BinaryName = \"{}\"", waiting_runtime(&containerd))));
    let shim = containerd.run(&bundle).await;
    shim.kill(&bundle, Signal::SIGKILL).await.unwrap();
    shim.wait(&bundle).await;
    let delete = || {
        let (tasks, id) = (shim.tasks.clone(), bundle.id.clone());
        let request = containerd_shim_protos::api::DeleteRequest { id, ..Default::default() };
        tokio::spawn(async move { tasks.delete(call(), &request).await })
    };
    let first = delete();
    holds("the runtime is asked", || containerd.dir.join("asked-first").exists()).await;
    let second = delete();
    // Once a later call is answered, the second is under way.
    tokio::time::timeout(END, shim.state(&bundle)).await.unwrap().unwrap();
    fs::write(containerd.dir.join("first"), "").unwrap();
    first.await.unwrap().unwrap();
    let pid = shim.create(&bundle).await.unwrap();
    shim.run(&bundle).await.unwrap();
    fs::write(containerd.dir.join("second"), "").unwrap();
    let refused = second.await.unwrap().unwrap_err();
    assert_eq!(refusal(&refused).0, Code::NOT_FOUND, "{refused}");
    assert!(is_alive(pid), "the new container lives");
    assert_eq!(shim.state(&bundle).await.unwrap().pid, pid);
    shim.end(&bundle).await;
    shim.shutdown().await;
    containerd.assert_nothing_left().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_socket_of_a_shim_is_roots_alone() {
    let containerd = FakeContainerd::new().await;
    let bundle = containerd.wasm("a", "c-hello", &[]);
    // containerd may have been started with this umask.
    let mut start = containerd.command(&bundle, "start");
    let open_to_all = || {
        nix::sys::stat::umask(nix::sys::stat::Mode::empty());
        Ok(())
    };
    // SAFETY: the closure makes one system call and allocates nothing.
    unsafe { start.pre_exec(open_to_all) };
    let output = start.output().await.unwrap();
    let answer: Value = serde_json::from_slice(&output.stdout).unwrap();
    let shim = containerd.connect(answer["address"].as_str().unwrap()).await;
    assert_eq!(fs::metadata(&shim.socket).unwrap().mode() & 0o777, 0o600);
    shim.shutdown().await;
    containerd.assert_nothing_left().await;
}
