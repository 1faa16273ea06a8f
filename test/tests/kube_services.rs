//! Wasm pods behind Services: names in both directions, the ways to a port, and changes under load.

use std::time::Instant;

use serde_json::{Value, json};
use skiff_test::{Cluster, Namespace, container, deployment, http_pod, service, wasm_pod};

fn namespace() -> Namespace<'static> {
    Cluster::shared().namespace()
}

/// Runs curl in the node's network and returns its output, or its error message.
fn curl(words: &[&str]) -> Result<String, String> {
    Cluster::shared().curl(words)
}

/// A pod of busybox that keeps running, with the node's default runtime.
fn native(name: &str, script: &str) -> Value {
    let mut pod = wasm_pod(name, &[container("main", "busybox", json!({"command": ["sh", "-c", script]}))]);
    pod["spec"]["runtimeClassName"] = Value::Null;
    pod
}

fn rolled_out(namespace: &Namespace<'_>, deployment: &str) {
    namespace.kubectl(&["rollout", "status", deployment, "--timeout=300s"]);
}

/// The address of a Service in the cluster.
fn cluster_ip(namespace: &Namespace<'_>, service: &str) -> String {
    namespace.kubectl(&["get", "service", service, "-o", "jsonpath={.spec.clusterIP}"])
}

/// The addresses of the pods with this label, in order.
fn pod_ips(namespace: &Namespace<'_>, app: &str) -> Vec<String> {
    let words = ["get", "pods", "-l", &format!("app={app}"), "-o", "jsonpath={.items[*].status.podIP}"];
    let mut addresses: Vec<_> = namespace.kubectl(&words).split_whitespace().map(str::to_string).collect();
    addresses.sort();
    addresses
}

#[test]
fn native_and_wasm_reach_each_other_by_name() {
    let namespace = namespace();
    let script = "echo from busybox > /tmp/index.html; exec httpd -f -p 8080 -h /tmp";
    for pod in [http_pod("wasm"), native("native", script)] {
        namespace.make(&pod);
    }
    for name in ["wasm", "native"] {
        namespace.make(&service(name));
        namespace.wait("condition=Ready", &format!("pod/{name}"));
    }
    let full = format!("wasm.{}.svc.cluster.local", namespace.name);
    for host in ["wasm", &full] {
        // The name resolves once a server is ready and CoreDNS has noticed.
        namespace.eventually("busybox's answer from wasm", || {
            let words = ["exec", "native", "--", "timeout", "5", "wget", "-qO-", &format!("http://{host}/")];
            namespace.try_kubectl(&words).ok().filter(|answer| answer == "hello\n")
        });
    }
    let mut client = wasm_pod("client", &[container("main", "command", json!({"args": ["get", "native:80", "/"]}))]);
    client["spec"]["restartPolicy"] = json!("OnFailure");
    let ended = namespace.run(&client);
    assert_eq!(ended["status"]["phase"], "Succeeded");
    let said = namespace.logs(&["client"]);
    assert!(said.contains("from busybox\n"), "{said}");
    // A component calls another server while it handles a request.
    let ip = cluster_ip(&namespace, "wasm");
    let full = format!("http://native.{}.svc.cluster.local/index.html", namespace.name);
    namespace.eventually("wasm's answer from busybox", || {
        curl(&[&format!("http://{ip}/fetch?url={full}")]).ok().filter(|answer| answer == "from busybox\n")
    });
}

#[test]
fn a_guest_reaches_the_api_server_with_the_authority_of_its_service_account() {
    let namespace = namespace();
    let authority = "/var/run/secrets/kubernetes.io/serviceaccount/ca.crt";
    let environment = json!([{"name": "SSL_CERT_FILE", "value": authority}]);
    for (name, environment, expected) in [
        ("trusting", environment, "\"gitVersion\""),
        // Without the variable the authorities are Mozilla's.
        ("public", json!([]), "TlsCertificateError"),
    ] {
        let mut pod = http_pod(name);
        pod["spec"]["containers"][0]["env"] = environment;
        namespace.start(&pod);
        let address = &pod_ips(&namespace, name)[0];
        let answer =
            curl(&[&format!("http://{address}:8080/fetch?url=https://kubernetes.default.svc/version")]).unwrap();
        assert!(answer.contains(expected), "{name}: {answer}");
    }
}

#[test]
fn ports_are_forwarded_to_a_guest() {
    let namespace = namespace();
    namespace.start(&http_pod("web"));
    namespace.make(&service("web"));
    let body = "0123456789abcdef".repeat(1 << 16);
    for target in [["pod/web", ":8080"], ["service/web", ":80"]] {
        let forward = namespace.lasting(&["port-forward", target[0], target[1]]);
        forward.expect("Forwarding from 127.0.0.1:");
        let said = forward.said();
        let port = said.trim_start_matches("Forwarding from 127.0.0.1:").split(' ').next().unwrap();
        assert_eq!(curl(&[&format!("http://127.0.0.1:{port}/")]).unwrap(), "hello\n", "{target:?}");
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), &body).unwrap();
        let data = format!("@{}", file.path().display());
        let echoed = curl(&["--data-binary", &data, &format!("http://127.0.0.1:{port}/echo")]).unwrap();
        assert!(echoed == body, "{target:?}: {} of {} bytes", echoed.len(), body.len());
    }
}

#[test]
fn a_node_port_leads_to_a_guest() {
    let namespace = namespace();
    namespace.start(&http_pod("web"));
    namespace.kubectl(&["expose", "pod", "web", "--type=NodePort", "--port=80", "--target-port=8080"]);
    let port = namespace.kubectl(&["get", "service", "web", "-o", "jsonpath={.spec.ports[0].nodePort}"]);
    let url = format!("http://{}:{port}/", Cluster::shared().node_ip());
    namespace.eventually("an answer at the node's port", || curl(&[&url]).ok().filter(|answer| answer == "hello\n"));
}

#[test]
fn a_headless_service_names_every_pod() {
    let namespace = namespace();
    namespace.make(&deployment(http_pod("web"), 3));
    let mut headless = service("web");
    headless["spec"]["clusterIP"] = json!("None");
    namespace.make(&headless);
    namespace.start(&native("client", "exec sleep 3600"));
    rolled_out(&namespace, "deployment/web");
    let pods = pod_ips(&namespace, "web");
    assert_eq!(pods.len(), 3);
    let name = format!("web.{}.svc.cluster.local", namespace.name);
    let words = ["exec", "client", "--", "nslookup", "-type=a", &name];
    namespace.eventually("the addresses of all pods", || {
        let said = namespace.try_kubectl(&words).ok()?;
        // The lines before describe the name server.
        let answers = said.split_once("Name:")?.1;
        let mut addresses: Vec<_> = answers.lines().filter_map(|line| line.strip_prefix("Address: ")).collect();
        addresses.sort_unstable();
        (addresses == pods).then_some(())
    });
}

#[test]
fn only_a_guest_that_is_ready_gets_requests() {
    let namespace = namespace();
    let mounts = json!([{"name": "data", "mountPath": "/data"}]);
    let probe = json!({"httpGet": {"path": "/files?path=/data/ready", "port": 8080}, "periodSeconds": 1, "failureThreshold": 1});
    let mut pod = wasm_pod(
        "web",
        &[
            container("main", "http", json!({"readinessProbe": probe, "volumeMounts": mounts})),
            container("side", "busybox", json!({"command": ["sleep", "3600"], "volumeMounts": mounts})),
        ],
    );
    pod["spec"]["volumes"] = json!([{"name": "data", "emptyDir": {}}]);
    namespace.make(&pod);
    namespace.make(&service("web"));
    namespace.wait("jsonpath={.status.containerStatuses[?(@.name==\"main\")].started}=true", "pod/web");
    let url = format!("http://{}/", cluster_ip(&namespace, "web"));
    let pod_url = format!("http://{}:8080/", pod_ips(&namespace, "web")[0]);
    assert_eq!(curl(&[&pod_url]).unwrap(), "hello\n");
    for (change, answers) in [("rm -f /data/ready", false), ("touch /data/ready", true), ("rm /data/ready", false)] {
        namespace.kubectl(&["exec", "web", "-c", "side", "--", "sh", "-c", change]);
        namespace.wait(if answers { "condition=Ready" } else { "condition=Ready=false" }, "pod/web");
        namespace.eventually(change, || (curl(&["--max-time", "2", &url]).is_ok() == answers).then_some(()));
        assert_eq!(curl(&[&pod_url]).unwrap(), "hello\n");
    }
}

#[test]
fn an_update_under_load_loses_no_request() {
    let namespace = namespace();
    let mut pod = http_pod("web");
    // For this long a pod that ends still receives requests, as native servers do.
    pod["spec"]["containers"][0]["lifecycle"] = json!({"preStop": {"sleep": {"seconds": 5}}});
    namespace.make(&deployment(pod, 3));
    namespace.make(&service("web"));
    rolled_out(&namespace, "deployment/web");
    let address = cluster_ip(&namespace, "web");
    namespace.eventually("an answer", || curl(&[&format!("http://{address}/")]).ok());
    let load = |path| Cluster::shared().load(&format!("http://{address}{path}"));
    let clients = ["/?", "/slow?ms=300", "/slow?ms=1500"].map(load);
    let old = pod_ips(&namespace, "web");
    namespace.kubectl(&["set", "env", "deployment/web", "VERSION=2"]);
    rolled_out(&namespace, "deployment/web");
    let gone = |address: &String| !pod_ips(&namespace, "web").contains(address);
    namespace.eventually("the end of the old pods", || old.iter().all(gone).then_some(()));
    for client in clients {
        client.goes_on();
        eprintln!("{} requests during the update, none failed", client.answered());
    }
    let env = curl(&[&format!("http://{address}/env")]).unwrap();
    assert!(env.contains("VERSION=2\n"), "{env}");
}

#[test]
fn a_deployment_scales_to_fifty_and_back() {
    const MANY: usize = 50;
    let namespace = namespace();
    namespace.make(&deployment(http_pod("web"), 1));
    rolled_out(&namespace, "deployment/web");
    let begin = Instant::now();
    namespace.kubectl(&["scale", "deployment/web", &format!("--replicas={MANY}")]);
    rolled_out(&namespace, "deployment/web");
    eprintln!("1 to {MANY} pods, ready: {:.1} s", begin.elapsed().as_secs_f64());
    let urls: Vec<_> = pod_ips(&namespace, "web").iter().map(|address| format!("http://{address}:8080/")).collect();
    let words: Vec<&str> = urls.iter().map(String::as_str).collect();
    assert_eq!(curl(&words).unwrap(), "hello\n".repeat(MANY));
    // No probe failed because an engine had to wait for a processor.
    let restarts = "jsonpath={.items[*].status.containerStatuses[0].restartCount}";
    let restarts = namespace.kubectl(&["get", "pods", "-l", "app=web", "-o", restarts]);
    assert!(restarts.split_whitespace().all(|count| count == "0"), "{restarts}");
    let begin = Instant::now();
    namespace.kubectl(&["scale", "deployment/web", "--replicas=1"]);
    namespace.eventually("one pod", || (pod_ips(&namespace, "web").len() == 1).then_some(()));
    eprintln!("{MANY} to 1, all gone: {:.1} s", begin.elapsed().as_secs_f64());
    assert!(urls.contains(&format!("http://{}:8080/", pod_ips(&namespace, "web")[0])), "the one is an old one");
}

#[test]
fn a_job_runs_its_completions_side_by_side() {
    let namespace = namespace();
    let args = json!({"args": ["env", "JOB_COMPLETION_INDEX"]});
    let mut pod = wasm_pod("many", &[container("main", "c-hello", args)]);
    namespace.make(&json!({
        "apiVersion": "batch/v1",
        "kind": "Job",
        "metadata": {"name": "many"},
        "spec": {
            "completions": 8, "parallelism": 4, "completionMode": "Indexed",
            "template": {"spec": pod["spec"].take()},
        },
    }));
    namespace.wait("condition=Complete", "job/many");
    let status = &namespace.get(&["job/many"])["status"];
    assert_eq!((&status["succeeded"], &status["failed"]), (&json!(8), &Value::Null), "{status}");
    let said = namespace.logs(&["-l", "job-name=many"]);
    let mut indices: Vec<_> = said.lines().collect();
    indices.sort_unstable();
    assert_eq!(indices, ["0", "1", "2", "3", "4", "5", "6", "7"]);
}
