//! Attacks from pods on a real Kubernetes: a neighbour and an ephemeral container that look for a way to the node or to what the
//! engine was handed, a pod that loses its shared pid namespace, and a hostPath of the kernel's file systems.

use serde_json::{Value, json};
use skiff_test::{Cluster, Namespace, container, random_name, status_of, wasm_pod};

/// Opens for writing what other processes have open as regular files, and prints what it can open.
const TRY_ALL: &str = "for f in /proc/[0-9]*/fd/*; do case $f in /proc/self/*|/proc/$$/*) continue;; esac; \
    [ -f $f ] && (: >> $f) 2> /dev/null && echo opened $f $(readlink $f); done; \
    for f in /proc/[0-9]*/root; do ls $f/etc/kubernetes > /dev/null 2>&1 && echo the node through $f; done; echo tried";

fn namespace() -> Namespace<'static> {
    Cluster::shared().namespace()
}

/// A guest and an idle native container with these fields, in one pid namespace.
fn pod_with_shared_processes(name: &str, native: Value) -> Value {
    let mut pod = wasm_pod(name, &[container("guest", "http", json!({})), container("spy", "busybox", native)]);
    pod["spec"]["shareProcessNamespace"] = json!(true);
    pod
}

/// What is left of the lines besides those about the kubelet's file for a last word, which belongs to the pod, and about what the
/// kernel tells a process of its own pages, which can be opened for writing and not written to.
fn without_the_harmless(said: &str) -> Vec<&str> {
    let harmless = [" /dev/.skiff/root/dev/termination-log", "/pagemap"];
    said.lines().filter(|line| !harmless.iter().any(|end| line.ends_with(end))).collect()
}

fn in_node(script: &str) -> String {
    Cluster::shared().run("in-node", &["sh", "-c", script])
}

#[test]
fn a_neighbour_with_ptrace_finds_no_way_to_the_node_and_nothing_to_write() {
    let namespace = namespace();
    let rights = json!({"capabilities": {"add": ["SYS_PTRACE"]}});
    let native = json!({"command": ["sleep", "10000"], "securityContext": rights});
    namespace.start(&pod_with_shared_processes("shared", native));
    let said = namespace.kubectl(&["exec", "shared", "-c", "spy", "--", "sh", "-c", TRY_ALL]);
    assert_eq!(without_the_harmless(&said), ["tried"]);
    let first = "ls -A /proc/1/root/ /proc/1/fd/ | grep -v '^/proc' | tr -d '\\n'; readlink /proc/1/cwd; \
        touch /proc/1/root/owned 2> /dev/null && echo wrote";
    let said = namespace.kubectl(&["exec", "shared", "-c", "spy", "--", "sh", "-c", &format!("{first}; true")]);
    assert_eq!(said, "/\n");
}

#[test]
fn an_ephemeral_container_finds_nothing_to_write_in_its_target() {
    let namespace = namespace();
    namespace.start(&wasm_pod("web", &[container("main", "http", json!({}))]));
    let image = "--image=localhost:5000/examples/busybox:1";
    let words = ["debug", "web", image, "--target=main", "--container=spy", "--profile=general", "--quiet", "--"];
    namespace.kubectl(&[&words[..], &["sh", "-c", TRY_ALL]].concat());
    let said = namespace.eventually("the ephemeral container to have tried", || {
        namespace.try_kubectl(&["logs", "web", "-c", "spy"]).ok().filter(|said| said.contains("tried"))
    });
    assert_eq!(without_the_harmless(&said), ["tried"]);
}

#[test]
fn a_pod_that_has_lost_its_shared_pid_namespace_is_made_anew() {
    let namespace = namespace();
    let mark = random_name("mark");
    let idle = format!("while :; do sleep 1; done # {mark}");
    let mut pod = pod_with_shared_processes("lost", json!({"command": ["sh", "-c", idle]}));
    pod["spec"]["restartPolicy"] = json!("Always");
    namespace.start(&pod);
    // The first process in the pid namespace of the marked one.
    let killed = in_node(&format!(
        "for q in $(pgrep -f '^sh -c while.*{mark}'); do for p in $(pgrep -f '^skiff-init '); do \
         if [ \"$(readlink /proc/$p/ns/pid)\" = \"$(readlink /proc/$q/ns/pid)\" ]; then kill -9 $p && echo killed; fi; \
         done; done"
    ));
    assert_eq!(killed, "killed\n");
    let is_back = |pod: &Value, name: &str| {
        let status = status_of(pod, name);
        status["restartCount"].as_u64() >= Some(1) && !status["state"]["running"].is_null()
    };
    namespace.watch("pod/lost", |pod| is_back(pod, "guest") && is_back(pod, "spy"));
    namespace.eventually("the kubelet reports that it makes a new sandbox", || {
        let events = namespace.kubectl(&["get", "events", "-o", "jsonpath={.items[*].reason}"]);
        events.contains("SandboxChanged").then_some(())
    });
}

#[test]
fn a_hostpath_of_the_kernels_is_refused_in_the_pods_status() {
    let namespace = namespace();
    let mounts = json!({"volumeMounts": [{"name": "node", "mountPath": "/host/proc"}]});
    let mut pod = wasm_pod("proc", &[container("main", "c-hello", mounts)]);
    pod["spec"]["volumes"] = json!([{"name": "node", "hostPath": {"path": "/proc"}}]);
    let ended = namespace.run(&pod);
    let message = status_of(&ended, "main")["state"]["terminated"]["message"].as_str().unwrap_or_default();
    assert!(message.contains("the volume at `/host/proc` is a file system of the kernel (`proc`)"), "{ended:#}");
}
