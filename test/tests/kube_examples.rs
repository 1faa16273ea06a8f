//! Every manifest of `runtime-class/manifests/examples` does what it describes, on the cluster of `SKIFF_CLUSTER`.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

use serde_json::{Value, json};
use skiff_test::{Cluster, Lasting, Namespace};

/// Where the examples' servers listen.
const PORT: u16 = 8080;
/// How many times a probe has to succeed before a pod counts as healthy.
const PROBES: u64 = 3;
/// All that a server without troubles says.
const LISTENING: &str = "skiff: /http.wasm: listening on 0.0.0.0:8080 and [::]:8080\n";
const READY: &str = "condition=Ready";
const COMPLETE: &str = "condition=Complete";

fn folder() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../runtime-class/manifests/examples")
}

fn file(name: &str) -> PathBuf {
    folder().join(name).with_extension("yaml")
}

/// A namespace with the example in it.
fn example(name: &str) -> Namespace<'static> {
    let namespace = Cluster::shared().namespace();
    namespace.apply_file(&file(name));
    namespace
}

/// The pod `name` of the example of that name, when it is ready.
fn ready(name: &str) -> Server<'static> {
    Server::of(example(name), name)
}

/// A pod that serves HTTP.
struct Server<'a> {
    namespace: Namespace<'a>,
    pod: String,
    address: String,
}

impl<'a> Server<'a> {
    fn of(namespace: Namespace<'a>, pod: &str) -> Self {
        namespace.wait(READY, &format!("pod/{pod}"));
        let address = namespace.kubectl(&["get", "pod", pod, "-o", "jsonpath={.status.podIP}"]);
        Self { namespace, pod: pod.to_owned(), address: format!("{address}:{PORT}") }
    }

    fn get(&self, target: &str) -> (u16, String) {
        self.ask(target, &[])
    }

    /// The limits that the container's runtime keeps it to, in the manifest's notation. The kubelet asked for them; after two
    /// resizes in a row it may report the first one for minutes.
    fn limits(&self) -> [String; 2] {
        let container = self.container();
        let id = container["containerID"].as_str().unwrap().trim_start_matches("containerd://");
        let inspected: Value = serde_json::from_str(&self.namespace.cluster.run("crictl", &["inspect", id])).unwrap();
        let limits = &inspected["status"]["resources"]["linux"];
        let number = |name: &str| limits[name].as_str().unwrap_or_default().parse::<u64>().unwrap_or_default();
        let millis = number("cpuQuota") * 1000 / number("cpuPeriod").max(1);
        let cpu = if millis % 1000 == 0 { (millis / 1000).to_string() } else { format!("{millis}m") };
        [cpu, format!("{}Mi", number("memoryLimitInBytes") >> 20)]
    }

    /// The content of the file `path` as the guest sees it.
    fn read(&self, path: &str) -> String {
        let (status, text) = self.get(&format!("/files?path={path}"));
        assert_eq!(status, 200, "{path}: {text}");
        text
    }

    /// Lets the guest write a file; whether it could.
    fn write(&self, path: &str, text: &str) -> bool {
        self.ask(&format!("/write?path={path}"), &["--data", text]).0 == 200
    }

    fn ask(&self, target: &str, options: &[&str]) -> (u16, String) {
        ask(self.namespace.cluster, &format!("http://{}{target}", self.address), options)
    }

    fn status(&self) -> Value {
        self.namespace.get(&["pod", &self.pod])["status"].clone()
    }

    /// The status of its first container.
    fn container(&self) -> Value {
        self.status()["containerStatuses"][0].clone()
    }

    /// Waits until the kubelet has probed it successfully a few times.
    fn is_well(&self) {
        let node = self.namespace.cluster.node();
        let path = format!("/api/v1/nodes/{node}/proxy/metrics/probes");
        self.namespace.eventually("probes that succeed", || {
            let metrics = self.namespace.cluster.kubectl(&["get", "--raw", &path]);
            let count = |kind: &str| probes(&metrics, &self.namespace.name, &self.pod, kind);
            (count("Readiness") >= PROBES && count("Liveness") >= PROBES).then_some(())
        });
        assert_eq!(self.container()["restartCount"], 0);
    }
}

/// How many probes of a kind the kubelet counted as successful.
fn probes(metrics: &str, namespace: &str, pod: &str, kind: &str) -> u64 {
    let labels = [
        format!("namespace=\"{namespace}\""),
        format!("pod=\"{pod}\""),
        format!("probe_type=\"{kind}\""),
        "result=\"successful\"".to_owned(),
    ];
    let is_meant =
        |line: &&str| line.starts_with("prober_probe_total{") && labels.iter().all(|label| line.contains(label));
    let count = metrics.lines().find(is_meant).and_then(|line| line.rsplit_once(' ')?.1.parse().ok());
    count.unwrap_or(0)
}

/// Sends a request from the node's network and returns the status and the body.
fn ask(cluster: &Cluster, url: &str, options: &[&str]) -> (u16, String) {
    let words = ["curl", "--silent", "--show-error", "--max-time", "60", "--write-out", "%{http_code}", url];
    let said = cluster.run("in-net", &[&words, options].concat());
    let (text, status) = said.split_at(said.len() - 3);
    (status.parse().unwrap(), text.to_owned())
}

fn ok(text: &str) -> (u16, String) {
    (200, text.to_owned())
}

#[test]
fn every_example_is_tested_and_runs_on_skiff() {
    let own = include_str!("kube_examples.rs");
    for entry in fs::read_dir(folder()).unwrap() {
        let path = entry.unwrap().path();
        let name = path.file_stem().unwrap().to_str().unwrap().to_owned();
        if path.extension().is_some_and(|extension| extension == "yaml") {
            let is_tested = ["example", "ready"].iter().any(|helper| own.contains(&format!("{helper}(\"{name}\")")));
            assert!(is_tested, "no test for `{name}`");
            let text = fs::read_to_string(&path).unwrap();
            assert!(text.contains("runtimeClassName: skiff"), "`{name}` is not for skiff");
            let images = text.lines().filter_map(|line| line.trim().strip_prefix("image: "));
            assert!(images.filter(|image| !image.starts_with("localhost:5000/examples/")).count() == 0, "`{name}`");
        }
    }
}

#[test]
fn all_examples_fit_into_one_namespace() {
    let namespace = Cluster::shared().namespace();
    let said = namespace.kubectl(&["apply", "--dry-run=server", "-f", folder().to_str().unwrap()]);
    let lines: Vec<_> = said.lines().collect();
    assert_eq!(lines.iter().collect::<BTreeSet<_>>().len(), lines.len(), "{said}");
    assert!(lines.iter().all(|line| line.ends_with(" created (server dry run)")), "{said}");
}

#[test]
fn a_deployment_serves_through_its_service_under_the_strictest_pod_security() {
    let namespace = Cluster::shared().namespace();
    let strict = "pod-security.kubernetes.io/enforce=restricted";
    namespace.cluster.kubectl(&["label", "namespace", &namespace.name, strict]);
    namespace.apply_file(&file("web"));
    namespace.kubectl(&["rollout", "status", "deployment/web", "--timeout=120s"]);

    let service = namespace.get(&["service", "web"]);
    let url = format!("http://{}/", service["spec"]["clusterIP"].as_str().unwrap());
    // kube-proxy may lag for a moment.
    let answer =
        namespace.eventually("the service", || namespace.cluster.try_run("in-net", &["curl", "-fsS", &url]).ok());
    assert_eq!(answer, "hello\n");

    let slices = namespace.get(&["endpointslices", "-l", "kubernetes.io/service-name=web"]);
    assert_eq!(
        slices["items"][0]["ports"],
        json!([{"name": "http", "port": PORT, "protocol": "TCP", "appProtocol": "http"}])
    );
    let policy = namespace.get(&["networkpolicy", "web"]);
    let label = policy["spec"]["podSelector"]["matchLabels"]["app"].as_str().unwrap();
    let pods = namespace.get(&["pods", "-l", &format!("app={label}")]);
    let pods = pods["items"].as_array().unwrap();
    assert_eq!(pods.len(), 2, "the policy selects the Service's pods");
    for pod in pods {
        let container = &pod["status"]["containerStatuses"][0];
        assert_eq!(container["user"]["linux"]["uid"], 65532, "{container:#}");
        assert_eq!(pod["status"]["qosClass"], "Burstable");
        let name = pod["metadata"]["name"].as_str().unwrap();
        assert_eq!(namespace.logs(&[name]), LISTENING);
    }
}

#[test]
fn http_probes_find_a_component_well() {
    let namespace = example("web");
    namespace.kubectl(&["rollout", "status", "deployment/web", "--timeout=120s"]);
    let pod = namespace.kubectl(&["get", "pods", "-l", "app=web", "-o", "jsonpath={.items[0].metadata.name}"]);
    Server::of(namespace, &pod).is_well();
}

#[test]
fn tcp_probes_find_a_component_well() {
    let server = ready("tcp-probe");
    server.is_well();
    assert_eq!(server.namespace.logs(&["tcp-probe"]), LISTENING, "a connection without a request is not a failure");
}

#[test]
fn grpc_probes_find_a_component_well() {
    ready("grpc-probe").is_well();
}

#[test]
fn a_job_runs_to_its_end() {
    let namespace = example("job");
    namespace.wait(COMPLETE, "job/hello");
    assert_eq!(namespace.get(&["job", "hello"])["status"]["succeeded"], 2);
    let pods = namespace.kubectl(&["get", "pods", "-l", "batch.kubernetes.io/job-name=hello", "-o", "name"]);
    let logs: Vec<_> = pods.lines().map(|pod| namespace.logs(&[pod])).collect();
    assert_eq!(logs, ["hello from WASI 0.2\n"; 2]);
}

#[test]
fn a_cron_job_runs_when_its_time_has_come() {
    let namespace = example("cronjob");
    let job = namespace.watch("jobs", |job| job["status"]["succeeded"] == 1);
    assert_eq!(job["metadata"]["ownerReferences"][0]["kind"], "CronJob");
    let job = job["metadata"]["name"].as_str().unwrap();
    assert_eq!(namespace.logs(&[&format!("job/{job}")]), "hello from WASI 0.2\n");
}

#[test]
fn volumes_of_all_kinds_are_where_the_manifest_puts_them() {
    let server = ready("volumes");
    let (greeting, password) = ("hello from a ConfigMap", "open sesame");
    for (path, text) in [
        ("/config/greeting", greeting),
        ("/etc/app/greeting.conf", greeting),
        ("/secret/password", password),
        ("/projected/greeting", greeting),
        ("/projected/password", password),
        ("/projected/labels", "app=\"volumes\""),
    ] {
        assert_eq!(server.read(path), text, "{path}");
    }
    let (_, environment) = server.get("/env");
    for variable in [format!("GREETING={greeting}"), format!("PASSWORD={password}")] {
        assert!(environment.lines().any(|line| line == variable), "{environment}");
    }

    let own = &server.namespace.name;
    let (on_host, on_host_read_only) = (format!("/host/{own}"), format!("/host-read-only/{own}"));
    for path in ["/scratch/note", "/memory/note", "/part/note", on_host.as_str()] {
        assert!(server.write(path, path), "{path}");
        assert_eq!(server.read(path), path);
    }
    assert_eq!(server.read("/scratch/part/of/it/note"), "/part/note", "it is the same folder");
    assert_eq!(server.read(&on_host_read_only), on_host);
    let of_node = format!("/var/tmp/skiff-example/{own}");
    assert_eq!(server.namespace.cluster.run("in-node", &["cat", &of_node]), on_host);

    for path in
        ["/config/greeting", "/etc/app/greeting.conf", "/secret/password", "/projected/labels", &on_host_read_only]
    {
        let before = server.read(path);
        assert!(!server.write(path, "changed"), "{path}");
        assert_eq!(server.read(path), before, "{path}");
    }
    server.namespace.cluster.run("in-node", &["rm", &of_node]);
}

#[test]
fn init_containers_run_in_their_order_native_and_wasm() {
    let namespace = example("init-container");
    namespace.watch("pod/init-container", |pod| pod["status"]["phase"] == "Succeeded");
    assert_eq!(namespace.logs(&["init-container", "-c", "native"]), "");
    assert_eq!(namespace.logs(&["init-container", "-c", "wasm"]), "append /work/order: \n");
    assert_eq!(namespace.logs(&["init-container", "-c", "reader"]), "read /work/order: first\nsecond\n\n");
}

#[test]
fn a_native_sidecar_and_a_component_share_network_and_volumes() {
    let server = ready("sidecar");
    assert_eq!(server.get("/fetch?url=http://127.0.0.1:9000/"), ok("from the sidecar\n"));
    assert_eq!(server.read("/www/index.html"), "from the sidecar\n");
    assert!(server.write("/www/news", "from the component"));
    assert_eq!(server.get("/fetch?url=http://127.0.0.1:9000/news"), ok("from the component"));
    let status = server.status();
    let sidecar = &status["initContainerStatuses"][0];
    assert_eq!((&sidecar["started"], &sidecar["restartCount"]), (&json!(true), &json!(0)), "{sidecar:#}");
    let command = server.namespace.kubectl(&["exec", "sidecar", "-c", "files", "--", "cat", "/www/news"]);
    assert_eq!(command, "from the component", "the sidecar can be entered");
}

#[test]
fn an_image_is_a_volume() {
    // Kubernetes enables image volumes by default since 1.35; older versions drop them silently.
    if minor_version() < 35 {
        let namespace = example("image-volume");
        let volumes = namespace.get(&["pod", "image-volume"])["spec"]["volumes"].clone();
        assert!(volumes.as_array().unwrap().iter().all(|volume| volume["name"] != "site"), "{volumes:#}");
        return;
    }
    let server = ready("image-volume");
    assert_eq!(server.read("/site/index.html"), "from the image of the site\n");
    assert!(!server.write("/site/index.html", "changed"));
}

fn minor_version() -> u32 {
    let version = Cluster::shared().kubectl(&["get", "--raw", "/version"]);
    let version: Value = serde_json::from_str(&version).unwrap();
    version["minor"].as_str().unwrap().trim_end_matches('+').parse().unwrap()
}

#[test]
fn a_running_guest_is_resized_in_place() {
    let server = ready("resize");
    let refused = |(status, text): (u16, String)| {
        assert_eq!(status, 200, "{text}");
        let grown = text.strip_prefix("refused after ").and_then(|text| text.strip_suffix(" MiB\n"));
        grown.unwrap_or_else(|| panic!("not refused: {text}")).parse::<u32>().unwrap()
    };
    let resize = |patch: &str| {
        let words = ["patch", "pod", "resize", "--subresource", "resize", "--patch", patch];
        server.namespace.kubectl(&words);
        let wanted: Value = serde_json::from_str(patch).unwrap();
        let wanted = &wanted["spec"]["containers"][0]["resources"]["limits"];
        let wanted = ["cpu", "memory"].map(|name| wanted[name].as_str().unwrap());
        let is_set = || server.limits() == wanted.map(str::to_owned);
        server.namespace.eventually("the new limits", || is_set().then_some(()));
    };
    let before = server.container();
    assert!((48..64).contains(&refused(server.get("/grow?mib=150"))));

    // The change that the manifest recommends.
    let text = fs::read_to_string(file("resize")).unwrap();
    let patch = text.lines().find_map(|line| line.trim_start_matches(['#', ' ']).strip_prefix('\'')).unwrap();
    resize(patch.trim_end_matches('\''));
    assert_eq!(server.get("/grow?mib=150"), ok("grew 150 MiB\n"));

    resize(r#"{"spec":{"containers":[{"name":"web","resources":{"limits":{"cpu":"200m","memory":"64Mi"}}}]}}"#);
    assert!((48..64).contains(&refused(server.get("/grow?mib=150"))), "the lower limit holds, too");
    let after = server.container();
    assert_eq!((&after["containerID"], &after["restartCount"]), (&before["containerID"], &json!(0)));
}

#[test]
fn a_request_under_way_is_finished_when_the_pod_is_deleted() {
    let server = ready("graceful-shutdown");
    let url = format!("http://{}/slow?ms=5000", server.address);
    let mut curl = server.namespace.cluster.client("in-net");
    let request = Lasting::start(curl.args(["curl", "-sv", "--stderr", "-", "--max-time", "60", &url]));
    request.expect("\n> GET");
    let path = "jsonpath={.status.phase} {.status.containerStatuses[0].state.terminated.exitCode}{\"\\n\"}";
    let states = server.namespace.lasting(&["get", "pod", &server.pod, "--watch", "-o", path]);
    states.expect("Running \n");

    server.namespace.kubectl(&["delete", "pod", &server.pod, "--wait=false"]);
    let answer = request.end().unwrap();
    assert!(answer.contains("\n< HTTP/1.1 200 OK") && answer.contains("\nslow\n"), "{answer}");
    states.expect("Succeeded 0\n");
    server.namespace.wait("delete", &format!("pod/{}", server.pod));
}

#[test]
fn a_pod_has_a_user_namespace_of_its_own() {
    if !knows_other_runtimes() {
        let namespace = example("user-namespace");
        let reason = "RuntimeClass handler \"skiff\" does not support user namespaces";
        namespace.watch("events", |event| event["message"].as_str().is_some_and(|text| text.contains(reason)));
        return;
    }
    let server = ready("user-namespace");
    assert!(server.write("/scratch/note", "written by its root"));
    assert_eq!(server.read("/scratch/note"), "written by its root");
    let container = server.container();
    let id = container["containerID"].as_str().unwrap().strip_prefix("containerd://").unwrap();
    let inspected = server.namespace.cluster.run("crictl", &["inspect", id]);
    let inspected: Value = serde_json::from_str(&inspected).unwrap();
    let map = format!("/proc/{}/uid_map", inspected["info"]["pid"]);
    let map = server.namespace.cluster.run("in-node", &["cat", &map]);
    let numbers: Vec<u32> = map.split_whitespace().map(|number| number.parse().unwrap()).collect();
    let [inside, outside, count] = numbers[..] else { panic!("not one range: {map}") };
    assert!(inside == 0 && outside >= 65536 && count == 65536, "{map}");
}

/// Whether containerd asks runtimes other than runc for their features and reports them to the kubelet, as it does since 2.4.
fn knows_other_runtimes() -> bool {
    // The node's status is `Unknown` for a while if the kubelet checked during a restart.
    let versions = Cluster::shared().run("crictl", &["version"]);
    let version = versions.lines().find_map(|line| line.strip_prefix("RuntimeVersion:")).unwrap();
    let version = version.trim().trim_start_matches('v');
    let mut numbers = version.split(['.', '-', '+']).map(|number| number.parse::<u32>().unwrap());
    (numbers.next().unwrap(), numbers.next().unwrap()) >= (2, 4)
}

#[test]
fn annotations_limit_one_container_or_all() {
    let namespace = example("limits");
    let pod = namespace.watch("pod/limits", |pod| {
        let containers = pod["status"]["containerStatuses"].as_array();
        let all = |test: &dyn Fn(&Value) -> bool| containers.is_some_and(|containers| containers.iter().any(test));
        all(&|container| container["ready"] == true) && all(&|container| container["state"]["terminated"].is_object())
    });
    let url = format!("http://{}:{PORT}", pod["status"]["podIP"].as_str().unwrap());
    assert_eq!(ask(namespace.cluster, &format!("{url}/"), &[]), ok("hello\n"));
    let timed_out = (504, "504 Gateway Timeout\n".to_owned());
    assert_eq!(ask(namespace.cluster, &format!("{url}/slow?ms=60000"), &[]), timed_out);
    let line = "skiff: /http.wasm: `GET /slow` took longer than its limit `request-time` of 1s\n";
    let told = namespace.logs(&["limits", "-c", "web"]);
    assert!(told.contains(line), "{told}");
    let line = "skiff: /command.wasm ran longer than its limit `run-time` of 2s\n";
    assert_eq!(namespace.logs(&["limits", "-c", "worker"]), format!("sleeping\n{line}"));
    let ended = &pod["status"]["containerStatuses"][1];
    assert_eq!((&ended["name"], &ended["state"]["terminated"]["exitCode"]), (&json!("worker"), &json!(143)));
}

#[test]
fn clients_find_servers_by_the_names_of_their_services() {
    let namespace = example("client");
    namespace.wait(COMPLETE, "job/client");
    assert_eq!(namespace.logs(&["job/client"]), "/http.wasm\nserved by back\n");
    namespace.wait("condition=Available", "deployment/front");
    let addresses = namespace.kubectl(&["get", "pods", "-l", "app=front", "-o", "jsonpath={.items[0].status.podIP}"]);
    let target = format!("http://{addresses}:{PORT}/fetch?url=http://back.{}/args", namespace.name);
    assert_eq!(
        ask(namespace.cluster, &target, &[]),
        ok("/http.wasm\nserved by back\n"),
        "by a name with its namespace"
    );
    let target = format!("http://{addresses}:{PORT}/fetch?url=http://nobody/");
    assert_eq!(ask(namespace.cluster, &target, &[]).0, 502, "a name that nobody has");
}

#[test]
fn images_of_wasm_layers_run() {
    let namespace = example("oci-artifact");
    namespace.watch("pod/oci-artifact", |pod| pod["status"]["phase"] == "Succeeded");
    assert_eq!(namespace.logs(&["oci-artifact", "-c", "artifact"]), "hello\n");
    assert_eq!(namespace.logs(&["oci-artifact", "-c", "layer"]), "hello from WASI 0.2\n");
}

#[test]
fn a_shell_is_typed_at_left_and_attached_again() {
    let namespace = example("repl");
    namespace.wait(READY, "pod/repl");
    let mut terminal = namespace.terminal(&["attach", "-it", "repl"]);
    terminal.write("create table t (n); insert into t values (1), (2);\nselect 'sum', sum(n) from t;\n");
    terminal.expect("sum|3");
    drop(terminal);
    let mut terminal = namespace.terminal(&["attach", "-it", "repl"]);
    terminal.write("select 'count', count(*) from t;\n");
    terminal.expect("count|2");
    terminal.write(".quit\n");
    assert_eq!(namespace.ended("repl")["exitCode"], 0);
}

#[test]
fn a_reactor_in_go_answers_calls_and_probes() {
    let namespace = example("reactor");
    namespace.wait(READY, "pod/reactor");
    for counted in 1..=2 {
        let outcome = namespace.exec("reactor", &["invoke", "counter()", "add(1, 2)"]);
        assert_eq!((outcome.code, outcome.stdout), (0, format!("{counted}\n3\n")), "{}", outcome.stderr);
    }
    let server = Server { namespace, pod: "reactor".into(), address: String::new() };
    server.is_well();
    server.namespace.kubectl(&["delete", "pod", "reactor", "--wait=false"]);
    let path = "jsonpath={.status.containerStatuses[0].state.terminated.exitCode}{\"\\n\"}";
    let states = server.namespace.lasting(&["get", "pod", "reactor", "--watch", "-o", path]);
    states.expect("0\n");
}
