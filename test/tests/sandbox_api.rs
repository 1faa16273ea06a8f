//! Pods whose sandboxes the shim makes by itself (`sandboxer = 'shim'`), through a real containerd's CRI: what containerd does for
//! other pods and the shim does for these. What all pods have in common is in the suite `cri`, which runs with both.

use std::fs::{self, File};
use std::path::Path;
use std::process::Stdio;
use std::time::Duration;

use nix::sys::signal::Signal;
use serde_json::{Value, json};
use skiff_test::cri::{BUSYBOX, Node, Pod, image_of, merge, pid_in};
use skiff_test::{SHIM, command_line_of, eventually, is_alive, signal, tools, until};

/// A native container that runs until SIGTERM, and then ends with 0.
const PATIENT: [&str; 3] = ["sh", "-c", "trap 'exit 0' TERM; echo waiting; while :; do sleep 0.1; done"];
const NOTHING: Value = Value::Null;

/// What busybox prints in a container.
fn inside(node: &Node, id: &str, words: &[&str]) -> String {
    node.ask(&[&["exec", id, "/busybox"], words].concat())
}

/// Whether busybox succeeds in a container.
fn can(node: &Node, id: &str, words: &[&str]) -> bool {
    node.crictl(&[&["exec", id, "/busybox"], words].concat()).status.success()
}

/// The output of a guest that ends.
fn output_of(node: &Node, pod: &Pod<'_>, name: &str, image: &str, args: &[&str]) -> Vec<String> {
    let id = pod.run(name, &image_of(image), args, &NOTHING);
    eventually("the guest ends", || {
        (node.ask_json(&["inspect", &id])["status"]["state"] == "CONTAINER_EXITED").then_some(())
    });
    pod.log(name)
}

#[test]
fn a_pod_needs_neither_a_pause_image_nor_a_container_of_its_own() {
    let node = Node::of_the_sandbox_api(&[]);
    let mut description = node.pod("plain");
    description["linux"]["sysctls"] = json!({"net.ipv4.ip_local_port_range": "2000 3000"});
    let pod = node.run_pod(&description);
    assert!(command_line_of(pod.pid()).contains(SHIM), "{}", command_line_of(pod.pid()));
    assert!(!node.ask(&["images"]).contains("pause"));
    let status = pod.inspect()["status"].clone();
    assert_eq!((&status["state"], &status["metadata"]["name"]), (&json!("SANDBOX_READY"), &json!("plain")));
    assert!(!status["createdAt"].as_str().unwrap().starts_with("1970"), "{status}");
    assert!(node.ask(&["pods"]).contains("Ready"));
    let side = pod.run("side", BUSYBOX, &PATIENT, &NOTHING);
    let sysctl = |name: &str| inside(&node, &side, &["cat", &format!("/proc/sys/net/ipv4/{name}")]);
    assert_eq!(sysctl("ip_local_port_range"), "2000\t3000");
    // As containerd sets them.
    assert_eq!(sysctl("ip_unprivileged_port_start"), "0");
    assert_eq!(sysctl("ping_group_range"), "0\t2147483647");
    assert_eq!(inside(&node, &side, &["hostname"]), "plain");
    let left = node.leftovers();
    assert!(left.iter().any(|line| line.starts_with("mount") && line.ends_with("/shm")), "{left:#?}");
    let place = format!("/skiff-test-{}/plain/{}", node.token, pod.id);
    assert!(left.iter().any(|line| line.starts_with("cgroup") && line.ends_with(&place)), "{left:#?}");
    node.ask(&["stopp", &pod.id]);
    assert_eq!(pod.inspect()["status"]["state"], "SANDBOX_NOTREADY");
    pod.remove();
    node.assert_nothing_left();
}

#[test]
fn containers_have_the_files_of_their_pod() {
    let node = Node::of_the_sandbox_api(&["c-files"]);
    let mut description = node.pod("files");
    let dns = json!({"servers": ["10.9.8.7", "10.9.8.6"], "searches": ["a.test", "b.test"], "options": ["ndots:5"]});
    description["dns_config"] = dns;
    let pod = node.run_pod(&description);
    let resolver = "search a.test b.test\nnameserver 10.9.8.7\nnameserver 10.9.8.6\noptions ndots:5";
    let hosts = fs::read_to_string("/etc/hosts").unwrap();

    let writable = pod.run("writable", BUSYBOX, &PATIENT, &NOTHING);
    let restricted = json!({"linux": {"security_context": {"readonly_rootfs": true}}});
    let read_only = pod.run("read-only", BUSYBOX, &PATIENT, &restricted);
    for (id, access) in [(&writable, "rw"), (&read_only, "ro")] {
        assert_eq!(inside(&node, id, &["cat", "/etc/hostname"]), "files");
        assert_eq!(inside(&node, id, &["cat", "/etc/resolv.conf"]), resolver);
        assert_eq!(inside(&node, id, &["cat", "/etc/hosts"]), hosts.trim());
        let mounts = inside(&node, id, &["cat", "/proc/self/mounts"]);
        let options_at = |place: &str| {
            let mut lines = mounts.lines().map(|line| line.split(' ').collect::<Vec<_>>());
            lines.rfind(|fields| fields[1] == place).unwrap_or_else(|| panic!("{place}: {mounts}"))[3].to_string()
        };
        for place in ["/etc/hostname", "/etc/hosts", "/etc/resolv.conf"] {
            assert!(options_at(place).starts_with(access), "{place}: {mounts}");
            assert_eq!(can(&node, id, &["sh", "-c", &format!("echo >> {place}")]), access == "rw", "{place}");
        }
        assert_eq!(options_at("/dev/shm"), "rw,relatime,size=65536k", "as with a pause container: {mounts}");
        assert!(can(&node, id, &["touch", &format!("/dev/shm/{access}")]));
    }
    assert_eq!(inside(&node, &read_only, &["ls", "/dev/shm"]), "ro\nrw", "the pod's containers share it");

    let on_disk = node.dir.join("root/io.containerd.sandbox.controller.v1.shim/k8s.io").join(&pod.id);
    assert!(on_disk.join("resolv.conf").is_file(), "what a container can write is not in memory");
    let own = node.dir.join("own");
    fs::write(&own, "the container's own\n").unwrap();
    let mounts: Vec<_> = ["/etc/hosts", "/etc/../etc/hostname"]
        .iter()
        .map(|place| json!({"container_path": place, "host_path": own}))
        .collect();
    let with_mounts = pod.run("with-mounts", BUSYBOX, &PATIENT, &json!({"mounts": mounts}));
    for place in ["/etc/hosts", "/etc/hostname"] {
        assert_eq!(inside(&node, &with_mounts, &["cat", place]), "the container's own");
    }
    let said = output_of(&node, &pod, "guest", "c-files", &["read:/etc/hostname", "read:/etc/resolv.conf"]);
    assert!(said.iter().any(|line| line.contains("files")), "{said:?}");
    assert!(said.iter().any(|line| line.contains("10.9.8.7")), "{said:?}");
    pod.remove();
    node.assert_nothing_left();
}

#[test]
fn a_pod_on_the_node_has_the_nodes_files() {
    let node = Node::of_the_sandbox_api(&[]);
    let mut description = node.pod("node");
    description["hostname"] = json!("");
    description["linux"]["security_context"]["namespace_options"] = json!({"network": 2, "pid": 1, "ipc": 2});
    let pod = node.run_pod(&description);
    let side = pod.run("side", BUSYBOX, &PATIENT, &NOTHING);
    let here = |path: &str| fs::read_to_string(path).unwrap().trim().to_string();
    assert_eq!(inside(&node, &side, &["cat", "/etc/resolv.conf"]), here("/etc/resolv.conf"));
    assert_eq!(inside(&node, &side, &["cat", "/etc/hosts"]), here("/etc/hosts"));
    assert_eq!(inside(&node, &side, &["cat", "/etc/hostname"]), here("/proc/sys/kernel/hostname"));
    let marker = Path::new("/dev/shm").join(&node.token);
    File::create(&marker).unwrap();
    let is_seen = can(&node, &side, &["test", "-e", marker.to_str().unwrap()]);
    fs::remove_file(&marker).unwrap();
    assert!(is_seen, "the node's shared memory");
    let pid = pid_in(&node.ask_json(&["inspect", &side]));
    for kind in ["ipc", "uts"] {
        let namespace = |pid: &str| fs::read_link(format!("/proc/{pid}/ns/{kind}")).unwrap();
        assert_eq!(namespace(&pid.to_string()), namespace("self"), "{kind}");
    }
    pod.remove();
    node.assert_nothing_left();
}

#[test]
fn the_cri_has_the_figures_of_the_pod_and_its_network() {
    let node = Node::of_the_sandbox_api(&["rust-p2-http"]);
    let pod = node.run_pod(&node.pod("figures"));
    pod.run("server", &image_of("rust-p2-http"), &[], &NOTHING);
    eventually("the server answers", || node.get(&pod.address(), "/").ok());
    let stats = &node.ask_json(&["statsp", "-o", "json", &pod.id])["stats"][0]["linux"];
    let interface = &stats["network"]["defaultInterface"];
    assert_eq!(interface["name"], "eth0", "{stats}");
    let figure = |value: &Value| value["value"].as_str().and_then(|text| text.parse::<u64>().ok()).unwrap_or_default();
    assert!(figure(&interface["rxBytes"]) > 0 && figure(&interface["txBytes"]) > 0, "{stats}");
    // Of the pod with its container: the sandbox itself uses next to nothing.
    assert!(figure(&stats["memory"]["usageBytes"]) > 100_000, "{stats}");
    assert!(figure(&stats["cpu"]["usageCoreNanoSeconds"]) > 0, "{stats}");
    assert_eq!(stats["containers"].as_array().map(Vec::len), Some(1), "{stats}");
    pod.remove();
    node.assert_nothing_left();
}

#[test]
fn a_pod_outlives_containerd_and_takes_new_containers_after_it() {
    let mut node = Node::of_the_sandbox_api(&["rust-p2-http", "c-files"]);
    let description = node.pod("lasting");
    let pod = node.run_pod(&description);
    pod.run("server", &image_of("rust-p2-http"), &[], &NOTHING);
    let (id, address, shim) = (pod.id.clone(), pod.address(), pod.pid());
    eventually("the server answers", || node.get(&address, "/").ok());
    for (number, by) in [Signal::SIGTERM, Signal::SIGKILL].into_iter().enumerate() {
        node.restart_containerd_after(by, |node| assert_eq!(node.get(&address, "/").unwrap(), "hello\n"));
        assert_eq!(node.get(&address, "/").unwrap(), "hello\n");
        let pod = node.found_pod(&id, &description);
        let inspected = pod.inspect();
        assert_eq!((&inspected["status"]["state"], pid_in(&inspected)), (&json!("SANDBOX_READY"), shim), "{by}");
        assert!(!inspected["status"]["createdAt"].as_str().unwrap().starts_with("1970"), "{inspected}");
        let side = pod.run(&format!("side{number}"), BUSYBOX, &PATIENT, &NOTHING);
        assert_eq!(inside(&node, &side, &["wget", "-qO-", "http://127.0.0.1:8080/"]), "hello");
        assert_eq!(inside(&node, &side, &["cat", "/etc/hostname"]), "lasting");
        let said = output_of(&node, &pod, &format!("guest{number}"), "c-files", &["read:/etc/hostname"]);
        assert!(said.iter().any(|line| line.contains("lasting")), "{said:?}");
    }
    // The end of the sandbox still reaches the new containerd.
    node.ask(&["stopp", &id]);
    let state = || node.ask_json(&["inspectp", &id])["status"]["state"].clone();
    eventually("it is not ready", || (state() == "SANDBOX_NOTREADY").then_some(()));
    node.found_pod(&id, &description).remove();
    eventually("the shim ends", || (!is_alive(shim)).then_some(()));
    node.assert_nothing_left();
}

#[test]
fn a_pod_that_ends_while_containerd_is_down_is_cleaned_up_by_the_next() {
    let mut node = Node::of_the_sandbox_api(&["c-sleep"]);
    let description = node.pod("unseen");
    let pod = node.run_pod(&description);
    pod.run("guest", &image_of("c-sleep"), &[], &NOTHING);
    let (id, shim) = (pod.id.clone(), pod.pid());
    node.restart_containerd(|_| signal(shim, Signal::SIGKILL).unwrap());
    let pod = node.found_pod(&id, &description);
    eventually("it is not ready", || (pod.inspect()["status"]["state"] == "SANDBOX_NOTREADY").then_some(()));
    pod.remove();
    node.assert_nothing_left();
}

#[test]
fn a_user_namespace_is_refused_in_a_sentence() {
    let node = Node::of_the_sandbox_api(&[]);
    let mut description = node.pod("users");
    let mapping = json!([{"host_id": 300_000, "container_id": 0, "length": 65536}]);
    let users = json!({"userns_options": {"mode": 0, "uids": mapping, "gids": mapping}});
    merge(&mut description["linux"]["security_context"]["namespace_options"], &users);
    let said = node.try_pod("skiff", &description).err().expect("there are no user namespaces");
    assert!(said.contains("user namespaces (`hostUsers: false`) are not implemented with `sandboxer = "), "{said}");
    node.assert_nothing_left();
}

#[test]
fn no_task_is_announced_for_a_sandbox() {
    let node = Node::of_the_sandbox_api(&["c-hello"]);
    let log = node.dir.join("events");
    let mut command = node.inside(
        &tools().join("ctr"),
        &["--address", node.dir.join("c.sock").to_str().unwrap(), "--namespace", "k8s.io", "events"],
    );
    let mut events = command.stdout(File::create(&log).unwrap()).stderr(Stdio::null()).spawn().unwrap();
    let text = || fs::read_to_string(&log).unwrap();
    let pod = node.run_pod(&node.pod("quiet"));
    // The listener may have begun after the pod.
    let guest = eventually("events are heard", || {
        let name = format!("guest{}", text().len());
        let id = pod.run(&name, &image_of("c-hello"), &[], &NOTHING);
        until(Duration::from_secs(1), || text().contains(&id)).then_some(id)
    });
    eventually("its end is heard", || {
        text().lines().any(|line| line.contains("/tasks/exit") && line.contains(&guest)).then_some(())
    });
    let second = node.run_pod(&node.pod("second"));
    node.ask(&["stopp", &second.id]);
    let third = second.id.clone();
    // What follows is containerd's own: it has lost its connection to the shim, as intended.
    let before = text();
    second.remove();
    pod.remove();
    events.kill().unwrap();
    events.wait().unwrap();
    let of_the_sandbox = |text: &str| -> Vec<String> {
        text.lines().filter(|line| line.contains("/tasks/") && line.contains(&third)).map(str::to_string).collect()
    };
    assert_eq!(of_the_sandbox(&before), [""; 0]);
    let all = text();
    for topic in ["/tasks/create", "/tasks/start"] {
        assert!(!of_the_sandbox(&all).iter().any(|line| line.contains(topic)), "{all}");
    }
    node.assert_nothing_left();
}
