//! The Kubernetes that the suites run on: what `test/cluster/up.sh` started, with either back end, used through the clients in
//! its folder. The variable `SKIFF_CLUSTER` names the folder.

use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::OnceLock;
use std::time::Duration;

use serde_json::Value;

use crate::names::random_name;
use crate::wait::eventually_every;

/// How long anything in a cluster may take: a loaded machine with two processors starts pods slowly.
pub(crate) const PATIENCE: Duration = Duration::from_secs(120);
/// The pause between two checks: each check starts a program.
const PAUSE: Duration = Duration::from_millis(250);

/// A cluster that is up.
pub struct Cluster {
    folder: PathBuf,
}

impl Cluster {
    /// The cluster of `SKIFF_CLUSTER`.
    pub fn shared() -> &'static Self {
        static CLUSTER: OnceLock<Cluster> = OnceLock::new();
        CLUSTER.get_or_init(|| {
            let folder =
                std::env::var_os("SKIFF_CLUSTER").expect("`SKIFF_CLUSTER` names what `test/cluster/up.sh` started");
            Self { folder: folder.into() }
        })
    }

    /// One of the cluster's clients, ready for arguments.
    pub fn client(&self, name: &str) -> Command {
        let mut command = Command::new(self.folder.join("bin").join(name));
        command.stdin(Stdio::null());
        command
    }

    /// Runs a client and returns its standard output, or its standard error when it fails.
    pub fn try_run(&self, name: &str, words: &[&str]) -> Result<String, String> {
        answer(self.client(name).args(words), b"")
    }

    /// Runs a client that must succeed.
    pub fn run(&self, name: &str, words: &[&str]) -> String {
        self.try_run(name, words).unwrap_or_else(|said| panic!("{name} {}: {said}", words.join(" ")))
    }

    /// Runs `kubectl`, which must succeed.
    pub fn kubectl(&self, words: &[&str]) -> String {
        self.run("kubectl", words)
    }

    /// An object, or a list of them.
    pub fn get(&self, words: &[&str]) -> Value {
        let text = self.kubectl(&[&["get", "-o", "json"], words].concat());
        serde_json::from_str(&text).expect("kubectl writes JSON")
    }

    /// Makes what a manifest describes.
    pub fn apply(&self, manifest: &str) {
        apply(self.client("kubectl"), manifest);
    }

    /// The name of the one node.
    pub fn node(&self) -> String {
        self.kubectl(&["get", "nodes", "-o", "jsonpath={.items[0].metadata.name}"])
    }

    /// The address of the one node.
    pub fn node_ip(&self) -> String {
        let path = "jsonpath={.items[0].status.addresses[?(@.type==\"InternalIP\")].address}";
        self.kubectl(&["get", "nodes", "-o", path])
    }

    /// Restarts a daemon of the node: `kubelet` or `containerd`.
    pub fn restart(&self, daemon: &str) {
        self.run("restart", &[daemon]);
    }

    /// Prints what is needed to find out why a test failed.
    pub fn report(&self, namespace: &str) {
        let kubectl = |words: &[&str]| self.try_run("kubectl", &[&["-n", namespace], words].concat());
        let mut report = String::new();
        let views: [&[&str]; 3] =
            [&["get", "all", "-o", "wide"], &["describe", "pods"], &["get", "events", "--sort-by=.lastTimestamp"]];
        for view in views {
            let said = kubectl(view).unwrap_or_else(|said| said);
            report += &format!("--- kubectl {}\n{said}\n", view.join(" "));
        }
        let pods = kubectl(&["get", "pods", "-o", "name"]).unwrap_or_default();
        for pod in pods.lines() {
            let words = ["logs", pod, "--all-containers", "--prefix", "--tail=50"];
            report += &format!("--- logs of {pod}\n{}\n", kubectl(&words).unwrap_or_else(|said| said));
        }
        report += &format!("--- the node\n{}", self.try_run("node-logs", &[]).unwrap_or_else(|said| said));
        // There is nothing to be done if standard error is closed.
        drop(std::io::stderr().lock().write_all(report.as_bytes()));
    }

    /// A namespace for one test, deleted after it.
    pub fn namespace(&self) -> Namespace<'_> {
        let name = random_name("test");
        self.kubectl(&["create", "namespace", &name]);
        let namespace = Namespace { cluster: self, name };
        // Until then pods are refused.
        namespace
            .eventually("the service account", || namespace.try_kubectl(&["get", "serviceaccount", "default"]).ok());
        namespace
    }
}

/// A namespace, deleted when dropped. When the test has failed, its content is printed first.
pub struct Namespace<'a> {
    /// The cluster that it is in.
    pub cluster: &'a Cluster,
    /// Its name.
    pub name: String,
}

impl Namespace<'_> {
    /// Runs `kubectl` in this namespace and returns its standard output, or its standard error when it fails.
    pub fn try_kubectl(&self, words: &[&str]) -> Result<String, String> {
        self.cluster.try_run("kubectl", &[&["-n", &self.name], words].concat())
    }

    /// Runs `kubectl` in this namespace; it must succeed.
    pub fn kubectl(&self, words: &[&str]) -> String {
        self.cluster.kubectl(&[&["-n", &self.name], words].concat())
    }

    /// `kubectl` for this namespace, ready for arguments.
    pub fn client(&self) -> Command {
        let mut command = self.cluster.client("kubectl");
        command.args(["-n", &self.name]);
        command
    }

    /// Makes what a manifest describes.
    pub fn apply(&self, manifest: &str) {
        apply(self.client(), manifest);
    }

    /// Makes what the file describes.
    pub fn apply_file(&self, file: &Path) {
        self.kubectl(&["apply", "-f", file.to_str().expect("paths are UTF-8")]);
    }

    /// An object, or a list of them.
    pub fn get(&self, words: &[&str]) -> Value {
        self.cluster.get(&[&["-n", &self.name], words].concat())
    }

    /// What a pod (`NAME`) or the pods of an object (`job/NAME`) have logged; further words are options.
    pub fn logs(&self, words: &[&str]) -> String {
        self.kubectl(&[&["logs"], words].concat())
    }

    /// Waits until `kubectl wait` sees the condition: `wait("condition=Ready", "pod/web")`.
    pub fn wait(&self, condition: &str, what: &str) {
        self.kubectl(&["wait", &format!("--for={condition}"), what, &format!("--timeout={}s", PATIENCE.as_secs())]);
    }

    /// Waits until `probe` returns something.
    pub fn eventually<T>(&self, what: &str, probe: impl FnMut() -> Option<T>) -> T {
        eventually_every(PAUSE, PATIENCE, what, probe)
    }
}

impl Drop for Namespace<'_> {
    fn drop(&mut self) {
        if std::thread::panicking() {
            self.cluster.report(&self.name);
        }
        drop(self.cluster.try_run("kubectl", &["delete", "namespace", &self.name, "--wait=false"]));
    }
}

fn apply(mut kubectl: Command, manifest: &str) {
    let applied = answer(kubectl.args(["apply", "-f", "-"]), manifest.as_bytes());
    applied.unwrap_or_else(|said| panic!("cannot apply: {said}\n{manifest}"));
}

/// Runs a command with this input and returns its standard output, or its standard error when it fails.
fn answer(command: &mut Command, input: &[u8]) -> Result<String, String> {
    let mut child =
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().expect("it can be started");
    // A program that fails may not have read its input.
    drop(child.stdin.take().expect("it is piped").write_all(input));
    let output = child.wait_with_output().expect("it can be waited for");
    let text = |bytes: Vec<u8>| String::from_utf8_lossy(&bytes).into_owned();
    if output.status.success() { Ok(text(output.stdout)) } else { Err(text(output.stderr)) }
}
