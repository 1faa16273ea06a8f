//! The chart and its installer on a node of a real cluster: what they change, how they recover from interruptions, and that they
//! leave nothing behind. The tests change the node's containerd, so they take turns, and no other suite may run at the same
//! time. Each of them begins and ends on a node with skiff.

use std::fs::{self, OpenOptions};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use serde_json::{Value, json};
use skiff_test::{Cluster, Lasting, Namespace, container, random_name, until, wasm_pod};

/// The namespace of the chart, and names that derive from the release's.
const SYSTEM: &str = "skiff-system";
const DAEMON_SET: &str = "daemonset/skiff-node";
const PODS: &str = "app.kubernetes.io/name=skiff-node";
const LABEL: &str = "skiff.dev/installed";
const VERSION_LABEL: &str = "skiff.dev/version";
/// The installer's own files on the node, if containerd imports a directory.
const DROP_IN: &str = "/etc/containerd/conf.d/skiff.toml";
const CONFIG: &str = "/etc/containerd/config.toml";
const RECORD: &str = "/var/lib/skiff/node/record.json";
/// How long the installer may take to do anything here.
const PATIENCE: Duration = Duration::from_secs(90);

/// The names, modes and owners in the places that an installation may touch, and the content of the files that it changes.
const TREE: &str = r#"
    for place in /etc/containerd /etc/systemd /opt /run/skiff /var/lib/skiff; do
        if [ -e "$place" ]; then find "$place" -xdev -printf '%p %y %m %U:%G\n'; fi
    done | sort
    find /etc /run /usr/local /var/lib -xdev -maxdepth 2 -iname '*skiff*'
    find /etc/containerd -type f -exec sha256sum {} + | sort
"#;

/// The installer's option in a pod's specification that sets where the programs go. Its other options are for `keep`, or in
/// variables that all of its commands read.
fn options_of(spec: &Value) -> Vec<String> {
    let words = spec["containers"][0]["args"].as_array().unwrap().iter().map(|word| word.as_str().unwrap());
    words.filter(|word| word.starts_with("--to=")).map(str::to_owned).collect()
}

/// The release, while no other test changes the node.
struct Release {
    cluster: &'static Cluster,
    _turn: MutexGuard<'static, ()>,
}

impl Release {
    /// Installs the chart of this tree, which then checks the node every second.
    fn installed() -> Self {
        static TURN: Mutex<()> = Mutex::new(());
        // A failed test may have left anything behind; the chart repairs it.
        let turn = TURN.lock().unwrap_or_else(PoisonError::into_inner);
        let release = Self { cluster: Cluster::shared(), _turn: turn };
        if release.helm(&["status", "skiff"]).is_ok_and(|said| said.contains("STATUS: uninstalling")) {
            release.helm(&["rollback", "skiff"]).unwrap();
        }
        release.upgrade(&[]).unwrap();
        // A test may remove the programs, which pods of earlier tests need to end.
        release.until("the end of earlier pods", || release.shims().is_empty());
        release
    }

    /// Runs `helm upgrade --install` with these further values, and waits until the nodes are ready.
    fn upgrade(&self, values: &[&str]) -> Result<String, String> {
        self.upgrade_within("90s", values)
    }

    fn upgrade_within(&self, limit: &str, values: &[&str]) -> Result<String, String> {
        let values_of_cluster = PathBuf::from(std::env::var_os("SKIFF_CLUSTER").unwrap()).join("values.yaml");
        let chart = repository().join("charts/skiff");
        let mut words =
            vec!["upgrade", "--install", "skiff", chart.to_str().unwrap(), "-f", values_of_cluster.to_str().unwrap()];
        words.extend(["--create-namespace", "--wait", "--timeout", limit, "--set", "intervalSeconds=1"]);
        values.iter().for_each(|value| words.extend(["--set", value]));
        self.helm(&words)
    }

    fn helm(&self, words: &[&str]) -> Result<String, String> {
        let output = self.cluster.client("helm").args(["-n", SYSTEM]).args(words).output().unwrap();
        // It reports hooks on standard error, and releases on standard output.
        let said = String::from_utf8_lossy(&[output.stdout, output.stderr].concat()).into_owned();
        if output.status.success() { Ok(said) } else { Err(said) }
    }

    fn kubectl(&self, words: &[&str]) -> Result<String, String> {
        self.cluster.try_run("kubectl", &[&["-n", SYSTEM], words].concat())
    }

    fn in_node(&self, script: &str) -> String {
        self.cluster.run("in-node", &["sh", "-c", script])
    }

    /// The installer's pod, unless it is about to end.
    fn pod(&self) -> Value {
        let mut found = None;
        self.until("an installer", || {
            let pods = self.cluster.get(&["pods", "-n", SYSTEM, "-l", PODS]);
            let mut pods = pods["items"].as_array().unwrap().iter();
            found = pods.find(|pod| pod["metadata"]["deletionTimestamp"].is_null()).cloned();
            found.is_some()
        });
        found.unwrap()
    }

    fn pod_name(&self) -> String {
        self.pod()["metadata"]["name"].as_str().unwrap().to_owned()
    }

    fn log(&self) -> String {
        self.kubectl(&["logs", &self.pod_name()]).unwrap_or_default()
    }

    /// Whether the node is as it should be now. The readiness probe reports the result of the last check.
    fn is_right(&self) -> bool {
        let pod = self.pod();
        let options = options_of(&pod["spec"]);
        let name = pod["metadata"]["name"].as_str().unwrap();
        let words = ["exec", name, "--", "/skiff-node", "verify", "--programs=/"];
        self.kubectl(&words.into_iter().chain(options.iter().map(String::as_str)).collect::<Vec<_>>()).is_ok()
    }

    fn is_labelled(&self) -> bool {
        let nodes = self.cluster.get(&["nodes", "-l", LABEL]);
        nodes["items"].as_array().is_some_and(|nodes| !nodes.is_empty())
    }

    fn until(&self, what: &str, condition: impl FnMut() -> bool) {
        assert!(until(PATIENCE, condition), "waited {PATIENCE:?} for {what}");
    }

    /// containerd could restart with its default runtime, and runs pods now.
    fn check_native_pods(&self) {
        let namespace = self.cluster.namespace();
        let main = json!({"name": "main", "image": "localhost:5000/examples/busybox:1", "command": ["true"]});
        let mut pod = wasm_pod("native", &[main]);
        pod["spec"].as_object_mut().unwrap().remove("runtimeClassName");
        // The next installer may restart containerd while the pod starts; the pod is then tried again, as any pod is.
        pod["spec"]["restartPolicy"] = json!("OnFailure");
        assert_eq!(namespace.run(&pod)["status"]["phase"], "Succeeded");
    }

    /// Undoes the installation behind the installer's back, and runs `script` on the node as soon as the installer is at work again.
    fn disturb(&self, script: &str) {
        let script = format!(
            "rm -rf {DROP_IN} /opt/skiff; end=$(($(date +%s) + 60)); \
             until grep -q '\"changing\"' {RECORD}; do [ $(date +%s) -lt $end ] || exit 1; done; {script}"
        );
        self.in_node(&script);
    }

    /// A wasm pod that serves, in a namespace of its own.
    fn serving(&self) -> Namespace<'static> {
        let namespace = self.cluster.namespace();
        let main = container("main", "http", json!({"resources": {"limits": {"memory": "64Mi"}}}));
        namespace.start(&wasm_pod("web", &[main]));
        namespace
    }

    /// The pod of `serving` was never restarted, and serves.
    fn check_serves(&self, namespace: &Namespace<'_>) {
        let pod = namespace.get(&["pod/web"]);
        assert_eq!(pod["status"]["containerStatuses"][0]["restartCount"], 0);
        let ip = pod["status"]["podIP"].as_str().unwrap();
        self.cluster.run("in-net", &["curl", "-sf", "--max-time", "10", &format!("http://{ip}:8080/")]);
    }

    /// The program files of skiff's processes on the node.
    fn shims(&self) -> Vec<String> {
        let found = self
            .in_node("for exe in /proc/[0-9]*/exe; do readlink $exe; done | grep containerd-shim-skiff-v1 | sort -u");
        found.lines().map(str::to_owned).collect()
    }
}

impl Drop for Release {
    fn drop(&mut self) {
        if std::thread::panicking() {
            self.cluster.report(SYSTEM);
        }
    }
}

fn repository() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap().into()
}

fn script(words: &[&str]) -> String {
    let output = Command::new("bash").args(words).current_dir(repository()).stderr(Stdio::inherit()).output().unwrap();
    assert!(output.status.success(), "{words:?}");
    String::from_utf8(output.stdout).unwrap()
}

/// Pushes an image of the installer with different programs and returns its tag.
fn push_another_version(cluster: &Cluster) -> String {
    let context = script(&["test/cluster/installer.sh", "--context"]);
    let work = tempfile::tempdir().unwrap();
    let root = work.path().join("root");
    assert!(Command::new("cp").args(["-r", context.trim()]).arg(&root).status().unwrap().success());
    // Bytes after the end of a program do not change what it does.
    let mut program = OpenOptions::new().append(true).open(root.join("skiff")).unwrap();
    program.write_all(b"another version").unwrap();
    let (tag, archive) = (random_name("another"), work.path().join("node.tar"));
    let name = format!("localhost:5000/skiff/node:{tag}");
    script(&["test/image.sh", &name, root.to_str().unwrap(), archive.to_str().unwrap(), "/skiff-node"]);
    cluster.run("push", &[archive.to_str().unwrap(), &format!("skiff/node:{tag}")]);
    tag
}

#[test]
fn the_node_is_labelled_last_and_the_chart_s_own_test_runs_a_wasm_pod() {
    let release = Release::installed();
    assert!(release.is_labelled());
    let node = release.cluster.get(&["node", &release.cluster.node()]);
    assert_eq!(node["metadata"]["labels"][VERSION_LABEL], env!("CARGO_PKG_VERSION"));
    let class = release.cluster.get(&["runtimeclass", "skiff"]);
    assert_eq!(class["handler"], "skiff");
    let said = release.helm(&["test", "skiff"]).unwrap();
    assert!(said.contains("Succeeded") && said.contains("hello"), "{said}");
    // A new pod finds everything done, and logs the steps in order.
    release.kubectl(&["rollout", "restart", DAEMON_SET]).unwrap();
    release.kubectl(&["rollout", "status", DAEMON_SET, "--timeout=60s"]).unwrap();
    let log = release.log();
    let lines: Vec<_> = log.lines().collect();
    assert!(lines[lines.len() - 2].contains("is installed already"), "{log}");
    assert!(lines[lines.len() - 1].contains("the node has the label"), "{log}");
    let context = &release.pod()["spec"]["containers"][0]["securityContext"];
    assert_eq!((&context["privileged"], &context["allowPrivilegeEscalation"]), (&json!(false), &json!(false)));
}

#[test]
fn the_installer_s_account_changes_two_labels_of_its_own_node_and_nothing_else() {
    let release = Release::installed();
    let node = release.cluster.node();
    let patch = |on: &str, metadata: Value, spec: Value| {
        let object = json!({"apiVersion": "v1", "kind": "Node", "metadata": metadata, "spec": spec}).to_string();
        let file = tempfile::NamedTempFile::new().unwrap();
        fs::write(file.path(), object).unwrap();
        let account = format!("--as=system:serviceaccount:{SYSTEM}:skiff-node");
        let on = format!("--as-user-extra=authentication.kubernetes.io/node-name={on}");
        let words = ["apply", "--server-side", "--validate=false", "--field-manager=test", "--force-conflicts"];
        release.kubectl(&[&words[..], &[&account, &on, "-f", file.path().to_str().unwrap()]].concat())
    };
    let refused = |said: Result<String, String>, sentence: &str| {
        let said = said.unwrap_err();
        assert!(said.contains(sentence), "{said}");
    };
    let labels = |key: &str, value: &str| json!({"name": node, "labels": {key: value}});
    patch(&node, labels(LABEL, "true"), json!({})).unwrap();
    refused(patch("another", labels(LABEL, "true"), json!({})), "may label the node that it runs on, and no other");
    let only = "may change the labels skiff.dev/installed and skiff.dev/version of a node, and nothing else";
    patch(&node, labels(VERSION_LABEL, "0.1.0"), json!({})).unwrap();
    refused(patch(&node, labels(VERSION_LABEL, "anything"), json!({})), only);
    refused(patch(&node, labels(LABEL, "false"), json!({})), only);
    refused(patch(&node, labels("other", "true"), json!({})), only);
    refused(patch(&node, json!({"name": node, "annotations": {"a": "b"}}), json!({})), only);
    refused(patch(&node, labels(LABEL, "true"), json!({"unschedulable": true})), only);
    refused(patch(&node, labels(LABEL, "true"), json!({"taints": [{"key": "a", "effect": "NoExecute"}]})), only);
}

#[test]
fn status_needs_nothing_but_the_root_of_the_node_whatever_the_values_are() {
    let release = Release::installed();
    for words in [&["/skiff-node", "status", "--host=/host"][..], &["/skiff-node", "status"]] {
        let status = release.kubectl(&[&["exec", &release.pod_name(), "--"], words].concat()).unwrap();
        assert!(status.contains("ready       yes\n"), "{status}");
    }
}

#[test]
fn metrics_of_the_node_and_of_a_pod_s_guest_are_served() {
    let release = Release::installed();
    release.upgrade(&["metrics.enabled=true"]).unwrap();
    let web = release.serving();
    release.check_serves(&web);
    let ip = release.pod()["status"]["podIP"].as_str().unwrap().to_owned();
    let metrics =
        || release.cluster.run("in-net", &["curl", "-sf", "--max-time", "10", &format!("http://{ip}:9470/metrics")]);
    let labels = format!("{{namespace=\"{}\",pod=\"web\",container=\"main\"", web.name);
    let request = format!("skiff_container_requests_total{labels},code=\"2xx\"}} ");
    let has_request =
        |text: &str| text.lines().any(|line| line.strip_prefix(&request).is_some_and(|count| count != "0"));
    release.until("the request to be counted", || has_request(&metrics()));
    let text = metrics();
    let value = |start: &str| -> f64 {
        let found = text.lines().find_map(|line| line.strip_prefix(start));
        found.unwrap_or_else(|| panic!("no {start} in\n{text}")).parse().unwrap()
    };
    assert_eq!(value(&format!("skiff_container_memory_limit_bytes{labels}}} ")), 64.0 * 1024.0 * 1024.0);
    assert!(value(&format!("skiff_container_memory_peak_bytes{labels}}} ")) > 0.0);
    assert!(value("skiff_cache_entries ") >= 1.0 && value("skiff_cache_bytes ") > 0.0);
    assert!(value("skiff_cache_hits_total ") + value("skiff_compilations_total ") >= 1.0);
    assert!(
        text.contains(&format!("skiff_info{{version=\"{0}\",programs=\"{0}-", env!("CARGO_PKG_VERSION"))),
        "{text}"
    );
    let printed = release.kubectl(&["exec", DAEMON_SET, "--", "/skiff-node", "metrics"]).unwrap();
    assert!(printed.contains(&format!("skiff_container_memory_bytes{labels}}} ")), "{printed}");
    let service = release.cluster.get(&["-n", SYSTEM, "endpointslices", "-l", "kubernetes.io/service-name=skiff-node"]);
    assert!(service.to_string().contains(&format!("\"{ip}\"")), "{service}");
}

#[test]
fn whoever_applies_an_annotation_that_does_nothing_is_warned() {
    let release = Release::installed();
    let namespace = release.cluster.namespace();
    let warnings_of = |kind: &str, annotations: Value| {
        let mut pod = wasm_pod("web", &[container("main", "http", json!({}))]);
        pod["metadata"]["annotations"] = annotations;
        let object = match kind {
            "Pod" => pod,
            "CronJob" => {
                let job = json!({"spec": {"template": {"metadata": pod["metadata"], "spec": pod["spec"]}}});
                json!({"apiVersion": "batch/v1", "kind": "CronJob", "metadata": {"name": "web"},
                    "spec": {"schedule": "0 0 1 1 *", "jobTemplate": job}})
            }
            _ => {
                pod["metadata"]["labels"] = json!({"app": "web"});
                pod["spec"]["restartPolicy"] = json!("Always");
                let template = json!({"metadata": pod["metadata"], "spec": pod["spec"]});
                json!({"apiVersion": "apps/v1", "kind": kind, "metadata": {"name": "web"},
                    "spec": {"selector": {"matchLabels": {"app": "web"}}, "template": template}})
            }
        };
        let file = tempfile::NamedTempFile::new().unwrap();
        fs::write(file.path(), object.to_string()).unwrap();
        let words = ["apply", "--dry-run=server", "-f", file.path().to_str().unwrap()];
        let output = namespace.client().args(words).output().unwrap();
        assert!(output.status.success(), "a warning never rejects: {output:?}");
        String::from_utf8(output.stderr).unwrap()
    };
    // A policy is in force a moment after it is made.
    release.until("the policy", || warnings_of("Pod", json!({"limit.skiff.dev/run-time": "1s"})).contains("Warning"));
    for kind in ["Pod", "Deployment", "CronJob"] {
        for key in [
            "limit.skiff.dev/run-time",
            "skiff.dev/run-time",
            "web.limits.skiff.dev/run-time",
            "main.limit.skiff.dev/stack",
        ] {
            let said = warnings_of(kind, json!({key: "1s", "other.example/x": "y"}));
            let expected = format!("skiff ignores the annotations {key}: a limit is limits.skiff.dev/NAME");
            assert!(said.contains(&expected) && !said.contains("other.example"), "{kind}: {said}");
        }
        let said = warnings_of(kind, json!({"limits.skiff.dev/runtime": "1s"}));
        assert!(
            said.contains("skiff has no such annotations, and will refuse the containers: limits.skiff.dev/runtime;"),
            "{said}"
        );
        let right = json!({"limits.skiff.dev/run-time": "1s", "main.limits.skiff.dev/stack": "1Mi",
            "main.http.skiff.dev/h2c": "a:1", "debug.skiff.dev/look": "off", "main.debug.skiff.dev/core-dump": "/core", "debug.skiff.dev/launcher": "oci", "main.calls.skiff.dev/on-trap": "exit", "other.example/x": "y"});
        assert_eq!(warnings_of(kind, right), "");
    }
}

#[test]
fn each_capability_has_its_use() {
    let release = Release::installed();
    let set = release.cluster.get(&["-n", SYSTEM, DAEMON_SET]);
    let _web = release.serving();
    let run = |dropped: &str, words: &[&str]| {
        let name = random_name("without");
        let mut spec = set["spec"]["template"]["spec"].clone();
        let fields = json!({"restartPolicy": "Never", "terminationGracePeriodSeconds": 0});
        spec.as_object_mut().unwrap().extend(fields.as_object().unwrap().clone());
        let options = options_of(&spec);
        let words = words.iter().map(|word| json!(word)).chain(options.iter().map(|word| json!(word)));
        spec["containers"][0]["args"] = words.collect();
        spec["containers"][0].as_object_mut().unwrap().remove("readinessProbe");
        // Without a name the node is not labelled.
        let variables = spec["containers"][0]["env"].as_array_mut().unwrap();
        variables.retain(|variable| variable["name"] != "NODE_NAME");
        let capabilities = spec["containers"][0]["securityContext"]["capabilities"]["add"].as_array_mut().unwrap();
        capabilities.retain(|capability| capability != dropped);
        let pod =
            json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": name, "namespace": SYSTEM}, "spec": spec});
        release.cluster.apply(&pod.to_string());
        release.until("its end", || {
            let phase = release.kubectl(&["get", "pod", &name, "-o", "jsonpath={.status.phase}"]).unwrap();
            phase == "Succeeded" || phase == "Failed"
        });
        let log = release.kubectl(&["logs", &name]).unwrap();
        release.kubectl(&["delete", "pod", &name, "--wait=false"]).unwrap();
        log
    };
    let said = run("", &["verify"]);
    assert_eq!(said, "");
    let said = run("SYS_CHROOT", &["verify"]);
    assert!(said.contains("cannot run") && said.contains("not permitted"), "{said}");
    // The installer that watches the node holds the lock only while it works.
    let said = run("SYS_PTRACE", &["remove"]);
    assert!(said.contains("cannot look at process"), "{said}");
    release.in_node(&format!("chgrp 4242 {DROP_IN}; echo '# changed' >> {DROP_IN}"));
    release.until("the node to be mended", || release.is_right());
    let owner = release.in_node(&format!("stat -c %u:%g {DROP_IN}"));
    assert_eq!(owner.trim(), "0:4242", "CHOWN keeps a file its owner");
}

#[test]
fn an_installer_that_is_killed_at_work_leaves_a_node_that_works_and_that_the_next_one_completes() {
    let release = Release::installed();
    for delay in ["0", "0.05", "0.2", "0.6", "1.2"] {
        let pod = release.pod_name();
        release.disturb(&format!("sleep {delay}; kill -9 $(pgrep -f '^/skiff-node keep')"));
        release.kubectl(&["delete", "pod", &pod, "--grace-period=0", "--force"]).unwrap();
        release.check_native_pods();
        release.until("the next installer", || release.is_right());
        assert!(release.is_labelled());
    }
    release.helm(&["test", "skiff"]).unwrap();
}

#[test]
fn a_containerd_that_is_killed_during_an_installation_comes_back_with_everything() {
    let release = Release::installed();
    for delay in ["0", "0.3", "0.8"] {
        // It may be about to be restarted.
        release.disturb(&format!("sleep {delay}; pid=$(pgrep -x containerd) && kill -9 $pid || true"));
        release.until("the installation", || release.is_right());
        release.check_native_pods();
    }
    release.helm(&["test", "skiff"]).unwrap();
}

#[test]
fn a_configuration_that_is_broken_by_hand_is_refused_until_it_is_mended() {
    let release = Release::installed();
    release.in_node(&format!("cp -p {CONFIG} {CONFIG}.kept; echo '[broken' >> {CONFIG}"));
    release.until("a refusal", || release.log().contains("containerd refuses the configuration"));
    assert!(!release.is_right());
    // Running pods are not affected.
    release.check_native_pods();
    assert!(release.is_labelled(), "containerd still has the handler");
    release.in_node(&format!("mv {CONFIG}.kept {CONFIG}"));
    release.until("the node to be mended", || release.is_right());
}

#[test]
fn a_node_that_somebody_reverts_is_mended_within_the_interval() {
    let release = Release::installed();
    release.in_node(&format!("rm {DROP_IN}"));
    release.until("the file", || release.in_node(&format!("ls {DROP_IN} || true")).contains(DROP_IN));
    release.until("the node to be mended", || release.is_right());
    let web = release.serving();
    release.in_node(&format!("rm {DROP_IN}"));
    release.cluster.restart("containerd");
    release.until("the node to be mended", || release.is_right());
    release.check_serves(&web);
    release.kubectl(&["label", "node", &release.cluster.node(), &format!("{LABEL}-")]).unwrap();
    release.until("the label", || release.is_labelled());
    release.helm(&["test", "skiff"]).unwrap();
}

/// A file system on the node for the time of the test.
struct Small<'a>(&'a Release);

impl Drop for Small<'_> {
    fn drop(&mut self) {
        self.0.in_node("umount /mnt/small && rmdir /mnt/small");
    }
}

#[test]
fn a_full_disk_is_told_and_leaves_what_was_there() {
    let release = Release::installed();
    let record = release.in_node(&format!("cat {RECORD}"));
    release.in_node("mkdir /mnt/small && mount -t tmpfs -o size=1m,mode=755 small /mnt/small");
    let _small = Small(&release);
    let failed = release.upgrade_within("15s", &["programs=/mnt/small/skiff"]);
    assert!(failed.is_err(), "{failed:?}");
    let mut log = String::new();
    let is_told = until(PATIENCE, || {
        log = release.log();
        log.contains("No space left on device") && log.contains("everything is as it was")
    });
    assert!(is_told, "{log}");
    // The installer tries again and again.
    release.until("the record of what is installed", || release.in_node(&format!("cat {RECORD}")) == record);
    assert!(release.is_labelled());
    release.helm(&["test", "skiff"]).unwrap();
    release.helm(&["rollback", "skiff", "--wait", "--timeout", "90s"]).unwrap();
    assert!(release.is_right());
}

#[test]
fn the_shim_makes_the_sandboxes_of_new_pods_where_the_chart_says_so() {
    let release = Release::installed();
    let is_made_by_the_shim = |namespace: &Namespace<'_>| {
        let id = namespace.cluster.run("crictl", &["pods", "--quiet", "--namespace", &namespace.name]);
        // Only containerd's own sandboxes are containers.
        !release.in_node(&format!("ls -d /run/containerd/io.containerd.*/k8s.io/{}", id.trim())).contains("v2.task")
    };
    let before = release.serving();
    assert!(!is_made_by_the_shim(&before));
    release.upgrade(&["sandboxer=shim"]).unwrap();
    assert!(release.is_right());
    let after = release.serving();
    assert!(is_made_by_the_shim(&after));
    release.helm(&["test", "skiff"]).unwrap();
    release.check_native_pods();
    release.upgrade(&["sandboxer=podsandbox"]).unwrap();
    let again = release.serving();
    assert!(!is_made_by_the_shim(&again));
    [&before, &after, &again].iter().for_each(|web| release.check_serves(web));
    drop((before, after, again));
    release.until("the end of the pods", || release.shims().is_empty());
}

#[test]
fn an_upgrade_and_a_rollback_leave_running_pods_their_programs() {
    let release = Release::installed();
    let another = push_another_version(release.cluster);
    let web = release.serving();
    let before = web.get(&["pod/web"]);
    let old = release.shims();
    assert_eq!(old.len(), 1, "{old:?}");
    release.upgrade(&[&format!("image.tag={another}")]).unwrap();
    let newer = release.serving();
    let both = release.shims();
    assert_eq!(both.len(), 2, "{both:?}");
    assert!(both.contains(&old[0]), "{both:?}");
    release.in_node(&format!("test -x {} && test -x $(dirname {})/skiff-engine", old[0], old[0]));
    release.helm(&["rollback", "skiff", "--wait", "--timeout", "90s"]).unwrap();
    let current = release.in_node("readlink -f /opt/skiff/current/containerd-shim-skiff-v1");
    assert_eq!(current.trim(), old[0], "new pods get the old version again");
    release.check_serves(&web);
    release.check_serves(&newer);
    let ids = |pod: &Value| pod["status"]["containerStatuses"][0]["containerID"].clone();
    assert_eq!(ids(&before), ids(&web.get(&["pod/web"])));
    drop(newer);
    let versions = || release.in_node("ls /opt/skiff/versions").lines().count();
    release.until("the unused version to go", || versions() == 1);
}

#[test]
fn uninstalling_is_refused_while_wasm_pods_run_and_waits_for_them() {
    let release = Release::installed();
    release.upgrade(&["uninstall.waitSeconds=8"]).unwrap();
    let web = release.serving();
    let refused = release.helm(&["uninstall", "skiff", "--timeout", "90s"]).unwrap_err();
    let node = release.cluster.node();
    assert!(refused.contains(&format!("node `{node}`: wasm pods are still running")), "{refused}");
    assert!(refused.contains("nothing was uninstalled, and every node gets skiff back"), "{refused}");
    release.until("skiff to be back", || release.is_labelled() && release.is_right());
    assert_eq!(web.get(&["pod/web"])["status"]["containerStatuses"][0]["restartCount"], 0);
    release.helm(&["rollback", "skiff", "--wait", "--timeout", "90s"]).unwrap();
    release.upgrade(&["uninstall.waitSeconds=60"]).unwrap();
    let uninstall =
        Lasting::start(release.cluster.client("helm").args(["-n", SYSTEM, "uninstall", "skiff", "--timeout", "90s"]));
    release.until("the label to go", || !release.is_labelled());
    assert!(!release.shims().is_empty());
    web.kubectl(&["delete", "pod", "web", "--grace-period=1"]);
    uninstall.end().unwrap();
    release.upgrade(&[]).unwrap();
    release.helm(&["test", "skiff"]).unwrap();
}

#[test]
fn uninstalling_leaves_the_node_as_it_was() {
    let release = Release::installed();
    let uninstall = || {
        release.helm(&["uninstall", "skiff", "--wait", "--timeout", "90s"]).unwrap();
        assert!(!release.is_labelled());
        release.in_node(TREE)
    };
    let before = uninstall();
    assert!(!before.contains("skiff"), "{before}");
    release.upgrade(&[]).unwrap();
    release.helm(&["test", "skiff"]).unwrap();
    assert!(release.in_node(TREE).contains("skiff.toml"));
    assert_eq!(uninstall(), before);
    release.check_native_pods();
    let left =
        "clusterroles,clusterrolebindings,validatingadmissionpolicies,validatingadmissionpolicybindings,runtimeclasses";
    assert_eq!(release.cluster.kubectl(&["get", left, "-l", "app.kubernetes.io/instance=skiff", "-o", "name"]), "");
    assert_eq!(release.kubectl(&["get", "all,roles,rolebindings", "-o", "name"]).unwrap(), "");
    release.upgrade(&[]).unwrap();
}
