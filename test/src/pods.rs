//! What the suites of the cluster do with pods: their descriptions, `kubectl` commands that last, and waiting for changes.

use std::io::{BufReader, Write};
use std::process::{Child, ChildStdin, Command, Stdio};
use std::time::Duration;

use serde_json::{Value, json};

use crate::cluster::Namespace;
use crate::streams::Collected;
use crate::until;

const PATIENCE: Duration = Duration::from_secs(120);

/// A container of an example image, with these fields besides.
pub fn container(name: &str, image: &str, fields: Value) -> Value {
    let mut container = json!({"name": name, "image": format!("localhost:5000/examples/{image}:1")});
    let fields = fields.as_object().expect("fields of a container").clone();
    container.as_object_mut().expect("it is an object").extend(fields);
    container
}

/// A pod of the runtime class `skiff` whose containers are not started again.
pub fn wasm_pod(name: &str, containers: &[Value]) -> Value {
    json!({
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": name, "labels": {"app": name}},
        "spec": {"runtimeClassName": "skiff", "restartPolicy": "Never", "containers": containers},
    })
}

/// A Service in front of the pods with the label `app: NAME`, from port 80 to 8080.
pub fn service(name: &str) -> Value {
    json!({
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": {"name": name},
        "spec": {"selector": {"app": name}, "ports": [{"port": 80, "targetPort": 8080}]},
    })
}

/// The status of a pod's container; null when there is none yet.
pub fn status_of<'a>(pod: &'a Value, container: &str) -> &'a Value {
    let statuses = ["containerStatuses", "ephemeralContainerStatuses"].map(|kind| &pod["status"][kind]);
    let mut statuses = statuses.into_iter().filter_map(Value::as_array).flatten();
    statuses.find(|status| status["name"] == container).unwrap_or(&Value::Null)
}

impl Namespace<'_> {
    /// Makes an object.
    pub fn make(&self, object: &Value) {
        self.apply(&object.to_string());
    }

    /// Waits until an object (`pod/NAME`) is as `condition` wants it, and answers it then. The API server tells of its
    /// changes: a question asked again and again costs a loaded machine much.
    pub fn watch(&self, object: &str, mut condition: impl FnMut(&Value) -> bool) -> Value {
        let limit = format!("--request-timeout={}s", PATIENCE.as_secs());
        let mut kubectl = self.client();
        kubectl.args(["get", object, "-o", "json", "--watch", &limit]).stdout(Stdio::piped());
        let mut kubectl = kubectl.spawn().expect("kubectl can be started");
        let output = BufReader::new(kubectl.stdout.take().expect("it is piped"));
        let mut last = Value::Null;
        let holds = serde_json::Deserializer::from_reader(output).into_iter().map_while(Result::ok).any(|changed| {
            last = changed;
            condition(&last)
        });
        // It may have ended by itself.
        drop(kubectl.kill());
        kubectl.wait().expect("it can be waited for");
        assert!(holds, "{object} did not become as expected: {last:#}");
        last
    }

    /// Makes a pod and waits until it is ready.
    pub fn start(&self, pod: &Value) {
        self.make(pod);
        self.wait("condition=Ready", &format!("pod/{}", pod["metadata"]["name"].as_str().expect("it has a name")));
    }

    /// Makes a pod and waits for its end; the pod then.
    pub fn run(&self, pod: &Value) -> Value {
        self.make(pod);
        let name = format!("pod/{}", pod["metadata"]["name"].as_str().expect("it has a name"));
        self.watch(&name, |pod| matches!(pod["status"]["phase"].as_str(), Some("Succeeded" | "Failed")))
    }

    /// Starts a `kubectl` command that lasts.
    pub fn lasting(&self, words: &[&str]) -> Lasting {
        Lasting::start(self.client().args(words))
    }
}

/// A command that runs beside the test. Dropping it ends it.
pub struct Lasting {
    child: Child,
    stdin: Option<ChildStdin>,
    stdout: Collected,
    stderr: Collected,
}

impl Lasting {
    /// Starts it; both outputs are read from now on.
    pub fn start(command: &mut Command) -> Self {
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = command.spawn().expect("it can be started");
        let stdout = Collected::start(std::os::fd::OwnedFd::from(child.stdout.take().expect("it is piped")).into());
        let stderr = Collected::start(std::os::fd::OwnedFd::from(child.stderr.take().expect("it is piped")).into());
        Self { stdin: child.stdin.take(), child, stdout, stderr }
    }

    /// Its process.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// What it has written to standard output.
    pub fn said(&self) -> String {
        self.stdout.text()
    }

    /// Writes to its standard input.
    pub fn tell(&mut self, text: &str) {
        let stdin = self.stdin.as_mut().expect("standard input is open");
        stdin.write_all(text.as_bytes()).expect("it reads");
    }

    /// Closes its standard input.
    pub fn close(&mut self) {
        self.stdin.take();
    }

    /// Waits until its standard output holds this.
    pub fn expect(&self, text: &str) {
        let found = until(PATIENCE, || self.said().contains(text));
        assert!(found, "{text:?} did not come; stdout: {:?}, stderr: {:?}", self.said(), self.stderr.text());
    }

    /// Waits for its end: its standard output, or its standard error when it failed.
    pub fn end(mut self) -> Result<String, String> {
        let ended = until(PATIENCE, || self.child.try_wait().expect("it can be waited for").is_some());
        assert!(ended, "it did not end; stdout: {:?}, stderr: {:?}", self.said(), self.stderr.text());
        let text = |collected: &Collected| String::from_utf8_lossy(&collected.all()).into_owned();
        let status = self.child.wait().expect("it has ended");
        if status.success() { Ok(text(&self.stdout)) } else { Err(text(&self.stderr)) }
    }
}

impl Drop for Lasting {
    fn drop(&mut self) {
        // It may have ended already.
        drop(self.child.kill());
        drop(self.child.wait());
    }
}
