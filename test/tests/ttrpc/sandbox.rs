//! The Sandbox service, called as containerd's shim sandboxer calls it.

use std::fs;
use std::io::Write;

use containerd_shim_protos::protobuf::{Message, MessageField};
use containerd_shim_protos::sandbox_api::{
    CreateSandboxRequest, PingRequest, PlatformRequest, SandboxMetricsRequest, SandboxStatusRequest,
    SandboxStatusResponse, ShutdownSandboxRequest, StartSandboxRequest, StopSandboxRequest, UpdateSandboxRequest,
    WaitSandboxRequest,
};
use containerd_shim_protos::sandbox_async::SandboxClient;
use nix::sys::signal::Signal;
use serde_json::{Value, json};
use skiff_test::fake_containerd::{Bundle, FakeContainerd, Shim, annotations, any, call, refused, spec};
use skiff_test::{field, holds, is_alive};
use ttrpc::Code;

use crate::{VERSION_3, assert_is_sentence, kill_and_delete};

const SANDBOX: &str = "containerd.runtime.sandbox.v1.Sandbox";

/// A message in a field of another. It is short, so that it is text as well.
fn message(number: u8, fields: &[Vec<u8>]) -> Vec<u8> {
    field(number, std::str::from_utf8(&fields.concat()).unwrap())
}

/// A number in a field.
fn number(field: u8, number: u8) -> Vec<u8> {
    vec![field << 3, number]
}

/// A pod on the node's network with shared memory of its own, and with these sysctls and further options of its namespaces.
fn pod(sysctls: &[(&str, &str)], more: &[Vec<u8>]) -> Vec<u8> {
    let namespaces = [&[number(1, 2)], more].concat();
    let sysctls = sysctls.iter().map(|(name, value)| message(3, &[field(1, name), field(2, value)]));
    let linux = [vec![message(2, &[message(1, &namespaces)])], sysctls.collect()].concat();
    let metadata = message(1, &[field(1, "web"), field(2, "uid"), field(3, "shop")]);
    [metadata, field(2, "pod-1"), message(4, &[field(1, "10.9.8.7")]), message(8, &linux)].concat()
}

/// A sandbox's bundle: containerd writes no specification into it.
fn sandbox_bundle(containerd: &FakeContainerd) -> Bundle {
    let bundle = containerd.bundle("pod", &spec(&["/pause"]), |_| {});
    fs::remove_file(bundle.path.join("config.json")).unwrap();
    bundle
}

/// The request that makes the sandbox of `bundle`, in a cgroup of the test.
fn create(containerd: &FakeContainerd, bundle: &Bundle, pod: &[u8]) -> CreateSandboxRequest {
    let parent = containerd.cgroup("");
    let options = [pod, &message(8, &[field(1, parent.trim_end_matches('/'))])].concat();
    CreateSandboxRequest {
        sandbox_id: bundle.id.clone(),
        bundle_path: bundle.path.to_str().unwrap().into(),
        options: MessageField::some(any("runtime.v1.PodSandboxConfig", &options)),
        ..CreateSandboxRequest::default()
    }
}

macro_rules! request {
    ($type:ident, $id:expr) => {
        &$type { sandbox_id: $id.to_string(), ..$type::default() }
    };
}

async fn status(sandboxes: &SandboxClient, id: &str) -> SandboxStatusResponse {
    sandboxes.sandbox_status(call(), request!(SandboxStatusRequest, id)).await.unwrap()
}

async fn shut_down(shim: &Shim, pid: u32, id: &str) {
    let sandboxes = SandboxClient::new(shim.client.clone());
    sandboxes.shutdown_sandbox(call(), request!(ShutdownSandboxRequest, id)).await.unwrap();
    holds("the shim ends", || !is_alive(pid)).await;
}

/// A container of the pod that shows its files, and waits for the file `end`.
fn member(containerd: &FakeContainerd, name: &str, pod: &str) -> Bundle {
    let script = "export PATH=/; busybox cat /etc/hostname /etc/resolv.conf; busybox grep -c . /etc/hosts; \
                  busybox grep ' /dev/shm ' /proc/self/mounts; busybox touch /dev/shm/seen && echo shared";
    containerd.native_with(name, &["sh", "-c", script], |spec| {
        spec["annotations"] = annotations(pod, "container");
    })
}

#[tokio::test(flavor = "multi_thread")]
async fn a_sandbox_lives_without_any_event_of_a_task() {
    let containerd = FakeContainerd::new().await;
    let bundle = sandbox_bundle(&containerd);
    let id = bundle.id.as_str();
    let shim = containerd.start_with_parameters(&bundle).await;
    let pid = shim.pid().await;
    let sandboxes = SandboxClient::new(shim.client.clone());
    let uts = |pid: &str| fs::read_link(format!("/proc/{pid}/ns/ipc")).unwrap();

    let request = create(&containerd, &bundle, &pod(&[("kernel.msgmax", "4321")], &[]));
    sandboxes.create_sandbox(call(), &request).await.unwrap();
    assert_eq!(refused(sandboxes.create_sandbox(call(), &request).await).0, Code::ALREADY_EXISTS);
    assert_eq!(status(&sandboxes, id).await.state, "SANDBOX_NOTREADY");
    let platform = sandboxes.platform(call(), request!(PlatformRequest, id)).await.unwrap().platform;
    assert_eq!((platform.os.as_str(), platform.architecture.as_str()), ("linux", "amd64"));
    let started = sandboxes.start_sandbox(call(), request!(StartSandboxRequest, id)).await.unwrap();
    assert_eq!(started.pid, pid);
    let ready = status(&sandboxes, id).await;
    assert_eq!((ready.state.as_str(), ready.pid), ("SANDBOX_READY", pid));
    assert!(ready.created_at.seconds > 0 && ready.created_at == started.created_at, "{ready:?}");
    assert!(ready.info.is_empty() && ready.exited_at.is_none(), "{ready:?}");
    let verbose = SandboxStatusRequest { sandbox_id: id.into(), verbose: true, ..Default::default() };
    let info = sandboxes.sandbox_status(call(), &verbose).await.unwrap().info;
    let info: Value = serde_json::from_str(&info["info"]).unwrap();
    assert_eq!(info, json!({"pid": pid, "processStatus": "running"}));
    sandboxes.ping_sandbox(call(), request!(PingRequest, id)).await.unwrap();
    let metrics = sandboxes.sandbox_metrics(call(), request!(SandboxMetricsRequest, id)).await.unwrap().metrics;
    assert!(metrics.data.type_url.starts_with("io.containerd.cgroups.v"), "{metrics:?}");
    assert_ne!(uts(&pid.to_string()), uts("self"));
    let waiting = {
        let (sandboxes, id) = (sandboxes.clone(), id.to_string());
        tokio::spawn(async move { sandboxes.wait_sandbox(call(), request!(WaitSandboxRequest, id)).await })
    };

    let container = member(&containerd, "member", id);
    shim.create(&container).await.unwrap();
    shim.run(&container).await.unwrap();
    assert_eq!(shim.wait(&container).await, 0);
    container.stdout.says("shared").await;
    let said = container.stdout.text();
    assert!(said.starts_with("pod-1\nnameserver 10.9.8.7\n"), "{said}");
    assert!(said.contains("shm /dev/shm tmpfs rw,relatime,size=65536k"), "{said}");
    assert!(bundle.path.join("shm/seen").exists(), "the pod's memory is shared");
    shim.delete(&container).await.unwrap();
    shim.shutdown_after(&container).await;
    sandboxes.ping_sandbox(call(), request!(PingRequest, id)).await.unwrap();
    assert!(!waiting.is_finished());

    sandboxes.stop_sandbox(call(), request!(StopSandboxRequest, id)).await.unwrap();
    sandboxes.stop_sandbox(call(), request!(StopSandboxRequest, id)).await.unwrap();
    let exit = waiting.await.unwrap().unwrap();
    assert_eq!(exit.exit_status, 0);
    let stopped = status(&sandboxes, id).await;
    assert_eq!((stopped.state.as_str(), &stopped.exited_at), ("SANDBOX_NOTREADY", &exit.exited_at));
    assert_eq!(uts(&pid.to_string()), uts("self"), "its namespaces are left");
    let late = member(&containerd, "late", id);
    assert_eq!(refused(shim.create(&late).await).0, Code::FAILED_PRECONDITION, "it would be on the node");
    shut_down(&shim, pid, id).await;
    assert!(!bundle.path.join("shm").exists() && !bundle.path.join("hosts").exists(), "its files are removed");
    containerd.delete(&bundle).await;
    containerd.assert_nothing_left().await;
    assert_eq!(containerd.events.topics(id), [""; 0]);
    assert_eq!(containerd.events.topics(&container.id), ["create", "start", "exit", "delete"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_pod_cannot_have_is_refused_and_leaves_nothing() {
    let containerd = FakeContainerd::new().await;
    let users = message(5, &[number(1, 0)]);
    for (pod, code, expected) in [
        (pod(&[("kernel.no_such_thing", "1")], &[]), Code::UNKNOWN, "`kernel.no_such_thing`"),
        (pod(&[], &[users]), Code::UNIMPLEMENTED, "`hostUsers: false`"),
        (pod(&[], &[number(1, 0)]), Code::INVALID_ARGUMENT, "the pod has no network namespace"),
        (vec![0x12, 9], Code::INVALID_ARGUMENT, "cannot parse the description of the pod"),
    ] {
        let bundle = sandbox_bundle(&containerd);
        let before = files(&bundle);
        let shim = containerd.start_with_parameters(&bundle).await;
        let pid = shim.pid().await;
        let sandboxes = SandboxClient::new(shim.client.clone());
        let result = sandboxes.create_sandbox(call(), &create(&containerd, &bundle, &pod)).await;
        let (found, said) = refused(result);
        assert_eq!(found, code, "{said}");
        assert!(said.contains(expected), "{said}");
        assert_is_sentence(&said);
        // containerd shuts the shim down in spite of the failure, and waits for its end.
        shut_down(&shim, pid, &bundle.id).await;
        fs::remove_file(bundle.path.join("skiff.json")).unwrap();
        assert_eq!(files(&bundle), before);
        fs::remove_dir_all(&bundle.path).unwrap();
        for fifo in [&bundle.stdout, &bundle.stderr] {
            fs::remove_file(&fifo.path).unwrap();
        }
        containerd.assert_nothing_left().await;
    }
    assert!(containerd.events.all().is_empty());
}

fn files(bundle: &Bundle) -> Vec<String> {
    let entries = fs::read_dir(&bundle.path).unwrap();
    let mut names: Vec<_> = entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    names
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_not_a_sandbox_is_not_found_and_what_is_not_a_method_is_unimplemented() {
    let containerd = FakeContainerd::new().await;
    let bundle = sandbox_bundle(&containerd);
    let shim = containerd.start_with_parameters(&bundle).await;
    let pid = shim.pid().await;
    let sandboxes = SandboxClient::new(shim.client.clone());
    let good = create(&containerd, &bundle, &pod(&[], &[]));
    for id in ["", ".", "..", "a/b", "../b", "/b"] {
        let request = CreateSandboxRequest { sandbox_id: id.into(), ..good.clone() };
        let (code, said) = refused(sandboxes.create_sandbox(call(), &request).await);
        assert_eq!((code, said), (Code::INVALID_ARGUMENT, format!("`{id}` is not a valid sandbox id")));
    }
    sandboxes.create_sandbox(call(), &good).await.unwrap();
    let container = member(&containerd, "member", &bundle.id);
    shim.create(&container).await.unwrap();
    for id in ["nobody", &container.id] {
        for (method, request) in [
            ("StartSandbox", request!(StartSandboxRequest, id).write_to_bytes()),
            ("Platform", request!(PlatformRequest, id).write_to_bytes()),
            ("StopSandbox", request!(StopSandboxRequest, id).write_to_bytes()),
            ("WaitSandbox", request!(WaitSandboxRequest, id).write_to_bytes()),
            ("SandboxStatus", request!(SandboxStatusRequest, id).write_to_bytes()),
            ("PingSandbox", request!(PingRequest, id).write_to_bytes()),
            ("ShutdownSandbox", request!(ShutdownSandboxRequest, id).write_to_bytes()),
            ("SandboxMetrics", request!(SandboxMetricsRequest, id).write_to_bytes()),
        ] {
            let (code, said) = refused(shim.raw(SANDBOX, method, &request.unwrap()).await);
            assert_eq!(code, Code::NOT_FOUND, "{method}: {said}");
            assert!(said.contains(id), "{method}: {said}");
        }
    }
    let update = request!(UpdateSandboxRequest, bundle.id).write_to_bytes().unwrap();
    assert_eq!(refused(shim.raw(SANDBOX, "UpdateSandbox", &update).await).0, Code::UNIMPLEMENTED);
    assert_eq!(refused(shim.raw(VERSION_3, "UpdateSandbox", &update).await).0, Code::UNIMPLEMENTED);
    shim.delete(&container).await.unwrap();
    shut_down(&shim, pid, &bundle.id).await;
    containerd.assert_nothing_left().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_killed_shim_leaves_nothing_of_its_sandbox_behind_delete() {
    for is_started in [false, true] {
        let containerd = FakeContainerd::new().await;
        let bundle = sandbox_bundle(&containerd);
        let shim = containerd.start_with_parameters(&bundle).await;
        let sandboxes = SandboxClient::new(shim.client.clone());
        sandboxes.create_sandbox(call(), &create(&containerd, &bundle, &pod(&[], &[]))).await.unwrap();
        let left = containerd.leftovers();
        for kind in ["mount", "cgroup"] {
            assert!(left.iter().any(|line| line.starts_with(kind)), "no {kind} is there to be left: {left:#?}");
        }
        if is_started {
            sandboxes.start_sandbox(call(), request!(StartSandboxRequest, bundle.id)).await.unwrap();
        }
        kill_and_delete(&containerd, shim.pid().await, &bundle).await;
        assert!(!bundle.path.join("shm").exists() && !bundle.path.join("resolv.conf").exists());
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_sandbox_that_is_shut_down_while_it_is_made_leaves_nothing() {
    let containerd = FakeContainerd::new().await;
    for _ in 0..5 {
        let bundle = sandbox_bundle(&containerd);
        let shim = containerd.start_with_parameters(&bundle).await;
        let pid = shim.pid().await;
        let sandboxes = SandboxClient::new(shim.client.clone());
        let request = create(&containerd, &bundle, &pod(&[], &[]));
        let creating = {
            let sandboxes = sandboxes.clone();
            tokio::spawn(async move { sandboxes.create_sandbox(call(), &request).await })
        };
        shut_down(&shim, pid, &bundle.id).await;
        // Made before, undone, or never begun.
        drop(creating.await.unwrap());
        containerd.delete(&bundle).await;
        containerd.assert_nothing_left().await;
        fs::remove_dir_all(&bundle.path).unwrap();
        for fifo in [&bundle.stdout, &bundle.stderr] {
            fs::remove_file(&fifo.path).unwrap();
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_sandbox_that_the_task_service_ends_is_removed_whole() {
    let containerd = FakeContainerd::new().await;
    let bundle = sandbox_bundle(&containerd);
    let shim = containerd.start(&bundle).await;
    let sandboxes = SandboxClient::new(shim.client.clone());
    sandboxes.create_sandbox(call(), &create(&containerd, &bundle, &pod(&[], &[]))).await.unwrap();
    sandboxes.start_sandbox(call(), request!(StartSandboxRequest, bundle.id)).await.unwrap();
    // A containerd that does not know the sandbox any more takes the shim for a leaked one.
    assert_eq!(shim.state(&bundle).await.unwrap().pid, shim.pid().await);
    shim.kill(&bundle, Signal::SIGKILL).await.unwrap();
    assert_eq!(shim.wait(&bundle).await, 137);
    shim.delete(&bundle).await.unwrap();
    shim.shutdown_after(&bundle).await;
    containerd.assert_nothing_left().await;
    assert!(containerd.events.all().is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_shutdown_whose_caller_does_not_wait_ends_the_shim() {
    let containerd = FakeContainerd::new().await;
    let bundle = sandbox_bundle(&containerd);
    let shim = containerd.start(&bundle).await;
    let pid = shim.pid().await;
    let sandboxes = SandboxClient::new(shim.client.clone());
    sandboxes.create_sandbox(call(), &create(&containerd, &bundle, &pod(&[], &[]))).await.unwrap();
    sandboxes.start_sandbox(call(), request!(StartSandboxRequest, bundle.id)).await.unwrap();
    let request = ttrpc::Request {
        service: SANDBOX.into(),
        method: "ShutdownSandbox".into(),
        payload: request!(ShutdownSandboxRequest, bundle.id).write_to_bytes().unwrap(),
        ..ttrpc::Request::default()
    };
    let request = request.write_to_bytes().unwrap();
    // A frame: its length, the number of the stream, that it is a request, and no flags.
    let head = [u32::try_from(request.len()).unwrap().to_be_bytes(), 1_u32.to_be_bytes()].concat();
    let mut connection = std::os::unix::net::UnixStream::connect(&shim.socket).unwrap();
    connection.write_all(&[&head[..], &[1, 0], &request].concat()).unwrap();
    drop(connection);
    holds("the shim ends", || !is_alive(pid)).await;
    containerd.delete(&bundle).await;
    containerd.assert_nothing_left().await;
}
