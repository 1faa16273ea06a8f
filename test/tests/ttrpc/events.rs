//! The events that a shim publishes: which, in which order, and how often.

use std::fs;
use std::time::Duration;

use serde_json::json;
use skiff_test::fake_containerd::{FakeContainerd, refusal, refused};
use ttrpc::Code;

#[tokio::test(flavor = "multi_thread")]
async fn a_start_that_fails_still_ends_with_one_exit_and_one_delete() {
    let containerd = FakeContainerd::new().await;
    let imports = wat::parse_str(r#"(module (import "nowhere" "nothing" (func)) (func (export "_start")))"#).unwrap();
    let module = containerd.dir.join("imports.wasm");
    fs::write(&module, imports).unwrap();
    let wasm = containerd.wasm_with("wasm", &module, &[], |_| {});
    let native = containerd.native_with("native", &[], |spec| spec["process"]["args"] = json!(["/missing"]));
    for (bundle, word) in [(wasm, "`nowhere::nothing`"), (native, "missing")] {
        let shim = containerd.start(&bundle).await;
        // The OCI runtime may notice at create already; then there never was a container.
        if let Err(error) = shim.create(&bundle).await {
            let (_, said) = refusal(&error);
            assert!(said.contains(word), "{said}");
            assert_eq!(containerd.events.topics(&bundle.id), Vec::<String>::new());
        } else {
            let (code, said) = refused(shim.run(&bundle).await);
            assert!(code != Code::NOT_FOUND && said.contains(word), "{said}");
            assert_ne!(shim.wait(&bundle).await, 0);
            shim.delete(&bundle).await.unwrap();
            containerd.events.are(&bundle.id, &["create", "exit", "delete"]).await;
        }
        shim.shutdown().await;
    }
    containerd.assert_nothing_left().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_short_life_has_its_events_in_order_and_once() {
    let containerd = FakeContainerd::new().await;
    let bundles: Vec<_> = (0..6).map(|number| containerd.wasm(&format!("c{number}"), "c-exit", &["7"])).collect();
    for bundle in &bundles {
        let shim = containerd.run(bundle).await;
        assert_eq!(shim.wait(bundle).await, 7);
        shim.delete(bundle).await.unwrap();
        shim.shutdown().await;
    }
    for bundle in &bundles {
        containerd.events.are(&bundle.id, &["create", "start", "exit", "delete"]).await;
    }
    assert!(containerd.events.all().iter().filter(|event| event.topic == "exit").all(|event| event.code == Some(7)));
    containerd.assert_nothing_left().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn events_wait_for_a_containerd_that_is_down_and_keep_their_order() {
    let containerd = FakeContainerd::new().await;
    let bundle = containerd.wasm("a", "c-sleep", &[]);
    let shim = containerd.start(&bundle).await;
    shim.create(&bundle).await.unwrap();
    containerd.events.are(&bundle.id, &["create"]).await;
    containerd.refuse_events().await;
    shim.run(&bundle).await.unwrap();
    shim.end(&bundle).await;
    tokio::time::sleep(Duration::from_millis(700)).await;
    assert_eq!(containerd.events.topics(&bundle.id), ["create"]);
    containerd.take_events().await;
    containerd.events.are(&bundle.id, &["create", "start", "exit", "delete"]).await;
    shim.shutdown().await;
    containerd.assert_nothing_left().await;
}
