//! Probes and hooks that run a command in a pod: wasm and native programs.

use serde_json::{Value, json};
use skiff_test::{Cluster, Namespace, container, random_name, status_of, wasm_pod};

/// A container of the image with guests and native programs, which sleeps.
fn mixed(fields: Value) -> Value {
    container("main", "mixed", fields)
}

/// A probe that runs a command every second.
fn probe(command: &[&str]) -> Value {
    json!({"exec": {"command": command}, "periodSeconds": 1, "timeoutSeconds": 20, "failureThreshold": 3})
}

fn restarts(pod: &Value) -> u64 {
    status_of(pod, "main")["restartCount"].as_u64().unwrap_or_default()
}

/// Waits for an event whose message contains this.
fn told(namespace: &Namespace<'_>, reason: &str, part: &str) {
    let path = "jsonpath={range .items[*]}{.message}{\"\\n\"}{end}";
    let words = ["get", "events", "--field-selector", &format!("reason={reason}"), "-o", path];
    namespace.eventually(&format!("an event `{reason}` with {part:?}"), || {
        namespace.kubectl(&words).contains(part).then_some(())
    });
}

#[test]
fn a_pod_is_ready_while_its_probe_succeeds() {
    let namespace = Cluster::shared().namespace();
    let fields = json!({
        "startupProbe": probe(&["hello.wasm", "exit", "0"]),
        "readinessProbe": probe(&["test", "-e", "/tmp/ready"]),
        "livenessProbe": probe(&["hello"]),
    });
    namespace.make(&wasm_pod("main", &[mixed(fields)]));
    let is_ready = |pod: &Value| status_of(pod, "main")["ready"] == true;
    let started = namespace.watch("pod/main", |pod| status_of(pod, "main")["started"] == true);
    assert!(!is_ready(&started));
    told(&namespace, "Unhealthy", "Readiness probe failed");
    for (command, ready) in [(["touch", "/tmp/ready"], true), (["rm", "/tmp/ready"], false)] {
        assert_eq!(namespace.exec("main", &command).code, 0);
        namespace.watch("pod/main", |pod| is_ready(pod) == ready);
    }
    assert_eq!(restarts(&namespace.get(&["pod/main"])), 0, "it was alive all the time");
}

#[test]
fn a_guest_whose_probe_fails_is_started_again() {
    let namespace = Cluster::shared().namespace();
    let rows: [(&str, &[&str], &str); 4] = [
        ("wasm", &["hello.wasm", "exit", "3"], ""),
        ("native", &["sh", "-c", "echo not well >&2; exit 1"], "not well"),
        ("trap", &["trap"], "about to trap\n"),
        ("nonsense", &["nonsense"], "skiff: there is no `nonsense` in this wasm container"),
    ];
    for (name, command, _) in rows {
        let mut pod = wasm_pod(name, &[mixed(json!({"livenessProbe": probe(command)}))]);
        pod["spec"]["restartPolicy"] = json!("Always");
        namespace.make(&pod);
    }
    for (name, _, said) in rows {
        namespace.watch(&format!("pod/{name}"), |pod| restarts(pod) > 0);
        told(&namespace, "Unhealthy", &format!("Liveness probe failed: {said}"));
    }
    let startup = json!({"startupProbe": probe(&["hello", "exit", "1"])});
    let mut pod = wasm_pod("never", &[mixed(startup)]);
    pod["spec"]["restartPolicy"] = json!("Always");
    namespace.make(&pod);
    let pod = namespace.watch("pod/never", |pod| restarts(pod) > 0);
    assert_eq!(status_of(&pod, "main")["started"], false);
}

#[test]
fn a_probe_that_takes_too_long_has_failed() {
    let namespace = Cluster::shared().namespace();
    let mut slow = probe(&["sleep.wasm"]);
    slow["timeoutSeconds"] = json!(1);
    namespace.make(&wasm_pod("main", &[mixed(json!({"readinessProbe": slow}))]));
    told(&namespace, "Unhealthy", "Readiness probe failed: command timed out");
    assert_eq!(status_of(&namespace.get(&["pod/main"]), "main")["ready"], false);
}

/// What is kept of a pod after its end: lines of a file on the node.
struct Kept {
    namespace: Namespace<'static>,
    folder: String,
}

impl Kept {
    fn new() -> Self {
        Self {
            namespace: Cluster::shared().namespace(),
            folder: format!("/var/tmp/skiff-example/{}", random_name("hooks")),
        }
    }

    /// A pod whose container has these fields, with the folder at `/kept`.
    fn pod(&self, mut fields: Value, grace_s: u32) -> Value {
        fields["volumeMounts"] = json!([{"name": "kept", "mountPath": "/kept"}]);
        let mut pod = wasm_pod("main", &[mixed(fields)]);
        pod["spec"]["volumes"] =
            json!([{"name": "kept", "hostPath": {"path": self.folder, "type": "DirectoryOrCreate"}}]);
        pod["spec"]["terminationGracePeriodSeconds"] = json!(grace_s);
        pod
    }

    fn lines(&self) -> String {
        self.namespace.cluster.run("in-node", &["cat", &format!("{}/lines", self.folder)])
    }

    /// Deletes the pod and returns the exit code of its container.
    fn end(&self) -> u64 {
        let path = "jsonpath={.status.containerStatuses[0].state.terminated.exitCode}{\"\\n\"}";
        let codes = self.namespace.lasting(&["get", "pod", "main", "--watch", "-o", path]);
        codes.expect("\n");
        self.namespace.kubectl(&["delete", "pod", "main"]);
        let code = || codes.said().lines().find_map(|line| line.parse().ok());
        self.namespace.eventually("the exit code", code)
    }
}

impl Drop for Kept {
    fn drop(&mut self) {
        drop(self.namespace.cluster.try_run("in-node", &["rm", "-r", &self.folder]));
    }
}

fn hook(command: &[&str]) -> Value {
    json!({"exec": {"command": command}})
}

#[test]
fn hooks_run_after_the_start_and_before_the_end() {
    let kept = Kept::new();
    let lifecycle = json!({
        "postStart": hook(&["sh", "-c", "sleep 1; echo started >> /kept/lines"]),
        "preStop": hook(&["sh", "-c", "sleep 1; ps | grep -q '[s]leep.wasm' && echo stopping >> /kept/lines"]),
    });
    kept.namespace.start(&kept.pod(json!({"lifecycle": lifecycle}), 30));
    assert_eq!(kept.lines(), "started\n", "it is running when the hook has ended");
    assert_eq!(kept.end(), 143, "SIGTERM comes after the hook");
    assert_eq!(kept.lines(), "started\nstopping\n");
}

#[test]
fn a_hook_is_wasm() {
    let namespace = Cluster::shared().namespace();
    let lifecycle = json!({"postStart": hook(&["hello.wasm"]), "preStop": hook(&["hello.wasm"])});
    namespace.start(&wasm_pod("mixed", &[mixed(json!({"lifecycle": lifecycle}))]));
    namespace.kubectl(&["delete", "pod", "mixed"]);
    let said = namespace.kubectl(&["get", "events", "-o", "jsonpath={.items[*].reason}"]);
    assert!(!said.contains("Hook"), "{said}");
}

#[test]
fn a_container_whose_hook_fails_is_ended() {
    let namespace = Cluster::shared().namespace();
    let lifecycle = json!({"postStart": hook(&["hello.wasm", "exit", "3"])});
    let ended = namespace.run(&wasm_pod("main", &[mixed(json!({"lifecycle": lifecycle}))]));
    assert_eq!(status_of(&ended, "main")["state"]["terminated"]["exitCode"], 143, "{ended:#}");
    told(&namespace, "FailedPostStartHook", "PostStartHook failed");
}

#[test]
fn a_hook_that_outlasts_the_grace_is_ended_with_its_container() {
    let kept = Kept::new();
    let stop = hook(&["sh", "-c", "echo stopping >> /kept/lines; sleep 3600"]);
    kept.namespace.start(&kept.pod(json!({"lifecycle": {"preStop": stop}}), 3));
    // The kubelet gives the guest two more seconds after SIGTERM.
    assert_eq!(kept.end(), 143);
    assert_eq!(kept.lines(), "stopping\n");
}

#[test]
fn a_function_of_the_guest_is_a_probe() {
    let namespace = Cluster::shared().namespace();
    let well = container("main", "values", json!({"readinessProbe": probe(&["invoke", "divide(1, 1)"])}));
    let unwell = container("main", "values", json!({"readinessProbe": probe(&["invoke", "divide(1, 0)"])}));
    namespace.start(&wasm_pod("well", &[well]));
    namespace.make(&wasm_pod("unwell", &[unwell]));
    told(&namespace, "Unhealthy", "cannot divide 1 by 0");
    assert_eq!(status_of(&namespace.get(&["pod/unwell"]), "main")["ready"], false);
}

#[test]
fn a_function_of_the_guest_is_a_hook() {
    let namespace = Cluster::shared().namespace();
    let lifecycle = json!({"postStart": hook(&["invoke", "counter()"])});
    namespace.start(&wasm_pod("main", &[container("main", "reactor", json!({"lifecycle": lifecycle}))]));
    assert_eq!(namespace.exec("main", &["invoke", "counter()"]).stdout, "2\n");
}
