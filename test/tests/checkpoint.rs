//! Checkpoints of native containers, through the real OCI runtime and criu: a container that is made from a checkpoint continues
//! where the first one was.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use containerd_shim_protos::api::{CheckpointTaskRequest, Status};
use containerd_shim_protos::protobuf::{Message, MessageField};
use containerd_shim_protos::shim::oci::CheckpointOptions;
use nix::sys::signal::Signal;
use serde_json::json;
use skiff_test::fake_containerd::{Bundle, FakeContainerd, Shim, any, call, refusal, refused};
use skiff_test::{Containerd, Image, PATIENCE, holds, is_alive, tools, until};
use ttrpc::Code;

/// Counts into a file and prints every number.
const COUNT: &str =
    "n=0; while :; do n=$((n + 1)); echo $n > /count/new; mv /count/new /count/n; echo said $n; usleep 20000; done";
/// The exit code of a process that criu has killed.
const KILLED: u32 = 137;

/// Fails, with criu's own reason, on a machine that cannot make checkpoints.
fn need_criu() {
    let criu = Command::new(tools().join("criu")).arg("check").output().unwrap();
    let said = String::from_utf8_lossy(&criu.stdout).into_owned() + &String::from_utf8_lossy(&criu.stderr);
    assert!(criu.status.success(), "this machine cannot make checkpoints, says `criu check`:\n{said}");
}

/// A container that counts into a volume; all containers that are made here share it.
fn counting(containerd: &FakeContainerd, name: &str) -> Bundle {
    let volume = containerd.dir.join("volume");
    fs::create_dir_all(&volume).unwrap();
    let script = format!("{COUNT} # {}", containerd.token);
    containerd.native_with(name, &["sh", "-c", &script], |spec| {
        let mounts = spec["mounts"].as_array_mut().unwrap();
        mounts.push(json!({"destination": "/count", "type": "bind", "source": volume, "options": ["rbind", "rw"]}));
    })
}

fn count(containerd: &FakeContainerd) -> u64 {
    fs::read_to_string(containerd.dir.join("volume/n")).map_or(0, |text| text.trim().parse().unwrap())
}

async fn counts_beyond(containerd: &FakeContainerd, number: u64) {
    holds(&format!("the container counts beyond {number}"), || count(containerd) > number).await;
}

/// Asks for a checkpoint in `image`.
async fn checkpoint(shim: &Shim, bundle: &Bundle, image: &Path, exit: bool) -> ttrpc::Result<()> {
    checkpoint_with(shim, bundle, image, &CheckpointOptions { exit, ..CheckpointOptions::default() }).await
}

async fn checkpoint_with(shim: &Shim, bundle: &Bundle, image: &Path, options: &CheckpointOptions) -> ttrpc::Result<()> {
    let request = CheckpointTaskRequest {
        id: bundle.id.clone(),
        path: image.to_str().unwrap().into(),
        options: MessageField::some(any("containerd.runc.v1.CheckpointOptions", &options.write_to_bytes().unwrap())),
        ..CheckpointTaskRequest::default()
    };
    shim.tasks.checkpoint(call(), &request).await.map(drop)
}

/// Creates the container of `bundle` from the checkpoint in `image` and returns its pid.
async fn create_from(shim: &Shim, bundle: &Bundle, image: &Path) -> ttrpc::Result<u32> {
    let mut request = bundle.create_request();
    request.checkpoint = image.to_str().unwrap().into();
    Ok(shim.tasks.create(call(), &request).await?.pid)
}

/// A checkpoint of a container that counted. The checkpoint ended it, and it is deleted.
async fn checkpoint_of_a_counter(containerd: &FakeContainerd) -> PathBuf {
    need_criu();
    let (image, bundle) = (containerd.dir.join("checkpoint"), counting(containerd, "first"));
    let shim = containerd.run(&bundle).await;
    counts_beyond(containerd, 5).await;
    checkpoint(&shim, &bundle, &image, true).await.unwrap();
    assert_eq!(shim.wait(&bundle).await, KILLED);
    containerd.events.are(&bundle.id, &["create", "start", "checkpointed", "exit"]).await;
    assert_eq!(shim.delete(&bundle).await.unwrap(), KILLED);
    shim.shutdown().await;
    containerd.assert_nothing_left().await;
    image
}

#[tokio::test(flavor = "multi_thread")]
async fn a_restored_container_goes_on_where_its_checkpoint_was_made() {
    let containerd = FakeContainerd::new().await;
    let image = checkpoint_of_a_counter(&containerd).await;
    let before = count(&containerd);
    let bundle = counting(&containerd, "second");
    let shim = containerd.start(&bundle).await;
    assert_eq!(create_from(&shim, &bundle, &image).await.unwrap(), 0);
    let state = shim.state(&bundle).await.unwrap();
    assert_eq!((state.status.enum_value().unwrap(), state.pid), (Status::CREATED, 0));
    assert_eq!(count(&containerd), before);
    fs::remove_file(containerd.dir.join("volume/n")).unwrap();
    let pid = shim.run(&bundle).await.unwrap();
    counts_beyond(&containerd, before + 5).await;
    // Its output continues on the streams of the new container.
    bundle.stdout.says(&format!("said {}\n", before + 3)).await;
    assert!(!bundle.stdout.text().contains("said 1\n"), "{}", bundle.stdout.text());
    let state = shim.state(&bundle).await.unwrap();
    assert_eq!((state.status.enum_value().unwrap(), state.pid), (Status::RUNNING, pid));
    shim.kill(&bundle, Signal::SIGKILL).await.unwrap();
    assert_eq!(shim.wait(&bundle).await, KILLED);
    assert_eq!(shim.delete(&bundle).await.unwrap(), KILLED);
    containerd.events.are(&bundle.id, &["create", "start", "exit", "delete"]).await;
    shim.shutdown().await;
    containerd.assert_nothing_left().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_restored_container_that_was_never_started_can_be_deleted() {
    let containerd = FakeContainerd::new().await;
    let image = checkpoint_of_a_counter(&containerd).await;
    let bundle = counting(&containerd, "second");
    let shim = containerd.start(&bundle).await;
    create_from(&shim, &bundle, &image).await.unwrap();
    assert_eq!(shim.delete(&bundle).await.unwrap(), KILLED);
    containerd.events.are(&bundle.id, &["create", "exit", "delete"]).await;
    shim.shutdown().await;
    containerd.assert_nothing_left().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_checkpoint_that_is_broken_fails_the_start_with_a_reason_and_leaves_nothing() {
    let containerd = FakeContainerd::new().await;
    let image = checkpoint_of_a_counter(&containerd).await;
    fs::write(image.join("inventory.img"), "no inventory").unwrap();
    let bundle = counting(&containerd, "second");
    let shim = containerd.start(&bundle).await;
    create_from(&shim, &bundle, &image).await.unwrap();
    let (code, said) = refused(shim.run(&bundle).await);
    assert!(
        said.contains("OCI runtime restore failed") && said.contains("inventory.img") && !said.contains('\n'),
        "{code:?} {said}"
    );
    shim.delete(&bundle).await.unwrap();
    shim.shutdown().await;
    containerd.assert_nothing_left().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_container_may_run_on_after_its_checkpoint() {
    need_criu();
    let containerd = FakeContainerd::new().await;
    let (image, bundle) = (containerd.dir.join("checkpoint"), counting(&containerd, "a"));
    let shim = containerd.run(&bundle).await;
    counts_beyond(&containerd, 5).await;
    checkpoint(&shim, &bundle, &image, false).await.unwrap();
    assert!(image.join("pstree.img").is_file());
    counts_beyond(&containerd, count(&containerd)).await;
    containerd.events.are(&bundle.id, &["create", "start", "checkpointed"]).await;
    shim.end(&bundle).await;
    shim.shutdown().await;
    containerd.assert_nothing_left().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_checkpoint_that_cannot_be_made_is_refused_in_a_sentence_and_the_container_runs_on() {
    need_criu();
    let containerd = FakeContainerd::new().await;
    let bundle = counting(&containerd, "a");
    let shim = containerd.start(&bundle).await;
    shim.create(&bundle).await.unwrap();
    let refused = async |image: &Path| refused(checkpoint(&shim, &bundle, image, true).await);
    let (code, said) = refused(&containerd.dir.join("too-early")).await;
    assert_eq!((code, said.as_str()), (Code::FAILED_PRECONDITION, "cannot checkpoint a container that is created"));
    shim.run(&bundle).await.unwrap();
    counts_beyond(&containerd, 5).await;
    let place = containerd.dir.join("volume/n/checkpoint");
    let (_, said) = refused(&place).await;
    assert!(said.contains(place.to_str().unwrap()) && said.contains("Not a directory"), "{said}");
    shim.end(&bundle).await;
    shim.shutdown().await;
    containerd.assert_nothing_left().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_criu_refuses_is_said_and_an_option_of_the_checkpoint_allows_it() {
    need_criu();
    let containerd = FakeContainerd::new().await;
    let script = "mkfifo /f; exec 8<>/f; nc -l -p 7000 -e /busybox sh -c 'echo connected; sleep 1000' & \
                  until nc 127.0.0.1 7000 <&8; do usleep 10000; done";
    let bundle = containerd.native("a", &["sh", "-c", script]);
    let shim = containerd.run(&bundle).await;
    bundle.stdout.says("connected").await;
    let image = containerd.dir.join("checkpoint");
    let (_, said) = refused(checkpoint(&shim, &bundle, &image, true).await);
    assert!(said.contains("OCI runtime checkpoint failed: criu failed") && said.contains("TCP"), "{said}");
    assert!(!said.contains('\n'), "{said}");
    assert_eq!(shim.state(&bundle).await.unwrap().status.enum_value().unwrap(), Status::RUNNING);
    let options = CheckpointOptions { open_tcp: true, ..CheckpointOptions::default() };
    checkpoint_with(&shim, &bundle, &image, &options).await.unwrap();
    shim.end(&bundle).await;
    shim.shutdown().await;
    containerd.assert_nothing_left().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_without_criu_is_told_so() {
    let containerd = FakeContainerd::new().await;
    let bundle = counting(&containerd, "a");
    let mut command = containerd.command(&bundle, "start");
    command.env("PATH", "/nowhere");
    let answer: serde_json::Value = serde_json::from_slice(&command.output().await.unwrap().stdout).unwrap();
    let shim = containerd.connect(answer["address"].as_str().unwrap()).await;
    shim.create(&bundle).await.unwrap();
    shim.run(&bundle).await.unwrap();
    let refused = checkpoint(&shim, &bundle, &containerd.dir.join("checkpoint"), true).await.unwrap_err();
    let (_, said) = refusal(&refused);
    assert!(said.contains("`criu`") || said.contains("\"criu\""), "{said}");
    shim.end(&bundle).await;
    shim.shutdown().await;
    containerd.assert_nothing_left().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn checkpoint_and_restore_of_a_wasm_container_are_unimplemented_by_name() {
    let containerd = FakeContainerd::new().await;
    let (bundle, second) = (containerd.wasm("a", "c-sleep", &[]), containerd.wasm("b", "c-sleep", &[]));
    let shim = containerd.run(&bundle).await;
    let (code, said) = refused(checkpoint(&shim, &bundle, &containerd.dir.join("checkpoint"), true).await);
    assert_eq!(code, Code::UNIMPLEMENTED, "{said}");
    assert!(said.starts_with("checkpoint is not implemented for a wasm container"), "{said}");
    let (code, said) = refused(create_from(&shim, &second, &containerd.dir.join("checkpoint")).await);
    assert_eq!(code, Code::UNIMPLEMENTED, "{said}");
    assert!(said.starts_with("restore is not implemented for a wasm container"), "{said}");
    shim.end(&bundle).await;
    shim.shutdown().await;
    containerd.assert_nothing_left().await;
}

#[test]
fn ctr_makes_checkpoints_of_native_containers() {
    need_criu();
    let containerd = Containerd::shared();
    let container = containerd.job_of(&Image::native(containerd)).command(["/bin/sleep", "3600"]).start();
    let checkpoint = |more: &[&str]| {
        let said = containerd.ctr([&["task", "checkpoint"], more, &[container.id.as_str()]].concat());
        assert_eq!(said.code, Some(0), "{said:?}");
        said.stdout.trim().to_string()
    };
    // The names of checkpoints have a resolution of seconds.
    let name = checkpoint(&[]);
    assert_eq!(containerd.ctr(["image", "rm", &name]).code, Some(0));
    assert!(is_alive(container.pid));
    checkpoint(&["--exit"]);
    assert!(until(PATIENCE, || !is_alive(container.pid)), "the container runs on");
}

#[test]
fn ctr_restores_a_container_that_goes_on_counting() {
    need_criu();
    let containerd = Containerd::shared();
    let volume = containerd.directory().join("volume");
    fs::create_dir_all(&volume).unwrap();
    let numbers = || fs::read_dir(&volume).unwrap().map(|entry| entry.unwrap().path());
    let number_of = |path: &PathBuf| path.file_name().unwrap().to_str().unwrap().parse::<u64>().unwrap();
    let number = || numbers().map(|path| number_of(&path)).max().unwrap_or(0);
    // It continues after the checkpoint, which must not hold a file open that it renames or removes later.
    let count = "n=0; while :; do n=$((n + 1)); mkdir -p /count/$n; usleep 20000; done";
    let container = containerd.shell(count).bind(&volume, "/count", &["rbind", "rw"]).start();
    assert!(until(PATIENCE, || number() > 5));
    let (id, reference) = (container.id.clone(), format!("checkpoint.example/{}:1", container.id));
    let said = containerd.ctr(["container", "checkpoint", "--rw", "--image", "--task", &id, &reference]);
    assert_eq!(said.code, Some(0), "{said:?}");
    container.kill(Signal::SIGKILL as i32).unwrap();
    drop(container);
    let before = number();
    numbers().for_each(|path| fs::remove_dir(path).unwrap());
    let said = containerd.ctr(["container", "restore", "--rw", "--live", &id, &reference]);
    assert_eq!(said.code, Some(0), "{said:?}");
    assert!(until(PATIENCE, || number() >= before.max(6)), "{} after {before}", number());
    assert_eq!(containerd.ctr(["task", "rm", "--force", &id]).code, Some(0));
    assert_eq!(containerd.ctr(["container", "rm", &id]).code, Some(0));
}
