//! Level 2: the real shim binary, started and called as containerd does it, without containerd. What it answers, which
//! events it publishes, and what is left of it when it is killed at any step.
#![allow(clippy::unwrap_used, clippy::panic, reason = "what goes wrong in a test fails it")]

use std::collections::{BTreeMap, BTreeSet, HashSet};
use std::fs;
use std::os::fd::{FromRawFd, OwnedFd};
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::Path;
use std::time::{Duration, Instant};

use containerd_shim_protos::api::{
    CheckpointTaskRequest, CloseIORequest, ConnectRequest, ConnectResponse, DeleteRequest, ExecProcessRequest,
    KillRequest, PauseRequest, PidsRequest, ResizePtyRequest, ResumeRequest, StartRequest, StateRequest, StateResponse,
    StatsRequest, Status, UpdateTaskRequest, WaitRequest,
};
use containerd_shim_protos::bootstrap_api::BootstrapParams;
use containerd_shim_protos::protobuf::{Message, MessageField};
use containerd_shim_protos::shim::oci::Options as RuncOptions;
use containerd_shim_protos::types::introspection::RuntimeInfo;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::{Value, json};
use skiff_test::ttrpc_shim::{
    Bundle, Host, NAMESPACE, SHIM, Shim, annotations, any, call, capabilities, eventually, files_below, refusal,
    runtime_options, spec, status_field, succeeded, with_input,
};
use skiff_test::{Cgroup, Figures, behind_the_wall, guest, hierarchies, is_alive, is_cgroup_v2, programs, tools};
use ttrpc::Code;
use ttrpc::context::with_timeout;

const VERSION_2: &str = "containerd.task.v2.Task";
const VERSION_3: &str = "containerd.task.v3.Task";

fn alive(pid: i32) -> bool {
    is_alive(u32::try_from(pid).unwrap())
}

/// Sends SIGKILL and waits until the process is gone, with the last of its threads: the first one may be it earlier.
async fn kill_now(pid: i32) {
    kill(Pid::from_raw(pid), Signal::SIGKILL).unwrap();
    let threads = || fs::read_dir(format!("/proc/{pid}/task")).map_or(0, Iterator::count);
    eventually("the process is gone", || !alive(pid) && threads() <= 1).await;
}

/// The refusal that a call must end with.
fn refused<T: std::fmt::Debug>(result: ttrpc::Result<T>) -> (Code, String) {
    refusal(&result.unwrap_err())
}

fn assert_is_sentence(text: &str) {
    let begins_well = text.starts_with(|c: char| c.is_lowercase() || c == '`') || text.starts_with("OCI");
    assert!(text.len() > 10 && begins_well, "{text}");
    assert!(!text.contains('\n') && !text.contains("Error {") && !text.contains("Some("), "{text}");
}

/// A script that stands in for the OCI runtime: it writes its arguments down, does `more` and goes on as runc.
fn wrapper(host: &Host, more: &str) -> String {
    let path = host.dir.join("runtime.sh");
    let (log, runc) = (host.dir.join("calls"), tools().join("runc"));
    let script = format!("#!/bin/sh\necho \"$*\" >> {}\n{more}\nexec {} \"$@\"\n", log.display(), runc.display());
    fs::write(&path, script).unwrap();
    fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).unwrap();
    path.to_str().unwrap().into()
}

fn calls(host: &Host) -> String {
    fs::read_to_string(host.dir.join("calls")).unwrap_or_default()
}

// How a shim is started.

#[tokio::test(flavor = "multi_thread")]
async fn start_answers_in_json_to_flags_and_environment() {
    let host = Host::new().await;
    let bundle = host.wasm("a", "c-hello", &[]);
    let shim = host.start(&bundle).await;
    assert!(shim.address.starts_with("unix:///run/containerd/s/"), "{}", shim.address);
    assert!(alive(shim.pid().await));
    shim.shutdown().await;
    host.assert_nothing_left().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn start_reads_the_options_of_earlier_containerds_on_standard_input() {
    let host = Host::new().await;
    let bundle = host.wasm("a", "c-hello", &[]);
    let options = host.options("Strange = 1").write_to_bytes().unwrap();
    let output = with_input(host.command(&bundle, "start"), &options).await;
    let answer: Value = serde_json::from_slice(&succeeded(&output).stdout).unwrap();
    let shim = host.connect(answer["address"].as_str().unwrap()).await;
    shim.shutdown().await;
    host.assert_nothing_left().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn start_answers_in_protobuf_to_parameters_on_standard_input() {
    let host = Host::new().await;
    let bundle = host.wasm("a", "c-hello", &[]);
    let shim = host.start_with_parameters(&bundle).await;
    shim.create(&bundle).await.unwrap();
    shim.run(&bundle).await.unwrap();
    assert_eq!(shim.wait(&bundle).await, 0);
    host.events.are(&bundle.id, &["create", "start", "exit"]).await;
    shim.delete(&bundle).await.unwrap();
    shim.shutdown().await;
    host.assert_nothing_left().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn start_refuses_the_parameters_of_another_shim() {
    let host = Host::new().await;
    let bundle = host.wasm("a", "c-hello", &[]);
    let parameters = BootstrapParams {
        instance_id: "another".into(),
        namespace: NAMESPACE.into(),
        containerd_ttrpc_address: host.events_address(),
        ..BootstrapParams::default()
    };
    let output = with_input(host.command(&bundle, "start"), &parameters.write_to_bytes().unwrap()).await;
    let said = String::from_utf8(output.stderr).unwrap();
    assert!(!output.status.success() && said.contains("`skiff-test/another`") && said.lines().count() == 1, "{said}");
    host.assert_nothing_left().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn info_names_the_runtime_its_options_and_its_features() {
    let host = Host::new().await;
    let options = host.options("");
    let mut command = tokio::process::Command::new(programs().join(SHIM));
    command.arg("-info").stdout(std::process::Stdio::piped()).stderr(std::process::Stdio::piped());
    let output = with_input(command, &options.write_to_bytes().unwrap()).await;
    let info = RuntimeInfo::parse_from_bytes(&succeeded(&output).stdout).unwrap();
    assert_eq!(info.name, "io.containerd.skiff.v1");
    assert!(!info.version.version.is_empty());
    assert_eq!(info.options.type_url, options.type_url);
    let features: Value = serde_json::from_slice(&info.features.value).unwrap();
    assert!(features["ociVersionMax"].is_string(), "{features}");
}

#[tokio::test(flavor = "multi_thread")]
async fn the_version_is_printed() {
    let output = std::process::Command::new(programs().join(SHIM)).arg("-v").output().unwrap();
    let text = String::from_utf8(succeeded(&output).stdout.clone()).unwrap();
    assert!(text.starts_with("containerd-shim-skiff-v1") && text.contains("Version:"), "{text}");
}

#[tokio::test(flavor = "multi_thread")]
async fn containers_of_one_pod_share_a_shim_and_others_have_their_own() {
    let host = Host::new().await;
    let pod = host.id("pod");
    let in_pod = |name: &str| {
        host.wasm_with(name, &guest("c-hello"), &[], |spec| spec["annotations"] = annotations(&pod, "container"))
    };
    let (first, second, alone) = (in_pod("first"), in_pod("second"), host.wasm("alone", "c-hello", &[]));
    let shims = [host.start(&first).await, host.start_with_parameters(&second).await, host.start(&alone).await];
    let pids = [shims[0].pid().await, shims[1].pid().await, shims[2].pid().await];
    assert_eq!((&shims[0].address, pids[0]), (&shims[1].address, pids[1]));
    assert_ne!(shims[0].address, shims[2].address);
    assert_ne!(pids[0], pids[2]);
    // With a container left, the shutdown of another is not the pod's.
    shims[0].create(&first).await.unwrap();
    shims[0].shutdown().await;
    assert_eq!(shims[1].pid().await, pids[0]);
    shims[0].delete(&first).await.unwrap();
    shims[0].shutdown().await;
    shims[2].shutdown().await;
    host.assert_nothing_left().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn concurrent_starts_of_one_pod_give_one_shim() {
    let host = Host::new().await;
    let pod = host.id("pod");
    let bundles: Vec<Bundle> = (0..8)
        .map(|number| {
            host.native_with(&format!("c{number}"), &["true"], |spec| {
                spec["annotations"] = annotations(&pod, "container")
            })
        })
        .collect();
    for round in ["no socket", "the socket of a dead shim"] {
        let commands: Vec<_> = bundles.iter().map(|bundle| host.command(bundle, "start").spawn().unwrap()).collect();
        let mut addresses = HashSet::new();
        for command in commands {
            let output = command.wait_with_output().await.unwrap();
            let answer: Value = serde_json::from_slice(&succeeded(&output).stdout).unwrap();
            addresses.insert(answer["address"].as_str().unwrap().to_string());
        }
        assert_eq!(addresses.len(), 1, "with {round}: {addresses:?}");
        let shim = host.connect(addresses.iter().next().unwrap()).await;
        let pid = shim.pid().await;
        let serving: Vec<_> = host.processes().into_iter().filter(|(_, line)| line.contains("-socket")).collect();
        assert_eq!(serving.len(), 1, "with {round}: {serving:?}");
        assert_eq!(serving[0].0, pid);
        if round == "no socket" {
            kill_now(pid).await;
            assert!(shim.socket.exists());
        } else {
            shim.shutdown().await;
        }
    }
    host.assert_nothing_left().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_socket_of_a_dead_shim_is_replaced() {
    let host = Host::new().await;
    let bundle = host.wasm("a", "c-hello", &[]);
    let first = host.start(&bundle).await;
    kill_now(first.pid().await).await;
    assert!(first.socket.exists());
    let second = host.run(&bundle).await;
    assert_eq!(first.address, second.address);
    assert_eq!(second.wait(&bundle).await, 0);
    second.delete(&bundle).await.unwrap();
    second.shutdown().await;
    host.assert_nothing_left().await;
}

// What the Task service answers.

#[tokio::test(flavor = "multi_thread")]
async fn both_names_of_the_task_service_answer() {
    let host = Host::new().await;
    let bundle = host.native("a", &["sleep", "1000"]);
    let shim = host.start(&bundle).await;
    let pid = shim.create(&bundle).await.unwrap();
    for name in [VERSION_2, VERSION_3] {
        let request = StateRequest { id: bundle.id.clone(), ..StateRequest::default() };
        let answer = StateResponse::parse_from_bytes(&shim.raw(name, "State", &request).await.unwrap()).unwrap();
        assert_eq!((answer.id, answer.pid), (bundle.id.clone(), u32::try_from(pid).unwrap()), "{name}");
    }
    let start = StartRequest { id: bundle.id.clone(), ..StartRequest::default() };
    shim.raw(VERSION_2, "Start", &start).await.unwrap();
    shim.end(&bundle).await;
    shim.shutdown().await;
    host.assert_nothing_left().await;
}

/// Takes a container through its whole life and looks at every answer on the way.
async fn live(host: &Host, bundle: &Bundle) {
    let shim = host.start(bundle).await;
    let pid = shim.create(bundle).await.unwrap();
    let state = shim.state(bundle).await.unwrap();
    assert_eq!((state.status.unwrap(), state.pid), (Status::CREATED, u32::try_from(pid).unwrap()));
    assert_eq!(state.bundle, bundle.path.to_str().unwrap());
    assert_eq!(
        (state.stdout, state.stderr, state.terminal),
        (bundle.stdout.path.clone(), bundle.stderr.path.clone(), false)
    );
    assert_eq!(shim.run(bundle).await.unwrap(), pid);
    assert_eq!(shim.state(bundle).await.unwrap().status.unwrap(), Status::RUNNING);
    ask_while_running(&shim, bundle, pid).await;
    let waiting = {
        let (tasks, request) = (shim.tasks.clone(), WaitRequest { id: bundle.id.clone(), ..WaitRequest::default() });
        tokio::spawn(async move { tasks.wait(call(), &request).await.unwrap() })
    };
    shim.kill(bundle, Signal::SIGKILL).await.unwrap();
    let ended = waiting.await.unwrap();
    assert_eq!(ended.exit_status, 137);
    let state = shim.state(bundle).await.unwrap();
    assert_eq!((state.status.unwrap(), state.exit_status, state.exited_at), (Status::STOPPED, 137, ended.exited_at));
    assert_eq!(shim.wait(bundle).await, 137, "a late waiter gets the same");
    let deleted =
        shim.tasks.delete(call(), &DeleteRequest { id: bundle.id.clone(), ..DeleteRequest::default() }).await.unwrap();
    assert_eq!((deleted.exit_status, deleted.pid), (137, u32::try_from(pid).unwrap()));
    assert_eq!(refused(shim.state(bundle).await).0, Code::NOT_FOUND);
    let shim_pid = shim.pid().await;
    shim.shutdown().await;
    eventually("the shim has ended", || !alive(shim_pid)).await;
    host.events.are(&bundle.id, &["create", "start", "paused", "resumed", "paused", "resumed", "exit", "delete"]).await;
    let pids: HashSet<u32> = host.events.all().into_iter().map(|event| event.pid).filter(|pid| *pid > 0).collect();
    assert_eq!(pids, HashSet::from([u32::try_from(pid).unwrap()]));
    host.assert_nothing_left().await;
}

async fn ask_while_running(shim: &Shim, bundle: &Bundle, pid: i32) {
    let pids = shim.tasks.pids(call(), &PidsRequest { id: bundle.id.clone(), ..PidsRequest::default() }).await.unwrap();
    assert_eq!(pids.processes.iter().map(|process| process.pid).collect::<Vec<_>>(), [u32::try_from(pid).unwrap()]);
    let connected = connect(shim, bundle).await;
    assert_eq!(
        (connected.shim_pid, connected.task_pid),
        (u32::try_from(shim.pid().await).unwrap(), u32::try_from(pid).unwrap())
    );
    let stats = shim
        .tasks
        .stats(call(), &StatsRequest { id: bundle.id.clone(), ..StatsRequest::default() })
        .await
        .unwrap()
        .stats;
    let figures = Figures::parse(&stats.type_url, &stats.value);
    assert!(figures.memory_bytes > 0 && figures.pids > 0 && figures.cpu_ns > 0, "{figures:?}");
    for _turn in 0..2 {
        shim.tasks.pause(call(), &PauseRequest { id: bundle.id.clone(), ..PauseRequest::default() }).await.unwrap();
        assert_eq!(shim.state(bundle).await.unwrap().status.unwrap(), Status::PAUSED);
        shim.tasks.resume(call(), &ResumeRequest { id: bundle.id.clone(), ..ResumeRequest::default() }).await.unwrap();
        assert_eq!(shim.state(bundle).await.unwrap().status.unwrap(), Status::RUNNING);
    }
}

async fn connect(shim: &Shim, bundle: &Bundle) -> ConnectResponse {
    shim.tasks.connect(call(), &ConnectRequest { id: bundle.id.clone(), ..ConnectRequest::default() }).await.unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_wasm_container_lives_from_create_to_shutdown() {
    let host = Host::new().await;
    let bundle = host.wasm("a", "c-sleep", &[]);
    live(&host, &bundle).await;
    bundle.stdout.says("sleeping").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_native_container_lives_from_create_to_shutdown() {
    let host = Host::new().await;
    let bundle = host.native("a", &["sleep", "1000"]);
    live(&host, &bundle).await;
}

/// Every rpc that is about a container, with a request for `id`. Connect is about the shim.
fn requests(id: &str, exec_id: &str) -> Vec<(&'static str, Vec<u8>)> {
    macro_rules! request {
        ($type:ident { $($field:ident : $value:expr),* }) => {
            $type { id: id.into(), $($field: $value,)* ..$type::default() }.write_to_bytes().unwrap()
        };
    }
    let process = any("process", spec(&["/busybox"])["process"].to_string().as_bytes());
    let resources = any("resources", b"{}");
    vec![
        ("State", request!(StateRequest { exec_id: exec_id.into() })),
        ("Start", request!(StartRequest { exec_id: exec_id.into() })),
        ("Delete", request!(DeleteRequest { exec_id: exec_id.into() })),
        ("Pids", request!(PidsRequest {})),
        ("Pause", request!(PauseRequest {})),
        ("Resume", request!(ResumeRequest {})),
        ("Checkpoint", request!(CheckpointTaskRequest {})),
        ("Kill", request!(KillRequest { exec_id: exec_id.into(), signal: 9 })),
        ("Exec", request!(ExecProcessRequest { exec_id: "e1".into(), spec: MessageField::some(process) })),
        ("ResizePty", request!(ResizePtyRequest { exec_id: exec_id.into() })),
        ("CloseIO", request!(CloseIORequest { exec_id: exec_id.into(), stdin: true })),
        ("Update", request!(UpdateTaskRequest { resources: MessageField::some(resources) })),
        ("Wait", request!(WaitRequest { exec_id: exec_id.into() })),
        ("Stats", request!(StatsRequest {})),
    ]
}

/// Calls `method` with a request that is encoded already.
async fn encoded(shim: &Shim, service: &str, method: &str, payload: &[u8]) -> ttrpc::Result<Vec<u8>> {
    let request = ttrpc::Request {
        service: service.into(),
        method: method.into(),
        payload: payload.into(),
        timeout_nano: 10_000_000_000,
        ..ttrpc::Request::default()
    };
    Ok(shim.client.request(request).await?.payload)
}

#[tokio::test(flavor = "multi_thread")]
async fn an_unknown_id_is_not_found_for_every_rpc_under_both_names() {
    let host = Host::new().await;
    let bundle = host.wasm("a", "c-hello", &[]);
    let shim = host.start(&bundle).await;
    shim.create(&bundle).await.unwrap();
    for service in [VERSION_2, VERSION_3] {
        for (method, payload) in requests("nobody", "") {
            let (code, said) = refused(encoded(&shim, service, method, &payload).await);
            assert_eq!(code, Code::NOT_FOUND, "{service}/{method}: {said}");
            assert!(said.contains("`nobody`"), "{service}/{method}: {said}");
        }
    }
    let native = host.native("native", &["true"]);
    shim.create(&native).await.unwrap();
    let of_processes = ["State", "Start", "Delete", "Kill", "ResizePty", "CloseIO", "Wait"];
    for (method, payload) in requests(&native.id, "nothing").iter().filter(|(method, _)| of_processes.contains(method))
    {
        let (code, said) = refused(encoded(&shim, VERSION_3, method, payload).await);
        assert_eq!(code, Code::NOT_FOUND, "{method}: {said}");
        assert!(said.contains("`nothing`"), "{method}: {said}");
    }
    shim.delete(&native).await.unwrap();
    // The shim itself is there: containerd asks after a restart, also for ids that are not there yet.
    let connected =
        shim.tasks.connect(call(), &ConnectRequest { id: "nobody".into(), ..ConnectRequest::default() }).await.unwrap();
    assert_eq!(connected.task_pid, 0);
    shim.delete(&bundle).await.unwrap();
    shim.shutdown().await;
    host.assert_nothing_left().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_wasm_container_does_not_have_is_unimplemented_by_name() {
    let host = Host::new().await;
    let bundle = host.wasm("a", "c-sleep", &[]);
    let shim = host.run(&bundle).await;
    for (method, payload) in requests(&bundle.id, "") {
        if ["Exec", "Checkpoint"].contains(&method) {
            let (code, said) = refused(encoded(&shim, VERSION_3, method, &payload).await);
            assert_eq!(code, Code::UNIMPLEMENTED, "{method}: {said}");
            assert!(said.starts_with(&method.to_lowercase()), "{method}: {said}");
        }
    }
    let (code, said) =
        refused(shim.tasks.resize_pty(call(), &ResizePtyRequest { id: bundle.id.clone(), ..Default::default() }).await);
    assert!([Code::UNIMPLEMENTED, Code::FAILED_PRECONDITION].contains(&code), "{code:?} {said}");
    let second = host.wasm("b", "c-hello", &[]);
    let mut request = second.create_request();
    (request.terminal, request.stderr) = (true, String::new());
    let (code, said) = refused(shim.tasks.create(call(), &request).await);
    assert_eq!(code, Code::UNIMPLEMENTED);
    assert!(said.contains("terminal"), "{said}");
    let mut request = second.create_request();
    request.checkpoint = "/somewhere".into();
    assert_eq!(refused(shim.tasks.create(call(), &request).await).0, Code::UNIMPLEMENTED);
    shim.end(&bundle).await;
    shim.shutdown().await;
    host.assert_nothing_left().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn illegal_transitions_are_refused_in_a_sentence() {
    let host = Host::new().await;
    for bundle in [host.wasm("wasm", "c-sleep", &[]), host.native("native", &["sleep", "1000"])] {
        let shim = host.start(&bundle).await;
        let id = bundle.id.clone();
        let check = async |expected: &[(&str, &str)]| {
            for (method, sentence) in expected {
                let (_, payload) = requests(&id, "").into_iter().find(|(name, _)| name == method).unwrap();
                let (code, said) = refused(encoded(&shim, VERSION_3, method, &payload).await);
                assert_eq!((code, said.as_str()), (Code::FAILED_PRECONDITION, *sentence), "{method}");
            }
        };
        shim.create(&bundle).await.unwrap();
        check(&[
            ("Pause", "cannot pause a container that is created"),
            ("Resume", "cannot resume a container that is created"),
        ])
        .await;
        shim.run(&bundle).await.unwrap();
        check(&[
            ("Start", "cannot start a container that is running"),
            ("Resume", "cannot resume a container that is running"),
            ("Delete", "cannot delete a container that is running"),
        ])
        .await;
        shim.tasks.pause(call(), &PauseRequest { id: id.clone(), ..PauseRequest::default() }).await.unwrap();
        check(&[
            ("Start", "cannot start a container that is paused"),
            ("Pause", "cannot pause a container that is paused"),
            ("Delete", "cannot delete a container that is paused"),
        ])
        .await;
        shim.kill(&bundle, Signal::SIGKILL).await.unwrap();
        assert_eq!(shim.wait(&bundle).await, 137, "a frozen process dies of SIGKILL");
        check(&[
            ("Start", "cannot start a container that is stopped"),
            ("Pause", "cannot pause a container that is stopped"),
            ("Resume", "cannot resume a container that is stopped"),
        ])
        .await;
        assert_eq!(refused(shim.kill(&bundle, Signal::SIGTERM).await).0, Code::NOT_FOUND, "as containerd's own shim");
        shim.delete(&bundle).await.unwrap();
        shim.shutdown().await;
    }
    host.assert_nothing_left().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_container_that_was_never_started_can_be_killed_and_deleted() {
    let host = Host::new().await;
    for (killed, bundle) in [(true, host.wasm("killed", "c-sleep", &[])), (false, host.wasm("deleted", "c-sleep", &[]))]
    {
        let shim = host.start(&bundle).await;
        shim.create(&bundle).await.unwrap();
        if killed {
            shim.kill(&bundle, Signal::SIGKILL).await.unwrap();
            assert_eq!(shim.wait(&bundle).await, 137);
        }
        assert_eq!(shim.delete(&bundle).await.unwrap(), 137);
        host.events.are(&bundle.id, &["create", "exit", "delete"]).await;
        shim.shutdown().await;
    }
    host.assert_nothing_left().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn state_answers_at_once_while_another_create_compiles() {
    let host = Host::new().await;
    let pod = host.id("pod");
    let annotate = |spec: &mut Value| spec["annotations"] = annotations(&pod, "container");
    let running = host.native_with("running", &["sleep", "1000"], annotate);
    let compiling = host.wasm_with("compiling", &guest("go-hello"), &[], annotate);
    let shim = host.run(&running).await;
    let (tasks, request) = (shim.tasks.clone(), compiling.create_request());
    let create = tokio::spawn(async move { tasks.create(call(), &request).await });
    let mut times = Vec::new();
    while !create.is_finished() {
        let since = Instant::now();
        shim.state(&running).await.unwrap();
        times.push(since.elapsed());
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    create.await.unwrap().unwrap();
    times.sort();
    assert!(times.len() >= 10, "the create took no time: {times:?}");
    // The machine is busy with the compiler and with other tests: a single answer may have to wait for a processor.
    let most = times[times.len() * 9 / 10];
    assert!(most < Duration::from_millis(50), "{times:?}");
    shim.delete(&compiling).await.unwrap();
    shim.end(&running).await;
    shim.shutdown().await;
    host.assert_nothing_left().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn of_many_creates_of_one_id_exactly_one_succeeds() {
    let host = Host::new().await;
    let bundle = host.wasm("a", "c-sleep", &[]);
    let shim = host.start(&bundle).await;
    let creates: Vec<_> = (0..4)
        .map(|_| {
            let (tasks, request) = (shim.tasks.clone(), bundle.create_request());
            tokio::spawn(async move { tasks.create(call(), &request).await })
        })
        .collect();
    let mut made = 0;
    for create in creates {
        match create.await.unwrap() {
            Ok(_) => made += 1,
            Err(error) => {
                let (code, said) = refusal(&error);
                assert_eq!((code, said), (Code::ALREADY_EXISTS, format!("container `{}` exists already", bundle.id)));
            }
        }
    }
    assert_eq!(made, 1);
    shim.run(&bundle).await.unwrap();
    shim.end(&bundle).await;
    host.events.are(&bundle.id, &["create", "start", "exit", "delete"]).await;
    shim.shutdown().await;
    host.assert_nothing_left().await;
}

/// The specification of a pod's sandbox on the node's network.
fn sandbox(pod: &str) -> Value {
    let mut spec = spec(&["/pause"]);
    spec["annotations"] = annotations(pod, "sandbox");
    spec["hostname"] = json!("pod-1");
    spec["linux"]["namespaces"].as_array_mut().unwrap().retain(|namespace| namespace["type"] != "network");
    spec
}

#[tokio::test(flavor = "multi_thread")]
async fn the_sandbox_of_a_pod_is_the_shim_itself() {
    let host = Host::new().await;
    let bundle = host.bundle("pod", &sandbox(&host.id("pod")), |_| {});
    let shim = host.start(&bundle).await;
    let pid = shim.pid().await;
    let uts = |pid: &str| fs::read_link(format!("/proc/{pid}/ns/uts")).unwrap();
    assert_eq!(shim.create(&bundle).await.unwrap(), pid);
    assert_eq!(shim.run(&bundle).await.unwrap(), pid);
    assert_ne!(uts(&pid.to_string()), uts("self"));
    assert!(
        host.leftovers().iter().any(|line| line.starts_with("cgroup") && line.contains(&bundle.id)),
        "it has a cgroup"
    );
    let request = PidsRequest { id: bundle.id.clone(), ..PidsRequest::default() };
    assert_eq!(shim.tasks.pids(call(), &request).await.unwrap().processes.len(), 1);
    shim.kill(&bundle, Signal::SIGTERM).await.unwrap();
    assert_eq!(shim.wait(&bundle).await, 0, "as the pause program ends");
    shim.delete(&bundle).await.unwrap();
    assert_eq!(uts(&pid.to_string()), uts("self"));
    host.events.are(&bundle.id, &["create", "start", "exit", "delete"]).await;
    shim.shutdown().await;
    host.assert_nothing_left().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_sandbox_that_cannot_be_made_leaves_nothing() {
    let host = Host::new().await;
    let bundle = host.bundle("pod", &sandbox(&host.id("pod")), |_| {});
    let good = fs::read(bundle.path.join("config.json")).unwrap();
    let mut bad: Value = serde_json::from_slice(&good).unwrap();
    bad["linux"]["sysctl"] = json!({"kernel.no_such_thing": "1"});
    let shim = host.start(&bundle).await;
    fs::write(bundle.path.join("config.json"), bad.to_string()).unwrap();
    let (_, said) = refused(shim.create(&bundle).await);
    assert!(said.contains("`kernel.no_such_thing`"), "{said}");
    assert!(!host.leftovers().iter().any(|line| line.starts_with("cgroup")), "{:#?}", host.leftovers());
    fs::write(bundle.path.join("config.json"), good).unwrap();
    shim.create(&bundle).await.unwrap();
    kill_and_delete(&host, shim.pid().await, &bundle).await;
}

// What goes wrong.

#[tokio::test(flavor = "multi_thread")]
async fn a_broken_bundle_is_refused_in_a_sentence_and_leaves_nothing() {
    let host = Host::new().await;
    type Break = fn(&Bundle);
    let cases: [(&str, Break, &str); 8] = [
        ("without-rootfs", |bundle| fs::remove_dir(bundle.path.join("rootfs")).unwrap(), "root file system"),
        ("without-config", |bundle| fs::remove_file(bundle.path.join("config.json")).unwrap(), "config.json"),
        ("not-json", |bundle| fs::write(bundle.path.join("config.json"), "{\"ociVersion\": ").unwrap(), "config.json"),
        ("not-a-spec", |bundle| fs::write(bundle.path.join("config.json"), "[1, 2]").unwrap(), "config.json"),
        ("not-utf8", |bundle| fs::write(bundle.path.join("config.json"), [0xff, 0xfe, 0, 0]).unwrap(), "config.json"),
        (
            "corrupt-wasm",
            |bundle| {
                for file in files_below(&bundle.image) {
                    fs::write(file, b"\0asm\x01\0\0\0\x01\x7f garbage").unwrap();
                }
            },
            "app-",
        ),
        ("without-image", |bundle| fs::remove_dir_all(&bundle.image).unwrap(), "root file system"),
        ("without-fifo", |bundle| fs::remove_file(&bundle.stdout.path).unwrap(), "stdout"),
    ];
    let keeper = host.wasm("keeper", "c-hello", &[]);
    let shim = host.start(&keeper).await;
    for (name, make_broken, word) in cases {
        let bundle = host.wasm(name, "c-hello", &[]);
        make_broken(&bundle);
        let mut request = bundle.create_request();
        if name == "without-rootfs" {
            request.rootfs.clear();
        }
        let (code, said) = refused(shim.tasks.create(call(), &request).await);
        assert_is_sentence(&said);
        assert!(said.contains(word), "{name}: {said}");
        assert_ne!(code, Code::NOT_FOUND, "{name}: {said}");
        assert_eq!(host.events.topics(&bundle.id), Vec::<String>::new(), "{name}");
        assert_eq!(refused(shim.state(&bundle).await).0, Code::NOT_FOUND, "{name}");
        // Not even containerd's own delete that follows finds anything to do.
        drop(fs::create_dir(bundle.path.join("rootfs")));
        host.delete(&bundle).await;
        let left: Vec<_> = host.leftovers().into_iter().filter(|line| line.contains(&bundle.id)).collect();
        assert!(left.is_empty(), "{name}: {left:?}");
    }
    shim.shutdown().await;
    host.assert_nothing_left().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_shim_is_not_started_for_a_bundle_whose_specification_is_not_json() {
    let host = Host::new().await;
    let bundle = host.wasm("a", "c-hello", &[]);
    fs::write(bundle.path.join("config.json"), "nonsense").unwrap();
    let output = host.command(&bundle, "start").output().await.unwrap();
    let said = String::from_utf8(output.stderr).unwrap();
    assert!(!output.status.success() && said.contains("`config.json`") && said.lines().count() == 1, "{said}");
    host.assert_nothing_left().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_create_whose_time_is_over_leaves_no_half_made_container() {
    let host = Host::new().await;
    let mut bundle = host.wasm("a", "c-sleep", &[]);
    let slow = wrapper(&host, "case \"$*\" in *' create '*) sleep 0.7;; esac");
    bundle.options = runtime_options(&host.toml(&format!("BinaryName = \"{slow}\"")));
    let shim = host.start(&bundle).await;
    let hurried = shim.tasks.create(with_timeout(300_000_000), &bundle.create_request()).await;
    assert!(hurried.is_err(), "{hurried:?}");
    eventually("runc was asked", || calls(&host).contains(" create ")).await;
    // Whether it was finished or undone: it can be deleted or it is not there.
    let deadline = Instant::now() + Duration::from_secs(10);
    while let Err(error) = shim.delete(&bundle).await {
        let (code, said) = refusal(&error);
        assert_eq!(code, Code::NOT_FOUND, "{said}");
        if host.events.topics(&bundle.id).is_empty() && Instant::now() > deadline {
            break;
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    shim.shutdown().await;
    host.assert_nothing_left().await;
}

// Events.

#[tokio::test(flavor = "multi_thread")]
async fn a_start_that_fails_still_ends_with_one_exit_and_one_delete() {
    let host = Host::new().await;
    let imports = wat::parse_str(r#"(module (import "nowhere" "nothing" (func)) (func (export "_start")))"#).unwrap();
    let module = host.dir.join("imports.wasm");
    fs::write(&module, imports).unwrap();
    let wasm = host.wasm_with("wasm", &module, &[], |_| {});
    let native = host.native_with("native", &[], |spec| spec["process"]["args"] = json!(["/missing"]));
    for (bundle, word) in [(wasm, "`nowhere::nothing`"), (native, "missing")] {
        let shim = host.start(&bundle).await;
        // The OCI runtime may find out at create already: then there never was a container.
        if let Err(error) = shim.create(&bundle).await {
            let (_, said) = refusal(&error);
            assert!(said.contains(word), "{said}");
            assert_eq!(host.events.topics(&bundle.id), Vec::<String>::new());
        } else {
            let (code, said) = refused(shim.run(&bundle).await);
            assert!(code != Code::NOT_FOUND && said.contains(word), "{said}");
            assert_ne!(shim.wait(&bundle).await, 0);
            shim.delete(&bundle).await.unwrap();
            host.events.are(&bundle.id, &["create", "exit", "delete"]).await;
        }
        shim.shutdown().await;
    }
    host.assert_nothing_left().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_short_life_has_its_events_in_order_and_once() {
    let host = Host::new().await;
    let bundles: Vec<_> = (0..6).map(|number| host.wasm(&format!("c{number}"), "c-exit", &["7"])).collect();
    for bundle in &bundles {
        let shim = host.run(bundle).await;
        assert_eq!(shim.wait(bundle).await, 7);
        shim.delete(bundle).await.unwrap();
        shim.shutdown().await;
    }
    for bundle in &bundles {
        host.events.are(&bundle.id, &["create", "start", "exit", "delete"]).await;
    }
    assert!(host.events.all().iter().filter(|event| event.topic == "exit").all(|event| event.status == 7));
    host.assert_nothing_left().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn events_wait_for_a_containerd_that_is_down_and_keep_their_order() {
    let host = Host::new().await;
    let bundle = host.wasm("a", "c-sleep", &[]);
    let shim = host.start(&bundle).await;
    shim.create(&bundle).await.unwrap();
    host.events.are(&bundle.id, &["create"]).await;
    host.refuse_events().await;
    shim.run(&bundle).await.unwrap();
    shim.end(&bundle).await;
    tokio::time::sleep(Duration::from_millis(700)).await;
    assert_eq!(host.events.topics(&bundle.id), ["create"]);
    host.take_events().await;
    host.events.are(&bundle.id, &["create", "start", "exit", "delete"]).await;
    shim.shutdown().await;
    host.assert_nothing_left().await;
}

// The shim is killed.

/// Kills the shim and lets `delete` clean up, as containerd does.
async fn kill_and_delete(host: &Host, shim: i32, bundle: &Bundle) {
    kill_now(shim).await;
    let answer = host.delete(bundle).await;
    assert_eq!(answer.exit_status, 137);
    host.assert_nothing_left().await;
    // containerd may ask again.
    host.delete(bundle).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_shim_killed_before_any_create_leaves_nothing_behind_delete() {
    let host = Host::new().await;
    let bundle = host.wasm("a", "c-sleep", &[]);
    let shim = host.start(&bundle).await;
    kill_and_delete(&host, shim.pid().await, &bundle).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_shim_killed_after_create_leaves_nothing_behind_delete() {
    for native in [false, true] {
        let host = Host::new().await;
        let bundle = if native { host.native("a", &["sleep", "1000"]) } else { host.wasm("a", "c-sleep", &[]) };
        let shim = host.start(&bundle).await;
        shim.create(&bundle).await.unwrap();
        kill_and_delete(&host, shim.pid().await, &bundle).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_shim_killed_after_start_leaves_nothing_behind_delete() {
    for native in [false, true] {
        let host = Host::new().await;
        // A native one with children of its own, in the pid namespace of the node.
        let share = |spec: &mut Value| {
            spec["linux"]["namespaces"].as_array_mut().unwrap().retain(|namespace| namespace["type"] != "pid");
        };
        let script = "sleep 1000 & setsid sleep 1000 & wait";
        let bundle =
            if native { host.native_with("a", &["sh", "-c", script], share) } else { host.wasm("a", "c-spin", &[]) };
        let shim = host.run(&bundle).await;
        kill_and_delete(&host, shim.pid().await, &bundle).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_shim_killed_beside_a_paused_container_leaves_nothing_behind_delete() {
    let host = Host::new().await;
    let bundle = host.wasm("a", "c-spin", &[]);
    let shim = host.run(&bundle).await;
    shim.tasks.pause(call(), &PauseRequest { id: bundle.id.clone(), ..PauseRequest::default() }).await.unwrap();
    kill_and_delete(&host, shim.pid().await, &bundle).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_shim_killed_while_it_compiles_leaves_nothing_behind_delete() {
    let host = Host::new().await;
    let bundle = host.wasm("a", "go-hello", &[]);
    let shim = host.start(&bundle).await;
    let pid = shim.pid().await;
    let (tasks, request) = (shim.tasks.clone(), bundle.create_request());
    tokio::spawn(async move { tasks.create(call(), &request).await });
    eventually("it compiles", || host.processes().iter().any(|(_, line)| line.contains("compile --confine"))).await;
    kill_and_delete(&host, pid, &bundle).await;
    // Compiled later all the same.
    let again = host.wasm("again", "go-hello", &[]);
    let shim = host.run(&again).await;
    assert_eq!(shim.wait(&again).await, 0);
    shim.delete(&again).await.unwrap();
    shim.shutdown().await;
    host.assert_nothing_left().await;
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
        let host = Host::new().await;
        let mut bundle = host.native(moment, &["sleep", "1000"]);
        let slow = wrapper(&host, &script);
        bundle.options = runtime_options(&host.toml(&format!("BinaryName = \"{slow}\"")));
        let shim = host.start(&bundle).await;
        let pid = shim.pid().await;
        let (tasks, request) = (shim.tasks.clone(), bundle.create_request());
        tokio::spawn(async move { tasks.create(call(), &request).await });
        eventually("runc was asked", || calls(&host).contains(" create ")).await;
        if moment == "after" {
            eventually("runc has made it", || bundle.path.join("init.pid").exists()).await;
        }
        kill_now(pid).await;
        host.delete(&bundle).await;
        tokio::time::sleep(Duration::from_millis(700)).await;
        host.assert_nothing_left().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_shim_killed_at_any_moment_of_create_leaves_nothing_behind_delete() {
    let host = Host::new().await;
    for delay_ms in [1, 4, 8, 14, 22, 32, 45, 60] {
        let bundle = host.native(&format!("after{delay_ms}"), &["sleep", "1000"]);
        let shim = host.start(&bundle).await;
        let pid = shim.pid().await;
        let (tasks, request) = (shim.tasks.clone(), bundle.create_request());
        tokio::spawn(async move { tasks.create(call(), &request).await });
        tokio::time::sleep(Duration::from_millis(delay_ms)).await;
        kill_and_delete(&host, pid, &bundle).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_other_containers_of_a_killed_shim_are_deleted_one_by_one() {
    let host = Host::new().await;
    let pod = host.id("pod");
    let annotate = |spec: &mut Value| spec["annotations"] = annotations(&pod, "container");
    let first = host.wasm_with("first", &guest("c-sleep"), &[], annotate);
    let second = host.native_with("second", &["sleep", "1000"], annotate);
    let shim = host.run(&first).await;
    host.start(&second).await;
    shim.create(&second).await.unwrap();
    kill_now(shim.pid().await).await;
    host.delete(&first).await;
    let left = host.leftovers();
    assert!(!left.iter().any(|line| line.contains(&first.id)), "{left:#?}");
    assert!(left.iter().any(|line| line.contains(&second.id)), "{left:#?}");
    host.delete(&second).await;
    host.assert_nothing_left().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn sigterm_ends_the_shim_and_delete_cleans_up_behind_it() {
    let host = Host::new().await;
    let bundle = host.wasm("a", "c-sleep", &[]);
    let shim = host.run(&bundle).await;
    let pid = shim.pid().await;
    host.events.are(&bundle.id, &["create", "start"]).await;
    kill(Pid::from_raw(pid), Signal::SIGTERM).unwrap();
    eventually("the shim has ended", || !alive(pid)).await;
    assert!(!shim.socket.exists());
    host.delete(&bundle).await;
    host.assert_nothing_left().await;
}

// Options.

#[tokio::test(flavor = "multi_thread")]
async fn unknown_options_are_named_in_the_log() {
    let host = Host::new().await;
    let mut bundle = host.native("a", &["true"]);
    bundle.options = host.options("Strange = 7\nCriuPath = \"x\"");
    let shim = host.run(&bundle).await;
    bundle.log.says("`Strange`").await;
    bundle.log.says("`CriuPath`").await;
    assert!(!bundle.log.text().contains("`Root`"), "{}", bundle.log.text());
    shim.wait(&bundle).await;
    shim.delete(&bundle).await.unwrap();
    let broken = host.native("b", &["true"]);
    let mut request = broken.create_request();
    request.options = MessageField::some(host.options("SystemdCgroup = \"perhaps\""));
    let (code, said) = refused(shim.tasks.create(call(), &request).await);
    assert_eq!(code, Code::INVALID_ARGUMENT);
    assert_is_sentence(&said);
    shim.shutdown().await;
    host.assert_nothing_left().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_options_choose_the_oci_runtime_its_state_and_its_cgroup_driver() {
    let host = Host::new().await;
    // There is no systemd here: the flag is seen and taken away.
    let script = "for word; do shift; [ \"$word\" = --systemd-cgroup ] || set -- \"$@\" \"$word\"; done";
    let runtime = wrapper(&host, script);
    let root = host.dir.join("runc");
    let runc = RuncOptions {
        binary_name: runtime.clone(),
        root: root.to_str().unwrap().into(),
        systemd_cgroup: true,
        ..RuncOptions::default()
    };
    let systemd = any("containerd.runc.v1.Options", &runc.write_to_bytes().unwrap());
    let file = host.dir.join("options.toml");
    fs::write(&file, host.toml(&format!("BinaryName = \"{runtime}\""))).unwrap();
    let from_file = any("runtimeoptions.v1.Options", &skiff_test::ttrpc_shim::field(2, file.to_str().unwrap()));
    for (name, options, is_systemd) in [("systemd", systemd, true), ("file", from_file, false)] {
        fs::remove_file(host.dir.join("calls")).ok();
        let mut bundle = host.native(name, &["true"]);
        bundle.options = options;
        let shim = host.run(&bundle).await;
        assert_eq!(shim.wait(&bundle).await, 0);
        shim.delete(&bundle).await.unwrap();
        shim.shutdown().await;
        let state = format!("--root {}/{NAMESPACE} ", root.display());
        for verb in ["create", "start", "delete"] {
            let calls = calls(&host);
            let call = calls
                .lines()
                .find(|line| line.contains(&format!(" {verb} ")))
                .unwrap_or_else(|| panic!("no {verb} in {calls}"));
            assert!(call.contains(&state), "{call}");
            assert_eq!(call.contains("--systemd-cgroup"), is_systemd, "{call}");
        }
    }
    host.assert_nothing_left().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_shim_can_have_a_cgroup_of_its_own() {
    let host = Host::new().await;
    let bundle = host.native("a", &["sleep", "1000"]);
    let group = host.cgroup("shim");
    for hierarchy in hierarchies() {
        let dir = hierarchy.join(&group[1..]);
        fs::create_dir_all(&dir).unwrap();
        for file in ["cpuset.cpus", "cpuset.mems"].iter().filter(|file| dir.join(file).exists() && !is_cgroup_v2()) {
            let value = fs::read(hierarchy.join(file)).unwrap();
            fs::write(dir.parent().unwrap().join(file), &value).unwrap();
            fs::write(dir.join(file), &value).unwrap();
        }
    }
    let options = host.options(&format!("ShimCgroup = \"{group}\"")).write_to_bytes().unwrap();
    let output = with_input(host.command(&bundle, "start"), &options).await;
    let answer: Value = serde_json::from_slice(&succeeded(&output).stdout).unwrap();
    let shim = host.connect(answer["address"].as_str().unwrap()).await;
    let cgroups = |pid: i32| fs::read_to_string(format!("/proc/{pid}/cgroup")).unwrap();
    assert!(cgroups(shim.pid().await).contains(&group), "{}", cgroups(shim.pid().await));
    let pid = shim.create(&bundle).await.unwrap();
    assert!(!cgroups(pid).contains(&group), "{}", cgroups(pid));
    shim.delete(&bundle).await.unwrap();
    shim.shutdown().await;
    eventually("the shim has ended", || host.processes().is_empty()).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_oci_runtime_that_is_not_there_is_named() {
    let host = Host::new().await;
    let mut bundle = host.native("a", &["true"]);
    bundle.options = runtime_options(&host.toml("BinaryName = \"/no/such/runtime\""));
    let shim = host.start(&bundle).await;
    let (_, said) = refused(shim.create(&bundle).await);
    assert!(said.contains("/no/such/runtime"), "{said}");
    assert_is_sentence(&said);
    shim.shutdown().await;
    host.assert_nothing_left().await;
}

// The container's process.

/// The targets of a process's descriptors.
fn descriptors(pid: i32) -> BTreeMap<u32, String> {
    let entries = fs::read_dir(format!("/proc/{pid}/fd")).unwrap().flatten();
    let target = |path: &Path| fs::read_link(path).unwrap_or_default().to_string_lossy().into_owned();
    entries.map(|entry| (entry.file_name().to_str().unwrap().parse().unwrap(), target(&entry.path()))).collect()
}

fn is_read_only(pid: i32, number: u32) -> bool {
    let info = fs::read_to_string(format!("/proc/{pid}/fdinfo/{number}")).unwrap();
    let flags = info.lines().find_map(|line| line.strip_prefix("flags:")).unwrap();
    u32::from_str_radix(flags.trim(), 8).unwrap() & 3 == 0
}

/// The process that made a pair of sockets of which `pid` has one.
fn maker_of_socket(pid: i32, number: u32) -> i32 {
    // SAFETY: pidfd_open takes two integers and answers a new descriptor or an error.
    let process = unsafe { nix::libc::syscall(nix::libc::SYS_pidfd_open, pid, 0) };
    // SAFETY: pidfd_getfd takes three integers and answers a new descriptor or an error.
    let socket = unsafe { nix::libc::syscall(nix::libc::SYS_pidfd_getfd, process, number, 0) };
    assert!(process >= 0 && socket >= 0, "{}", std::io::Error::last_os_error());
    let [_process, socket] = [process, socket].map(|fd| {
        // SAFETY: the kernel has just made this descriptor for us, and nobody else knows of it.
        unsafe { OwnedFd::from_raw_fd(i32::try_from(fd).unwrap()) }
    });
    nix::sys::socket::getsockopt(&socket, nix::sys::socket::sockopt::PeerCredentials).unwrap().pid()
}

#[tokio::test(flavor = "multi_thread")]
async fn nothing_of_the_shim_is_in_the_containers_process() {
    let host = Host::new().await;
    let set = |spec: &mut Value| spec["process"]["env"] = json!(["PATH=/bin", "HOME=/", "ONLY=this"]);
    let bundle = host.wasm_with("a", &guest("c-sleep"), &[], set);
    let shim = host.start(&bundle).await;
    shim.create(&bundle).await.unwrap();
    let pid = shim.run(&bundle).await.unwrap();
    bundle.stdout.says("sleeping").await;

    let descriptors = descriptors(pid);
    let shims: BTreeSet<String> = fs::read_dir(format!("/proc/{}/fd", shim.pid().await))
        .unwrap()
        .flatten()
        .filter_map(|entry| fs::read_link(entry.path()).ok())
        .map(|target| target.to_string_lossy().into_owned())
        .filter(|target| !target.starts_with("anon_inode") && !target.starts_with("/dev/null"))
        .collect();
    assert_eq!(descriptors[&0], "/dev/null");
    assert_eq!((&descriptors[&1], &descriptors[&2]), (&bundle.stdout.path, &bundle.stderr.path));
    for (number, target) in descriptors.iter().filter(|(number, _)| **number > 2) {
        let wrong = || format!("{number} is {target}: {descriptors:?}");
        assert!(!target.starts_with("pipe:") && !target.contains(bundle.path.to_str().unwrap()), "{}", wrong());
        if target.starts_with("socket:") {
            assert_eq!(maker_of_socket(pid, *number), pid, "{}", wrong());
        }
        // What the shim did hand over can only be read.
        let known = [".cwasm", "memory.limit_in_bytes", "memory.max", "memory.high"];
        let handed_over = known.iter().any(|name| target.ends_with(name));
        assert!(handed_over || !shims.contains(target), "{}", wrong());
        assert!(!handed_over || is_read_only(pid, *number), "{}", wrong());
    }

    let environment = String::from_utf8(fs::read(format!("/proc/{pid}/environ")).unwrap()).unwrap();
    // Not even the container's: those are the guest's. The OCI runtime sets a home directory where there is none.
    assert_eq!(environment.split_terminator('\0').collect::<Vec<_>>(), ["HOME=/"]);
    let maps = fs::read_to_string(format!("/proc/{pid}/maps")).unwrap();
    let maps_file = |name: &str| {
        let inode = fs::metadata(programs().join(name)).unwrap().ino().to_string();
        maps.lines().any(|line| line.split_whitespace().nth(4) == Some(inode.as_str()))
    };
    assert!(maps_file("skiff-engine") && !maps_file(SHIM) && !maps_file("skiff"), "{maps}");
    shim.end(&bundle).await;
    shim.shutdown().await;
    host.assert_nothing_left().await;
}

/// What can be said of a process's confinement from outside, without the names of the container.
fn confinement(pid: i32, id: &str) -> BTreeMap<String, String> {
    let proc = |file: &str| fs::read_to_string(format!("/proc/{pid}/{file}")).unwrap();
    let mut found = BTreeMap::new();
    for name in [
        "Uid",
        "Gid",
        "Groups",
        "Umask",
        "CapInh",
        "CapPrm",
        "CapEff",
        "CapBnd",
        "CapAmb",
        "NoNewPrivs",
        "Seccomp",
        "NSpid",
    ] {
        let value = status_field(pid, name).unwrap();
        // The pid outside differs, the one inside is 1.
        let value = if name == "NSpid" { value.split_whitespace().skip(1).collect() } else { value };
        found.insert(name.to_string(), value);
    }
    for line in proc("limits").lines() {
        found.insert(
            format!("limit {}", &line[..26].trim()),
            line[26..].split_whitespace().collect::<Vec<_>>().join(" "),
        );
    }
    found.insert("oom_score_adj".into(), proc("oom_score_adj"));
    found.insert("cgroup".into(), proc("cgroup").replace(id, "ID"));
    for kind in ["pid", "ipc", "uts", "mnt", "net", "user", "cgroup", "time"] {
        let namespace = |pid: &str| fs::read_link(format!("/proc/{pid}/ns/{kind}")).unwrap();
        let is_new = namespace(&pid.to_string()) != namespace("self");
        found.insert(format!("namespace {kind}"), if is_new { "its own" } else { "the node's" }.into());
    }
    found
}

/// The mount points that a process sees, with their options.
fn mount_options(pid: i32) -> BTreeSet<String> {
    let text = fs::read_to_string(format!("/proc/{pid}/mountinfo")).unwrap();
    let fields = text.lines().map(|line| line.split(' ').collect::<Vec<_>>());
    let mount = |fields: Vec<&str>| {
        let kind = fields.iter().position(|field| *field == "-").map(|dash| fields[dash + 1]).unwrap();
        format!("{} {} {kind}", fields[4], fields[5])
    };
    fields.map(mount).collect()
}

fn confine(spec: &mut Value) {
    spec["process"]["user"] = json!({"uid": 1234, "gid": 4321, "additionalGids": [7, 8], "umask": 0o027});
    spec["process"]["capabilities"] = capabilities(&["CAP_NET_BIND_SERVICE"]);
    spec["process"]["capabilities"]["bounding"] = json!(["CAP_NET_BIND_SERVICE", "CAP_CHOWN"]);
    spec["process"]["oomScoreAdj"] = json!(321);
    spec["process"]["rlimits"] = json!([
        {"type": "RLIMIT_NOFILE", "hard": 2000, "soft": 1000}, {"type": "RLIMIT_CORE", "hard": 0, "soft": 0}
    ]);
    spec["root"]["readonly"] = json!(true);
    spec["hostname"] = json!("box");
    spec["linux"]["namespaces"].as_array_mut().unwrap().push(json!({"type": "cgroup"}));
    spec["linux"]["resources"] = json!({
        "devices": [{"allow": false, "access": "rwm"}], "memory": {"limit": 64 << 20}, "pids": {"limit": 50},
        "cpu": {"shares": 512, "quota": 50000, "period": 100_000}
    });
    spec["linux"]["seccomp"] = json!({
        "defaultAction": "SCMP_ACT_ALLOW", "architectures": ["SCMP_ARCH_X86_64"],
        "syscalls": [{"names": ["mknod", "mount", "ptrace", "bpf"], "action": "SCMP_ACT_ERRNO"}]
    });
}

#[tokio::test(flavor = "multi_thread")]
async fn the_engine_is_confined_as_a_native_process_of_the_same_specification_is() {
    let host = Host::new().await;
    let native = host.native_with("native", &["sleep", "1000"], confine);
    let wasm = host.wasm_with("wasm", &guest("c-sleep"), &[], confine);
    let mut seen = Vec::new();
    for bundle in [&native, &wasm] {
        let shim = host.run(bundle).await;
        let pid = i32::try_from(shim.state(bundle).await.unwrap().pid).unwrap();
        eventually("the program runs", || {
            !fs::read_to_string(format!("/proc/{pid}/comm")).unwrap().starts_with("runc")
        })
        .await;
        let cgroup = Cgroup::at(&host.cgroup(&bundle.id));
        let limits = (cgroup.memory_limit(), cgroup.pids_limit(), cgroup.cpu_weight());
        // On v2 devices are bounded by a program that no file shows.
        let devices = fs::read_to_string(format!("/sys/fs/cgroup/devices{}/devices.list", cgroup.path()));
        seen.push((confinement(pid, &bundle.id), (limits, devices.ok()), mount_options(pid)));
        shim.end(bundle).await;
        shim.shutdown().await;
    }
    assert_eq!(seen[0].0["Seccomp"], "2");
    let effective = seen[0].0["CapEff"].clone();
    let expected = seen[0].0.iter().map(|(name, value)| (name.clone(), behind_the_wall(name, value, &effective)));
    let engine = seen[1].0.iter().map(|(name, value)| (name.clone(), value.trim().to_string()));
    assert_eq!(expected.collect::<BTreeMap<_, _>>(), engine.collect());
    assert_eq!(seen[0].1, seen[1].1);
    let missing: Vec<_> = seen[0].2.difference(&seen[1].2).collect();
    assert!(missing.is_empty(), "not so for the engine: {missing:#?}\nbut {:#?}", seen[1].2);
    let more: Vec<_> = seen[1].2.difference(&seen[0].2).filter(|mount| !mount.starts_with("/dev/.skiff/")).collect();
    assert!(more.is_empty(), "{more:#?}");
    host.assert_nothing_left().await;
}
