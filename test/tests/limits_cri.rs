//! A pod's limits as Kubernetes sees them, through the CRI: reasons, resizes, annotations and figures.

use std::time::Duration;

use serde_json::{Value, json};
use skiff_test::cri::{Node, image_of};
use skiff_test::{Cgroup, eventually, until};

const MIB: u64 = 1 << 20;

fn memory(mib: u64) -> Value {
    json!({"linux": {"resources": {"memory_limit_in_bytes": mib * MIB}}})
}

/// A container's status after its end.
fn ended(node: &Node, id: &str) -> Value {
    eventually("the container ends", || {
        let status = node.ask_json(&["inspect", id])["status"].clone();
        (status["state"] == "CONTAINER_EXITED").then_some(status)
    })
}

#[test]
fn a_guest_out_of_memory_was_oom_killed() {
    let node = Node::start(&["c-grow", "go-leak"]);
    let pod = node.run_pod(&node.pod("leaking"));
    for (name, guest, args, code, reason) in [
        ("gives-up", "c-grow", ["abort"].as_slice(), 137, "OOMKilled"),
        ("leaks", "go-leak", &[], 137, "OOMKilled"),
        ("fails", "c-grow", &["exit"], 3, "Error"),
        ("goes-on", "c-grow", &["on"], 0, "Completed"),
    ] {
        let id = pod.run(name, &image_of(guest), args, &memory(64));
        let status = ended(&node, &id);
        assert_eq!((&status["exitCode"], &status["reason"]), (&json!(code), &json!(reason)), "{name}: {status}");
        let told = pod.log(name).iter().any(|line| line.starts_with("stderr") && line.contains("67108864"));
        assert_eq!(told, code != 0, "{name}: {:?}", pod.log(name));
    }
    pod.remove();
    node.assert_nothing_left();
}

#[test]
fn a_resize_of_a_running_container_reaches_its_guest() {
    let node = Node::start(&["rust-p2-http"]);
    let pod = node.run_pod(&node.pod("resized"));
    let server = pod.run("server", &image_of("rust-p2-http"), &[], &memory(32));
    let address = pod.address();
    let grow = || eventually("the server answers", || node.get(&address, "/grow?mib=40").ok());
    assert!(grow().starts_with("refused after"));
    let pid = node.ask_json(&["inspect", &server])["info"]["pid"].clone();
    node.ask(&[
        "update",
        "--memory",
        &(128 * MIB).to_string(),
        "--cpu-quota",
        "80000",
        "--cpu-period",
        "100000",
        &server,
    ]);
    let cgroup = Cgroup::at(&format!("skiff-test-{}/resized/{server}", node.token));
    assert_eq!((cgroup.memory_limit(), cgroup.cpu_quota()), (Some(128 * MIB), Some((80_000, 100_000))));
    assert!(until(Duration::from_secs(10), || grow().starts_with("grew 40 MiB")));
    assert_eq!(node.ask_json(&["inspect", &server])["info"]["pid"], pid, "nothing was restarted");
    let figure = |stats: &Value, path: &str| {
        let text = stats.pointer(path).and_then(Value::as_str).unwrap_or_else(|| panic!("no {path} in {stats}"));
        text.parse::<u64>().unwrap()
    };
    let stats = &node.ask_json(&["stats", "-o", "json", &server])["stats"][0];
    let of_pod = &node.ask_json(&["statsp", "-o", "json", "--id", &pod.id])["stats"][0];
    for (stats, below) in [(stats, ""), (of_pod, "/linux")] {
        for path in ["/memory/workingSetBytes/value", "/cpu/usageCoreNanoSeconds/value"] {
            assert!(figure(stats, &format!("{below}{path}")) > 0, "{path}: {stats}");
        }
    }
    assert!(figure(of_pod, "/linux/network/defaultInterface/rxBytes/value") > 0, "{of_pod}");
    assert_eq!(of_pod["linux"]["containers"].as_array().map(Vec::len), Some(1), "{of_pod}");
    pod.remove();
    node.assert_nothing_left();
}

#[test]
fn annotations_of_the_pod_bound_its_guests_and_those_of_a_container_win() {
    let node = Node::start(&["c-grow", "c-hello"]);
    let mut description = node.pod("annotated");
    description["annotations"] =
        json!({"limits.skiff.dev/memory-pages": "64", "large.limits.skiff.dev/memory-pages": "320"});
    let pod = node.run_pod(&description);
    for (name, line) in [("small", "stdout refused after 3 MiB"), ("large", "stdout refused after 19 MiB")] {
        let id = pod.run(name, &image_of("c-grow"), &["on", "1"], &memory(128));
        assert_eq!(ended(&node, &id)["exitCode"], 0, "{name}");
        assert!(until(Duration::from_secs(5), || pod.log(name) == [line]), "{name}: {:?}", pod.log(name));
    }
    pod.remove();
    let mut description = node.pod("mistaken");
    description["annotations"] = json!({"limits.skiff.dev/memory-page": "64"});
    let pod = node.run_pod(&description);
    // containerd makes the task, and with it the shim's container, only when the container is started.
    let id = pod.create("guest", &image_of("c-hello"), &[], &Value::Null);
    let said = pod.try_start(&id).unwrap_err();
    assert!(said.contains("limits.skiff.dev/memory-page"), "{said}");
    pod.remove();
    node.assert_nothing_left();
}
