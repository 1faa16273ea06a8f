//! What the Task service refuses: with which code, in a sentence, and leaving nothing behind.

use std::fs;
use std::time::{Duration, Instant};

use containerd_shim_protos::api::{
    CheckpointTaskRequest, CloseIORequest, ConnectRequest, DeleteRequest, ExecProcessRequest, KillRequest,
    PauseRequest, PidsRequest, ResizePtyRequest, ResumeRequest, StartRequest, StateRequest, StatsRequest,
    UpdateTaskRequest, WaitRequest,
};
use containerd_shim_protos::protobuf::{Message, MessageField};
use nix::sys::signal::Signal;
use serde_json::{Value, json};
use skiff_test::fake_containerd::{
    Bundle, FakeContainerd, any, call, refusal, refused, runtime_options, sandbox_spec, spec,
};
use skiff_test::{files_below, holds};
use ttrpc::Code;
use ttrpc::context::with_timeout;

use crate::{VERSION_2, VERSION_3, assert_is_sentence, calls, kill_and_delete, logging_runtime};

/// Every RPC that is about a container, with a request for `id`. Connect is about the shim.
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

#[tokio::test(flavor = "multi_thread")]
async fn an_unknown_id_is_not_found_for_every_rpc_under_both_names() {
    let containerd = FakeContainerd::new().await;
    let bundle = containerd.wasm("a", "c-hello", &[]);
    let shim = containerd.start(&bundle).await;
    shim.create(&bundle).await.unwrap();
    for service in [VERSION_2, VERSION_3] {
        for (method, payload) in requests("nobody", "") {
            let (code, said) = refused(shim.raw(service, method, &payload).await);
            assert_eq!(code, Code::NOT_FOUND, "{service}/{method}: {said}");
            assert!(said.contains("`nobody`"), "{service}/{method}: {said}");
        }
    }
    let native = containerd.native("native", &["true"]);
    shim.create(&native).await.unwrap();
    let of_processes = ["State", "Start", "Delete", "Kill", "ResizePty", "CloseIO", "Wait"];
    for (method, payload) in requests(&native.id, "nothing").iter().filter(|(method, _)| of_processes.contains(method))
    {
        let (code, said) = refused(shim.raw(VERSION_3, method, payload).await);
        assert_eq!(code, Code::NOT_FOUND, "{method}: {said}");
        assert!(said.contains("`nothing`"), "{method}: {said}");
    }
    shim.delete(&native).await.unwrap();
    // Connect is about the shim: containerd calls it after a restart, also for ids that do not exist yet.
    let connected =
        shim.tasks.connect(call(), &ConnectRequest { id: "nobody".into(), ..ConnectRequest::default() }).await.unwrap();
    assert_eq!(connected.task_pid, 0);
    shim.delete(&bundle).await.unwrap();
    shim.shutdown().await;
    containerd.assert_nothing_left().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_wasm_container_does_not_have_is_unimplemented_by_name() {
    let containerd = FakeContainerd::new().await;
    let bundle = containerd.wasm("a", "c-sleep", &[]);
    let shim = containerd.run(&bundle).await;
    for (method, payload) in requests(&bundle.id, "") {
        if method == "Checkpoint" {
            let (code, said) = refused(shim.raw(VERSION_3, method, &payload).await);
            assert_eq!(code, Code::UNIMPLEMENTED, "{method}: {said}");
            assert!(said.starts_with(&method.to_lowercase()), "{method}: {said}");
        }
    }
    let (code, said) =
        refused(shim.tasks.resize_pty(call(), &ResizePtyRequest { id: bundle.id.clone(), ..Default::default() }).await);
    assert_eq!(code, Code::FAILED_PRECONDITION, "{said}");
    let second = containerd.wasm("b", "c-hello", &[]);
    let mut request = second.create_request();
    request.checkpoint = "/somewhere".into();
    assert_eq!(refused(shim.tasks.create(call(), &request).await).0, Code::UNIMPLEMENTED);
    shim.end(&bundle).await;
    shim.shutdown().await;
    containerd.assert_nothing_left().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn illegal_transitions_are_refused_in_a_sentence() {
    let containerd = FakeContainerd::new().await;
    for bundle in [containerd.wasm("wasm", "c-sleep", &[]), containerd.native("native", &["sleep", "1000"])] {
        let shim = containerd.start(&bundle).await;
        let id = bundle.id.clone();
        let check = async |expected: &[(&str, &str)]| {
            for (method, sentence) in expected {
                let (_, payload) = requests(&id, "").into_iter().find(|(name, _)| name == method).unwrap();
                let (code, said) = refused(shim.raw(VERSION_3, method, &payload).await);
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
    containerd.assert_nothing_left().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_sandbox_that_cannot_be_made_leaves_nothing() {
    let containerd = FakeContainerd::new().await;
    let bundle = containerd.bundle("pod", &sandbox_spec(&containerd.id("pod")), |_| {});
    let good = fs::read(bundle.path.join("config.json")).unwrap();
    let mut bad: Value = serde_json::from_slice(&good).unwrap();
    bad["linux"]["sysctl"] = json!({"kernel.no_such_thing": "1"});
    let shim = containerd.start(&bundle).await;
    fs::write(bundle.path.join("config.json"), bad.to_string()).unwrap();
    let (_, said) = refused(shim.create(&bundle).await);
    assert!(said.contains("`kernel.no_such_thing`"), "{said}");
    assert!(!containerd.leftovers().iter().any(|line| line.starts_with("cgroup")), "{:#?}", containerd.leftovers());
    fs::write(bundle.path.join("config.json"), good).unwrap();
    shim.create(&bundle).await.unwrap();
    kill_and_delete(&containerd, shim.pid().await, &bundle).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_broken_bundle_is_refused_in_a_sentence_and_leaves_nothing() {
    let containerd = FakeContainerd::new().await;
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
    let keeper = containerd.wasm("keeper", "c-hello", &[]);
    let shim = containerd.start(&keeper).await;
    for (name, make_broken, word) in cases {
        let bundle = containerd.wasm(name, "c-hello", &[]);
        make_broken(&bundle);
        let mut request = bundle.create_request();
        if name == "without-rootfs" {
            request.rootfs.clear();
        }
        let (code, said) = refused(shim.tasks.create(call(), &request).await);
        assert_is_sentence(&said);
        assert!(said.contains(word), "{name}: {said}");
        assert_ne!(code, Code::NOT_FOUND, "{name}: {said}");
        assert_eq!(containerd.events.topics(&bundle.id), Vec::<String>::new(), "{name}");
        assert_eq!(refused(shim.state(&bundle).await).0, Code::NOT_FOUND, "{name}");
        // The delete that containerd runs afterwards has nothing left to remove.
        drop(fs::create_dir(bundle.path.join("rootfs")));
        containerd.delete(&bundle).await;
        let left: Vec<_> = containerd.leftovers().into_iter().filter(|line| line.contains(&bundle.id)).collect();
        assert!(left.is_empty(), "{name}: {left:?}");
    }
    shim.shutdown().await;
    containerd.assert_nothing_left().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_create_whose_time_is_over_leaves_no_half_made_container() {
    let containerd = FakeContainerd::new().await;
    let mut bundle = containerd.wasm("a", "c-sleep", &[]);
    let slow = logging_runtime(&containerd, "case \"$*\" in *' create '*) sleep 0.7;; esac");
    bundle.options = runtime_options(&containerd.toml(&format!("OwnLauncher = false\nBinaryName = \"{slow}\"")));
    let shim = containerd.start(&bundle).await;
    let hurried = shim.tasks.create(with_timeout(300_000_000), &bundle.create_request()).await;
    assert!(hurried.is_err(), "{hurried:?}");
    holds("runc was asked", || calls(&containerd).contains(" create ")).await;
    // Either it was finished and can be deleted, or it was undone and is not found.
    let deadline = Instant::now() + Duration::from_secs(10);
    while let Err(error) = shim.delete(&bundle).await {
        let (code, said) = refusal(&error);
        assert_eq!(code, Code::NOT_FOUND, "{said}");
        if containerd.events.topics(&bundle.id).is_empty() && Instant::now() > deadline {
            break;
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    shim.shutdown().await;
    containerd.assert_nothing_left().await;
}
