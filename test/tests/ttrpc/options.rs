//! The runtime options that a shim is given.

use std::fs;

use containerd_shim_protos::protobuf::{Message, MessageField};
use containerd_shim_protos::shim::oci::Options as RuncOptions;
use skiff_test::fake_containerd::{FakeContainerd, NAMESPACE, any, call, refused, runtime_options};
use skiff_test::field;
use ttrpc::Code;

use crate::{assert_is_sentence, calls, logging_runtime};

#[tokio::test(flavor = "multi_thread")]
async fn unknown_options_are_named_in_the_log() {
    let containerd = FakeContainerd::new().await;
    let mut bundle = containerd.native("a", &["true"]);
    bundle.options = containerd.options("Strange = 7\nCriuPath = \"x\"");
    let shim = containerd.run(&bundle).await;
    bundle.log.says("`Strange`").await;
    bundle.log.says("`CriuPath`").await;
    assert!(!bundle.log.text().contains("`Root`"), "{}", bundle.log.text());
    shim.wait(&bundle).await;
    shim.delete(&bundle).await.unwrap();
    let broken = containerd.native("b", &["true"]);
    let mut request = broken.create_request();
    request.options = MessageField::some(containerd.options("SystemdCgroup = \"perhaps\""));
    let (code, said) = refused(shim.tasks.create(call(), &request).await);
    assert_eq!(code, Code::INVALID_ARGUMENT);
    assert_is_sentence(&said);
    shim.shutdown().await;
    containerd.assert_nothing_left().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_options_choose_the_oci_runtime_its_state_and_its_cgroup_driver() {
    let containerd = FakeContainerd::new().await;
    // There may be no systemd here: the flag is logged and removed.
    let script = "for word; do shift; [ \"$word\" = --systemd-cgroup ] || set -- \"$@\" \"$word\"; done";
    let runtime = logging_runtime(&containerd, script);
    let root = containerd.dir.join("runc");
    let runc = RuncOptions {
        binary_name: runtime.clone(),
        root: root.to_str().unwrap().into(),
        systemd_cgroup: true,
        ..RuncOptions::default()
    };
    let systemd = any("containerd.runc.v1.Options", &runc.write_to_bytes().unwrap());
    let file = containerd.dir.join("options.toml");
    fs::write(&file, containerd.toml(&format!("BinaryName = \"{runtime}\""))).unwrap();
    let from_file = any("runtimeoptions.v1.Options", &field(2, file.to_str().unwrap()));
    for (name, options, is_systemd) in [("systemd", systemd, true), ("file", from_file, false)] {
        fs::remove_file(containerd.dir.join("calls")).ok();
        let mut bundle = containerd.native(name, &["true"]);
        bundle.options = options;
        let shim = containerd.run(&bundle).await;
        assert_eq!(shim.wait(&bundle).await, 0);
        shim.delete(&bundle).await.unwrap();
        shim.shutdown().await;
        let state = format!("--root {}/{NAMESPACE} ", root.display());
        for verb in ["create", "start", "delete"] {
            let calls = calls(&containerd);
            let call = calls
                .lines()
                .find(|line| line.contains(&format!(" {verb} ")))
                .unwrap_or_else(|| panic!("no {verb} in {calls}"));
            assert!(call.contains(&state), "{call}");
            assert_eq!(call.contains("--systemd-cgroup"), is_systemd, "{call}");
        }
    }
    containerd.assert_nothing_left().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_oci_runtime_that_is_not_there_is_named() {
    let containerd = FakeContainerd::new().await;
    let mut bundle = containerd.native("a", &["true"]);
    bundle.options = runtime_options(&containerd.toml("BinaryName = \"/no/such/runtime\""));
    let shim = containerd.start(&bundle).await;
    let (_, said) = refused(shim.create(&bundle).await);
    assert!(said.contains("/no/such/runtime"), "{said}");
    assert_is_sentence(&said);
    for part in ["/no/such/runtime", "pod=\"", "container=\"", "step=\"create\""] {
        bundle.log.says(part).await;
    }
    shim.shutdown().await;
    containerd.assert_nothing_left().await;
}
