//! Pods for the suites of the cluster: their descriptions, `kubectl` commands that keep running, and waiting for changes.

use std::io::{BufReader, Write};
use std::process::{Child, ChildStdin, Command, Stdio};

use serde_json::{Value, json};

use crate::cluster::{Cluster, Namespace, PATIENCE};
use crate::container::Outcome;
use crate::streams::Collected;
use crate::until;

/// A container of an example image, with these further fields.
pub fn container(name: &str, image: &str, fields: Value) -> Value {
    let mut container = json!({"name": name, "image": format!("localhost:5000/examples/{image}:1")});
    let fields = fields.as_object().expect("fields of a container").clone();
    container.as_object_mut().expect("it is an object").extend(fields);
    container
}

/// A pod of the runtime class `skiff` whose containers are not restarted.
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

/// A Deployment of the pod, under its name.
pub fn deployment(mut pod: Value, replicas: u32) -> Value {
    let name = pod["metadata"]["name"].clone();
    pod["spec"]["restartPolicy"] = json!("Always");
    json!({
        "apiVersion": "apps/v1",
        "kind": "Deployment",
        "metadata": {"name": name},
        "spec": {
            "replicas": replicas,
            "selector": {"matchLabels": {"app": name}},
            "template": {"metadata": {"labels": {"app": name}}, "spec": pod["spec"]},
        },
    })
}

/// A pod of the HTTP example, ready when it serves.
pub fn http_pod(name: &str) -> Value {
    let probe = json!({"httpGet": {"path": "/", "port": 8080}, "periodSeconds": 1});
    wasm_pod(name, &[container("main", "http", json!({"readinessProbe": probe}))])
}

/// The status of a pod's container; null when there is none yet.
pub fn status_of<'a>(pod: &'a Value, container: &str) -> &'a Value {
    let statuses = ["containerStatuses", "ephemeralContainerStatuses"].map(|kind| &pod["status"][kind]);
    let mut statuses = statuses.into_iter().filter_map(Value::as_array).flatten();
    statuses.find(|status| status["name"] == container).unwrap_or(&Value::Null)
}

impl Cluster {
    /// Runs curl in the node's network and returns its output, or its error message.
    pub fn curl(&self, words: &[&str]) -> Result<String, String> {
        self.try_run("in-net", &[&["curl", "-sS", "--max-time", "20"], words].concat())
    }

    /// A request to a pod of the HTTP example that takes `ms` milliseconds and is under way when this returns.
    pub fn slow_request(&self, pod: &Value, ms: u32) -> Lasting {
        let address = pod["status"]["podIP"].as_str().expect("a running pod has an address");
        let urls = ["".into(), format!("slow?ms={ms}")].map(|path| format!("http://{address}:8080/{path}"));
        let mut command = self.client("in-net");
        let request = Lasting::start(command.args(["curl", "-sN"]).args(urls));
        // Once the first is answered, curl sends the second on the same connection.
        request.expect("hello\n");
        request
    }

    /// Requests an address (with a `?` in it) again and again, at most 40 times a second, each time on a new connection.
    pub fn load(&self, url: &str) -> Load {
        let mut command = self.client("in-net");
        let urls = format!("{url}&n=[1-100000]");
        command.args(["stdbuf", "-oL", "curl", "-s", "--rate", "40/s", "--max-time", "20", "-H", "Connection: close"]);
        let client = Lasting::start(command.args(["-o", "/dev/null", "-w", "%{http_code} %{errormsg}\n", &urls]));
        client.expect("200 \n");
        Load { client }
    }
}

impl Namespace<'_> {
    /// Makes an object.
    pub fn make(&self, object: &Value) {
        self.apply(&object.to_string());
    }

    /// Waits until `condition` holds for an object (`pod/NAME`) and returns the object. The API server reports changes; polling
    /// would cost a loaded machine too much.
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

    /// Makes a pod, waits for its end and returns it.
    pub fn run(&self, pod: &Value) -> Value {
        self.make(pod);
        self.until_end(pod["metadata"]["name"].as_str().expect("it has a name"))
    }

    /// Waits for a pod's end: the state `terminated` of its first container.
    pub fn ended(&self, pod: &str) -> Value {
        self.until_end(pod)["status"]["containerStatuses"][0]["state"]["terminated"].clone()
    }

    fn until_end(&self, pod: &str) -> Value {
        let has_ended = |pod: &Value| matches!(pod["status"]["phase"].as_str(), Some("Succeeded" | "Failed"));
        self.watch(&format!("pod/{pod}"), has_ended)
    }

    /// Runs `kubectl` with this input, and returns how it ended and what it said. Of a command in a pod it passes on the exit code.
    pub fn outcome(&self, words: &[&str], input: &[u8]) -> Outcome {
        let mut kubectl = self.client();
        kubectl.args(words).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut kubectl = kubectl.spawn().expect("kubectl can be started");
        let mut stdin = kubectl.stdin.take().expect("it is piped");
        let output = std::thread::scope(|scope| {
            // A command that ends early does not read all of it.
            scope.spawn(move || drop(stdin.write_all(input)));
            kubectl.wait_with_output().expect("it can be waited for")
        });
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        let code = output.status.code().and_then(|code| code.try_into().ok()).expect("kubectl is not killed");
        Outcome { code, stdout: text(&output.stdout), stderr: text(&output.stderr) }
    }

    /// Runs a command in a pod's first container.
    pub fn exec(&self, pod: &str, command: &[&str]) -> Outcome {
        self.outcome(&[&["exec", pod, "--"], command].concat(), b"")
    }

    /// Starts a `kubectl` command that has a terminal and keeps running.
    pub fn terminal(&self, words: &[&str]) -> Lasting {
        Lasting::at_terminal(self.client().args(words))
    }

    /// Starts a `kubectl` command that keeps running.
    pub fn lasting(&self, words: &[&str]) -> Lasting {
        Lasting::start(self.client().args(words))
    }
}

/// A word for a shell.
fn quoted(word: &str) -> String {
    format!("'{}'", word.replace('\'', r"'\''"))
}

/// Requests that are made while the test runs. None of them may fail.
pub struct Load {
    client: Lasting,
}

impl Load {
    /// How many requests have been answered so far. Fails if one of them failed.
    pub fn answered(&self) -> usize {
        let said = self.client.said();
        // The last line may be incomplete.
        let lines: Vec<_> = said.rsplit_once('\n').map_or("", |(whole, _)| whole).lines().collect();
        let failed: Vec<_> = lines.iter().filter(|line| line.trim() != "200").collect();
        assert!(failed.is_empty(), "{} of {} requests failed: {failed:?}", failed.len(), lines.len());
        lines.len()
    }

    /// Waits for a response to a request that is made from now on.
    pub fn goes_on(&self) {
        // One may have been under way.
        let enough = self.answered() + 2;
        assert!(until(PATIENCE, || self.answered() >= enough), "no request is answered any more");
    }
}

/// A command that runs while the test does. Dropping it ends it.
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

    /// Starts it at a terminal of its own, on which the test types and reads.
    pub fn at_terminal(command: &Command) -> Self {
        let words = std::iter::once(command.get_program()).chain(command.get_args());
        let words: Vec<_> = words.map(|word| quoted(word.to_str().expect("it is UTF-8"))).collect();
        let mut script = Command::new("script");
        script.args(["--quiet", "--return", "--flush", "--command", &words.join(" "), "/dev/null"]);
        script.envs(command.get_envs().filter_map(|(name, value)| Some((name, value?))));
        Self::start(&mut script)
    }

    /// What it has written to standard output.
    pub fn said(&self) -> String {
        self.stdout.text()
    }

    /// Writes to its standard input.
    pub fn write(&mut self, text: &str) {
        let stdin = self.stdin.as_mut().expect("standard input is open");
        stdin.write_all(text.as_bytes()).expect("it reads");
    }

    /// Closes its standard input.
    pub fn close(&mut self) {
        self.stdin.take();
    }

    /// Waits until its standard output contains this.
    pub fn expect(&self, text: &str) {
        let found = until(PATIENCE, || self.said().contains(text));
        assert!(found, "{text:?} did not come; stdout: {:?}, stderr: {:?}", self.said(), self.stderr.text());
    }

    /// Waits until its standard error contains this.
    pub fn complains(&self, text: &str) {
        let found = until(PATIENCE, || self.stderr.text().contains(text));
        assert!(found, "{text:?} did not come; stdout: {:?}, stderr: {:?}", self.said(), self.stderr.text());
    }

    /// Waits for its end and returns its standard output, or its standard error when it failed.
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
