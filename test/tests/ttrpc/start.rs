//! How a shim is started: what `start`, `-info` and `-v` print, and which containers share a shim.

use std::collections::HashSet;
use std::fs;

use containerd_shim_protos::bootstrap_api::BootstrapParams;
use containerd_shim_protos::protobuf::Message;
use containerd_shim_protos::types::introspection::RuntimeInfo;
use serde_json::Value;
use skiff_test::fake_containerd::{Bundle, FakeContainerd, NAMESPACE, annotations, succeeded, with_input};
use skiff_test::{SHIM, guest, hierarchies, holds, is_alive, is_cgroup_v2, programs};

use crate::kill_now;

#[tokio::test(flavor = "multi_thread")]
async fn start_answers_in_json_to_flags_and_environment() {
    let containerd = FakeContainerd::new().await;
    let bundle = containerd.wasm("a", "c-hello", &[]);
    let shim = containerd.start(&bundle).await;
    assert!(shim.address.starts_with("unix:///run/containerd/s/"), "{}", shim.address);
    assert!(is_alive(shim.pid().await));
    shim.shutdown().await;
    containerd.assert_nothing_left().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn start_reads_the_options_of_earlier_containerds_on_standard_input() {
    let containerd = FakeContainerd::new().await;
    let bundle = containerd.wasm("a", "c-hello", &[]);
    let options = containerd.options("Strange = 1").write_to_bytes().unwrap();
    let output = with_input(containerd.command(&bundle, "start"), &options).await;
    let answer: Value = serde_json::from_slice(&succeeded(&output).stdout).unwrap();
    let shim = containerd.connect(answer["address"].as_str().unwrap()).await;
    shim.shutdown().await;
    containerd.assert_nothing_left().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn start_answers_in_protobuf_to_parameters_on_standard_input() {
    let containerd = FakeContainerd::new().await;
    let bundle = containerd.wasm("a", "c-hello", &[]);
    let shim = containerd.start_with_parameters(&bundle).await;
    shim.create(&bundle).await.unwrap();
    shim.run(&bundle).await.unwrap();
    assert_eq!(shim.wait(&bundle).await, 0);
    containerd.events.are(&bundle.id, &["create", "start", "exit"]).await;
    shim.delete(&bundle).await.unwrap();
    shim.shutdown().await;
    containerd.assert_nothing_left().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn start_refuses_the_parameters_of_another_shim() {
    let containerd = FakeContainerd::new().await;
    let bundle = containerd.wasm("a", "c-hello", &[]);
    let parameters = BootstrapParams {
        instance_id: "another".into(),
        namespace: NAMESPACE.into(),
        containerd_ttrpc_address: containerd.events_address(),
        ..BootstrapParams::default()
    };
    let output = with_input(containerd.command(&bundle, "start"), &parameters.write_to_bytes().unwrap()).await;
    let said = String::from_utf8(output.stderr).unwrap();
    assert!(!output.status.success() && said.contains("`skiff-test/another`") && said.lines().count() == 1, "{said}");
    containerd.assert_nothing_left().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn info_names_the_runtime_its_options_and_its_features() {
    let containerd = FakeContainerd::new().await;
    let options = containerd.options("");
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
    let containerd = FakeContainerd::new().await;
    let pod = containerd.id("pod");
    let in_pod = |name: &str| {
        containerd.wasm_with(name, &guest("c-hello"), &[], |spec| spec["annotations"] = annotations(&pod, "container"))
    };
    let (first, second, alone) = (in_pod("first"), in_pod("second"), containerd.wasm("alone", "c-hello", &[]));
    let shims = [
        containerd.start(&first).await,
        containerd.start_with_parameters(&second).await,
        containerd.start(&alone).await,
    ];
    let pids = [shims[0].pid().await, shims[1].pid().await, shims[2].pid().await];
    assert_eq!((&shims[0].address, pids[0]), (&shims[1].address, pids[1]));
    assert_ne!(shims[0].address, shims[2].address);
    assert_ne!(pids[0], pids[2]);
    // While a container is left, the shutdown of another does not end the pod.
    shims[0].create(&first).await.unwrap();
    shims[0].shutdown().await;
    assert_eq!(shims[1].pid().await, pids[0]);
    shims[0].delete(&first).await.unwrap();
    shims[0].shutdown().await;
    shims[2].shutdown().await;
    containerd.assert_nothing_left().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn concurrent_starts_of_one_pod_give_one_shim() {
    let containerd = FakeContainerd::new().await;
    let pod = containerd.id("pod");
    let bundles: Vec<Bundle> = (0..8)
        .map(|number| {
            containerd.native_with(&format!("c{number}"), &["true"], |spec| {
                spec["annotations"] = annotations(&pod, "container")
            })
        })
        .collect();
    for round in ["no socket", "the socket of a dead shim"] {
        let commands: Vec<_> =
            bundles.iter().map(|bundle| containerd.command(bundle, "start").spawn().unwrap()).collect();
        let mut addresses = HashSet::new();
        for command in commands {
            let output = command.wait_with_output().await.unwrap();
            let answer: Value = serde_json::from_slice(&succeeded(&output).stdout).unwrap();
            addresses.insert(answer["address"].as_str().unwrap().to_string());
        }
        assert_eq!(addresses.len(), 1, "with {round}: {addresses:?}");
        let shim = containerd.connect(addresses.iter().next().unwrap()).await;
        let pid = shim.pid().await;
        let serving: Vec<_> = containerd.processes().into_iter().filter(|(_, line)| line.contains("start")).collect();
        assert_eq!(serving.len(), 1, "with {round}: {serving:?}");
        assert_eq!(serving[0].0, pid);
        if round == "no socket" {
            kill_now(pid).await;
            assert!(shim.socket.exists());
        } else {
            shim.shutdown().await;
        }
    }
    containerd.assert_nothing_left().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_socket_of_a_dead_shim_is_replaced() {
    let containerd = FakeContainerd::new().await;
    let bundle = containerd.wasm("a", "c-hello", &[]);
    let first = containerd.start(&bundle).await;
    kill_now(first.pid().await).await;
    assert!(first.socket.exists());
    let second = containerd.run(&bundle).await;
    assert_eq!(first.address, second.address);
    assert_eq!(second.wait(&bundle).await, 0);
    second.delete(&bundle).await.unwrap();
    second.shutdown().await;
    containerd.assert_nothing_left().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_shim_is_not_started_for_a_bundle_whose_specification_is_not_json() {
    let containerd = FakeContainerd::new().await;
    let bundle = containerd.wasm("a", "c-hello", &[]);
    fs::write(bundle.path.join("config.json"), "nonsense").unwrap();
    let output = containerd.command(&bundle, "start").output().await.unwrap();
    let said = String::from_utf8(output.stderr).unwrap();
    assert!(!output.status.success() && said.contains("`config.json`") && said.lines().count() == 1, "{said}");
    containerd.assert_nothing_left().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_shim_can_have_a_cgroup_of_its_own() {
    let containerd = FakeContainerd::new().await;
    let bundle = containerd.native("a", &["sleep", "1000"]);
    let group = containerd.cgroup("shim");
    for hierarchy in hierarchies() {
        let dir = hierarchy.join(&group[1..]);
        fs::create_dir_all(&dir).unwrap();
        for file in ["cpuset.cpus", "cpuset.mems"].iter().filter(|file| dir.join(file).exists() && !is_cgroup_v2()) {
            let value = fs::read(hierarchy.join(file)).unwrap();
            fs::write(dir.parent().unwrap().join(file), &value).unwrap();
            fs::write(dir.join(file), &value).unwrap();
        }
    }
    let options = containerd.options(&format!("ShimCgroup = \"{group}\"")).write_to_bytes().unwrap();
    let output = with_input(containerd.command(&bundle, "start"), &options).await;
    let answer: Value = serde_json::from_slice(&succeeded(&output).stdout).unwrap();
    let shim = containerd.connect(answer["address"].as_str().unwrap()).await;
    let cgroups = |pid: u32| fs::read_to_string(format!("/proc/{pid}/cgroup")).unwrap();
    assert!(cgroups(shim.pid().await).contains(&group), "{}", cgroups(shim.pid().await));
    let pid = shim.create(&bundle).await.unwrap();
    assert!(!cgroups(pid).contains(&group), "{}", cgroups(pid));
    shim.delete(&bundle).await.unwrap();
    shim.shutdown().await;
    holds("the shim has ended", || containerd.processes().is_empty()).await;
}
