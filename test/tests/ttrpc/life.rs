//! A container from Create to Delete: what the Task service returns on the way.

use std::collections::HashSet;
use std::fs;
use std::time::{Duration, Instant};

use containerd_shim_protos::api::{
    ConnectRequest, ConnectResponse, DeleteRequest, PauseRequest, PidsRequest, ResumeRequest, StartRequest,
    StateRequest, StateResponse, StatsRequest, Status, WaitRequest,
};
use containerd_shim_protos::protobuf::Message;
use nix::sys::signal::Signal;
use serde_json::Value;
use skiff_test::fake_containerd::{
    Bundle, FakeContainerd, Shim, annotations, call, refusal, refused, runtime_options, sandbox_spec,
};
use skiff_test::{Figures, guest, holds, is_alive, tools};
use ttrpc::Code;

use crate::{VERSION_2, VERSION_3, add_exec, logging_runtime};

#[tokio::test(flavor = "multi_thread")]
async fn both_names_of_the_task_service_answer() {
    let containerd = FakeContainerd::new().await;
    let bundle = containerd.native("a", &["sleep", "1000"]);
    let shim = containerd.start(&bundle).await;
    let pid = shim.create(&bundle).await.unwrap();
    for name in [VERSION_2, VERSION_3] {
        let request = StateRequest { id: bundle.id.clone(), ..StateRequest::default() }.write_to_bytes().unwrap();
        let answer = StateResponse::parse_from_bytes(&shim.raw(name, "State", &request).await.unwrap()).unwrap();
        assert_eq!((answer.id, answer.pid), (bundle.id.clone(), pid), "{name}");
    }
    let start = StartRequest { id: bundle.id.clone(), ..StartRequest::default() }.write_to_bytes().unwrap();
    shim.raw(VERSION_2, "Start", &start).await.unwrap();
    shim.end(&bundle).await;
    shim.shutdown().await;
    containerd.assert_nothing_left().await;
}

/// Takes a container through its whole life and checks every answer on the way.
async fn live(containerd: &FakeContainerd, bundle: &Bundle) {
    let shim = containerd.start(bundle).await;
    let pid = shim.create(bundle).await.unwrap();
    let state = shim.state(bundle).await.unwrap();
    assert_eq!((state.status.unwrap(), state.pid), (Status::CREATED, pid));
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
    assert_eq!((deleted.exit_status, deleted.pid), (137, pid));
    assert_eq!(refused(shim.state(bundle).await).0, Code::NOT_FOUND);
    let shim_pid = shim.pid().await;
    shim.shutdown().await;
    holds("the shim has ended", || !is_alive(shim_pid)).await;
    containerd
        .events
        .are(&bundle.id, &["create", "start", "paused", "resumed", "paused", "resumed", "exit", "delete"])
        .await;
    let pids: HashSet<u32> =
        containerd.events.all().into_iter().map(|event| event.pid).filter(|pid| *pid > 0).collect();
    assert_eq!(pids, HashSet::from([pid]));
    containerd.assert_nothing_left().await;
}

async fn ask_while_running(shim: &Shim, bundle: &Bundle, pid: u32) {
    let pids = shim.tasks.pids(call(), &PidsRequest { id: bundle.id.clone(), ..PidsRequest::default() }).await.unwrap();
    assert_eq!(pids.processes.iter().map(|process| process.pid).collect::<Vec<_>>(), [pid]);
    let connected = connect(shim, bundle).await;
    assert_eq!((connected.shim_pid, connected.task_pid), (shim.pid().await, pid));
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
    let containerd = FakeContainerd::new().await;
    let bundle = containerd.wasm("a", "c-sleep", &[]);
    live(&containerd, &bundle).await;
    bundle.stdout.says("sleeping").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_native_container_lives_from_create_to_shutdown() {
    let containerd = FakeContainerd::new().await;
    let bundle = containerd.native("a", &["sleep", "1000"]);
    live(&containerd, &bundle).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_container_that_was_never_started_can_be_killed_and_deleted() {
    let containerd = FakeContainerd::new().await;
    for (killed, bundle) in
        [(true, containerd.wasm("killed", "c-sleep", &[])), (false, containerd.wasm("deleted", "c-sleep", &[]))]
    {
        let shim = containerd.start(&bundle).await;
        shim.create(&bundle).await.unwrap();
        if killed {
            shim.kill(&bundle, Signal::SIGKILL).await.unwrap();
            assert_eq!(shim.wait(&bundle).await, 137);
        }
        assert_eq!(shim.delete(&bundle).await.unwrap(), 137);
        containerd.events.are(&bundle.id, &["create", "exit", "delete"]).await;
        shim.shutdown().await;
    }
    containerd.assert_nothing_left().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn state_answers_at_once_while_another_create_compiles() {
    let containerd = FakeContainerd::new().await;
    let pod = containerd.id("pod");
    let annotate = |spec: &mut Value| spec["annotations"] = annotations(&pod, "container");
    let running = containerd.native_with("running", &["sleep", "1000"], annotate);
    let compiling = containerd.wasm_with("compiling", &guest("go-hello"), &[], annotate);
    let shim = containerd.run(&running).await;
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
    containerd.assert_nothing_left().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn of_many_creates_of_one_id_exactly_one_succeeds() {
    let containerd = FakeContainerd::new().await;
    let bundle = containerd.wasm("a", "c-sleep", &[]);
    let shim = containerd.start(&bundle).await;
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
                assert_eq!((code, said), (Code::ALREADY_EXISTS, format!("container `{}` already exists", bundle.id)));
            }
        }
    }
    assert_eq!(made, 1);
    shim.run(&bundle).await.unwrap();
    shim.end(&bundle).await;
    containerd.events.are(&bundle.id, &["create", "start", "exit", "delete"]).await;
    shim.shutdown().await;
    containerd.assert_nothing_left().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_sandbox_of_a_pod_is_the_shim_itself() {
    let containerd = FakeContainerd::new().await;
    let bundle = containerd.bundle("pod", &sandbox_spec(&containerd.id("pod")), |_| {});
    let shim = containerd.start(&bundle).await;
    let pid = shim.pid().await;
    let uts = |pid: &str| fs::read_link(format!("/proc/{pid}/ns/uts")).unwrap();
    assert_eq!(shim.create(&bundle).await.unwrap(), pid);
    assert_eq!(shim.run(&bundle).await.unwrap(), pid);
    assert_ne!(uts(&pid.to_string()), uts("self"));
    assert!(
        containerd.leftovers().iter().any(|line| line.starts_with("cgroup") && line.contains(&bundle.id)),
        "it has a cgroup"
    );
    let request = PidsRequest { id: bundle.id.clone(), ..PidsRequest::default() };
    assert_eq!(shim.tasks.pids(call(), &request).await.unwrap().processes.len(), 1);
    shim.kill(&bundle, Signal::SIGTERM).await.unwrap();
    assert_eq!(shim.wait(&bundle).await, 0, "as the pause program ends");
    shim.delete(&bundle).await.unwrap();
    assert_eq!(uts(&pid.to_string()), uts("self"));
    containerd.events.are(&bundle.id, &["create", "start", "exit", "delete"]).await;
    shim.shutdown().await;
    containerd.assert_nothing_left().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_exec_whose_engine_does_not_answer_holds_nobody_up() {
    let containerd = FakeContainerd::new().await;
    // Where the kernel does not end everything with the first process.
    let mut bundle = containerd.wasm_with("a", &guest("c-sleep"), &[], |spec| {
        spec["linux"]["namespaces"].as_array_mut().unwrap().retain(|namespace| namespace["type"] != "pid");
    });
    fs::copy(guest("c-sleep"), bundle.image.join("sleep")).unwrap();
    fs::copy(tools().join("busybox"), bundle.image.join("busybox")).unwrap();
    // Another program in the engine's place.
    let specification = bundle.path.join("exec-e.json");
    let replace = format!("sed -i 's#/proc/self/fd/3#/busybox#' {}", specification.display());
    let runtime = logging_runtime(&containerd, &format!("case \"$*\" in *' exec '*) {replace};; esac"));
    bundle.options = runtime_options(&containerd.toml(&format!("BinaryName = \"{runtime}\"")));
    let shim = containerd.run(&bundle).await;
    let request = add_exec(&shim, &bundle, &["sleep", "1000"], false).await;
    let tasks = shim.tasks.clone();
    let starting = tokio::spawn(async move { tasks.start(call(), &request).await });
    holds("it is made", || containerd.processes().iter().any(|(_, line)| line.contains("busybox sleep"))).await;
    let (pause, resume) = (PauseRequest { id: bundle.id.clone(), ..Default::default() }, ResumeRequest::default());
    shim.tasks.pause(call(), &pause).await.unwrap();
    shim.tasks.resume(call(), &ResumeRequest { id: bundle.id.clone(), ..resume }).await.unwrap();
    shim.kill(&bundle, Signal::SIGKILL).await.unwrap();
    assert_eq!(shim.wait(&bundle).await, 137);
    let (_, message) = refused(starting.await.unwrap());
    assert!(message.contains("cannot start a process in a container that is stopped"), "{message}");
    shim.delete(&bundle).await.unwrap();
    shim.shutdown().await;
    containerd.assert_nothing_left().await;
}
