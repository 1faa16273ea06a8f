//! What happens to a node with wasm pods: its daemons restart, shims are killed, it is drained, its disk fills up. These tests
//! disturb everything else on the node, so they take turns, and the suite runs alone.

use std::sync::{Mutex, MutexGuard, PoisonError};

use serde_json::{Value, json};
use skiff_test::{Cluster, Namespace, container, deployment, http_pod, service, status_of, wasm_pod};

static TURN: Mutex<()> = Mutex::new(());

/// A namespace, held while no other test disturbs the node.
fn namespace() -> (Namespace<'static>, MutexGuard<'static, ()>) {
    let turn = TURN.lock().unwrap_or_else(PoisonError::into_inner);
    (Cluster::shared().namespace(), turn)
}

fn in_node(script: &str) -> String {
    Cluster::shared().run("in-node", &["sh", "-c", script])
}

fn is_alive_in_node(pid: u64) -> bool {
    Cluster::shared().try_run("in-node", &["test", "-e", &format!("/proc/{pid}")]).is_ok()
}

/// The pid of the container `main` on the node.
fn pid_of(pod: &Value) -> u64 {
    let id = status_of(pod, "main")["containerID"].as_str().unwrap().trim_start_matches("containerd://");
    let inspected: Value = serde_json::from_str(&Cluster::shared().run("crictl", &["inspect", id])).unwrap();
    inspected["info"]["pid"].as_u64().unwrap()
}

/// The shim of the container `main`.
fn shim_of(pod: &Value) -> u64 {
    in_node(&format!("sed -n 's/^PPid:[^0-9]*//p' /proc/{}/status", pid_of(pod))).trim().parse().unwrap()
}

fn address_of(pod: &Value) -> String {
    format!("http://{}:8080/", pod["status"]["podIP"].as_str().unwrap())
}

/// The pods with the label `app: NAME`.
fn pods_of(namespace: &Namespace<'_>, app: &str) -> Vec<Value> {
    let mut list = namespace.get(&["pods", "-l", &format!("app={app}")]);
    serde_json::from_value(list["items"].take()).unwrap()
}

fn name_of(pod: &Value) -> &str {
    pod["metadata"]["name"].as_str().unwrap()
}

fn assert_same_container(before: &Value, after: &Value) {
    let [old, new] = [before, after].map(|pod| status_of(pod, "main"));
    assert_eq!((&new["containerID"], &new["restartCount"]), (&old["containerID"], &json!(0)));
    assert_eq!(pid_of(before), pid_of(after));
}

/// Guests keep running during a restart: they are reachable throughout, are the same afterwards, and new ones can be started.
fn check_restart(daemon: &str) {
    let (namespace, _turn) = namespace();
    namespace.start(&http_pod("web"));
    let cat = container("main", "c-cat", json!({"stdin": true, "stdinOnce": true}));
    namespace.start(&wasm_pod("cat", &[cat]));
    let before = ["pod/web", "pod/cat"].map(|pod| namespace.get(&[pod]));
    let load = Cluster::shared().load(&format!("{}?", address_of(&before[0])));
    for _ in 0..2 {
        Cluster::shared().restart(daemon);
        load.goes_on();
    }
    namespace.start(&http_pod("later"));
    for pod in &before {
        namespace.wait("condition=Ready", &format!("pod/{}", name_of(pod)));
        assert_same_container(pod, &namespace.get(&[&format!("pod/{}", name_of(pod))]));
    }
    // Earlier pods are still monitored, ended and removed.
    let mut attached = namespace.lasting(&["attach", "-i", "cat"]);
    attached.write("after all that\n");
    attached.expect("after all that\n");
    attached.close();
    assert_eq!(namespace.ended("cat")["exitCode"], 0);
    assert_eq!(namespace.logs(&["cat"]), "after all that\n");
    load.answered();
    drop(load);
    namespace.kubectl(&["delete", "pods", "--all"]);
}

#[test]
fn guests_outlive_the_kubelet() {
    check_restart("kubelet");
}

#[test]
fn guests_outlive_containerd() {
    check_restart("containerd");
}

#[test]
fn an_end_while_containerd_is_away_is_seen_afterwards() {
    let (namespace, _turn) = namespace();
    let seconds = |seconds: u32| json!({"args": [(seconds * 1000).to_string()]});
    let mut pods = Vec::new();
    for pod in [http_pod("web"), wasm_pod("ends", &[container("main", "c-sleep", seconds(10))])] {
        namespace.start(&pod);
        pods.push(namespace.get(&[&format!("pod/{}", name_of(&pod))]));
    }
    let load = Cluster::shared().load(&format!("{}?", address_of(&pods[0])));
    let (containerd, guest) = (in_node("pgrep -xo containerd").trim().to_string(), pid_of(&pods[1]));
    assert!(is_alive_in_node(guest));
    // A stopped process does not answer, and it is not replaced.
    in_node(&format!("kill -STOP {containerd}"));
    load.goes_on();
    namespace.eventually("the guest's end", || (!is_alive_in_node(guest)).then_some(()));
    in_node(&format!("kill -KILL {containerd}"));
    let state = namespace.ended("ends");
    assert_eq!((&state["exitCode"], &state["reason"]), (&json!(0), &json!("Completed")), "{state}");
    // Output that was written without a reader is lost, as it is with a native container.
    assert!(namespace.logs(&["ends"]).starts_with("sleeping\n"));
    load.goes_on();
    assert_same_container(&pods[0], &namespace.get(&["pod/web"]));
}

#[test]
fn pods_whose_shims_were_killed_come_back() {
    let (namespace, _turn) = namespace();
    namespace.make(&deployment(http_pod("web"), 3));
    namespace.kubectl(&["rollout", "status", "deployment/web", "--timeout=120s"]);
    let before = pods_of(&namespace, "web");
    let processes: Vec<u64> = before.iter().flat_map(|pod| [shim_of(pod), pid_of(pod)]).collect();
    let words: Vec<String> = processes.iter().map(u64::to_string).collect();
    in_node(&format!("kill -KILL {}", words.join(" ")));
    for pod in &before {
        let is_back = |pod: &Value| {
            let status = status_of(pod, "main");
            status["ready"] == true && status["restartCount"] == 1
        };
        let after = namespace.watch(&format!("pod/{}", name_of(pod)), is_back);
        assert_eq!(Cluster::shared().curl(&[&address_of(&after)]).unwrap(), "hello\n");
    }
    for pid in processes {
        assert!(!is_alive_in_node(pid), "{pid}");
    }
}

#[test]
fn a_shim_that_was_killed_leaves_no_guest_behind() {
    let (namespace, _turn) = namespace();
    let mut pod = http_pod("web");
    pod["spec"]["restartPolicy"] = json!("Always");
    namespace.start(&pod);
    let before = namespace.get(&["pod/web"]);
    let guest = pid_of(&before);
    in_node(&format!("kill -KILL {}", shim_of(&before)));
    namespace.eventually("the end of the guest", || (!is_alive_in_node(guest)).then_some(()));
    let after = namespace.watch("pod/web", |pod| {
        let status = status_of(pod, "main");
        status["ready"] == true && status["restartCount"] == 1
    });
    assert_eq!(Cluster::shared().curl(&[&address_of(&after)]).unwrap(), "hello\n");
}

#[test]
fn a_guest_that_writes_too_much_is_evicted() {
    let (namespace, _turn) = namespace();
    let mut root = http_pod("root");
    root["spec"]["containers"][0]["resources"] = json!({"limits": {"ephemeral-storage": "1Mi"}});
    let mut volume = http_pod("volume");
    volume["spec"]["containers"][0]["volumeMounts"] = json!([{"name": "data", "mountPath": "/data"}]);
    volume["spec"]["volumes"] = json!([{"name": "data", "emptyDir": {"sizeLimit": "1Mi"}}]);
    for pod in [&mut root, &mut volume] {
        // To the kubelet a pod whose containers all end with 0, as servers do, has succeeded, evicted or not.
        pod["spec"]["containers"].as_array_mut().unwrap().push(container("other", "c-sleep", json!({})));
    }
    let file = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(file.path(), vec![b'x'; 4 << 20]).unwrap();
    let data = format!("@{}", file.path().display());
    let rows = [
        ("root", root, "/big", "ephemeral local storage usage exceeds the total limit of containers 1Mi"),
        ("volume", volume, "/data/big", "Usage of EmptyDir volume \"data\" exceeds the limit \"1Mi\""),
    ];
    for (name, pod, path, _) in &rows {
        namespace.start(pod);
        let url = format!("{}write?path={path}", address_of(&namespace.get(&[&format!("pod/{name}")])));
        assert_eq!(Cluster::shared().curl(&["--data-binary", &data, &url]).unwrap(), "written");
    }
    for (name, _, _, sentence) in rows {
        let evicted = namespace.watch(&format!("pod/{name}"), |pod| pod["status"]["phase"] == "Failed");
        let status = &evicted["status"];
        assert_eq!(status["reason"], "Evicted", "{name}: {status:#}");
        assert!(status["message"].as_str().unwrap().contains(sentence), "{name}: {}", status["message"]);
    }
}

/// Lets pods be scheduled on the node again when dropped.
struct Cordoned(String);

impl Drop for Cordoned {
    fn drop(&mut self) {
        Cluster::shared().kubectl(&["uncordon", &self.0]);
    }
}

#[test]
fn a_drain_keeps_to_the_budget_and_loses_no_request() {
    let (namespace, _turn) = namespace();
    let mut pod = http_pod("drained");
    pod["spec"]["containers"][0]["lifecycle"] = json!({"preStop": {"sleep": {"seconds": 5}}});
    namespace.make(&deployment(pod, 2));
    namespace.make(&service("drained"));
    namespace.kubectl(&["create", "poddisruptionbudget", "drained", "--selector=app=drained", "--min-available=1"]);
    namespace.kubectl(&["rollout", "status", "deployment/drained", "--timeout=120s"]);
    namespace.watch("poddisruptionbudget/drained", |budget| budget["status"]["disruptionsAllowed"] == 1);
    let old = pods_of(&namespace, "drained");
    let address = namespace.kubectl(&["get", "service", "drained", "-o", "jsonpath={.spec.clusterIP}"]);
    namespace.eventually("an answer", || Cluster::shared().curl(&[&format!("http://{address}/")]).ok());
    let load = Cluster::shared().load(&format!("http://{address}/slow?ms=200"));
    let node = Cordoned(Cluster::shared().node());
    // In all namespaces: what other tests have left has other names.
    let drain = namespace.lasting(&["drain", &node.0, "--pod-selector=app=drained", "--timeout=120s"]);
    // The replacement cannot be scheduled.
    drain.complains("Cannot evict pod as it would violate the pod's disruption budget");
    assert_eq!(namespace.get(&["node", &node.0])["spec"]["unschedulable"], true);
    load.goes_on();
    let done = format!("node/{} drained", node.0);
    drop(node);
    let said = drain.end().unwrap();
    assert!(said.contains(&done), "{said}");
    namespace.kubectl(&["rollout", "status", "deployment/drained", "--timeout=120s"]);
    let new = pods_of(&namespace, "drained");
    assert!(old.iter().all(|old| new.iter().all(|new| name_of(old) != name_of(new))), "an old pod is still there");
    load.goes_on();
}

#[test]
fn a_pod_deleted_by_force_is_gone_at_once_and_its_guest_soon() {
    let (namespace, _turn) = namespace();
    let mut pod = http_pod("web");
    pod["spec"]["terminationGracePeriodSeconds"] = json!(600);
    namespace.start(&pod);
    let before = namespace.get(&["pod/web"]);
    let (guest, shim) = (pid_of(&before), shim_of(&before));
    // It would delay the server.
    let _request = Cluster::shared().slow_request(&before, 90_000);
    namespace.kubectl(&["delete", "pod", "web", "--force"]);
    namespace.try_kubectl(&["get", "pod", "web"]).unwrap_err();
    let is_gone = || (![guest, shim].into_iter().any(is_alive_in_node)).then_some(());
    namespace.eventually("the end of guest and shim", is_gone);
}
