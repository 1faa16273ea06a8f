//! The commands of README.md and `docs/`, run as their reader would run them, on the cluster of `SKIFF_CLUSTER`.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::{Mutex, PoisonError};

use serde_json::{Value, json};
use skiff_test::page::{Section, sections};
use skiff_test::{Cluster, Namespace, container, guest, http_pod, random_name, sha256, wasm_pod};
use tempfile::TempDir;

/// Programs of this size take the compiler ten seconds of processor time. The kubelet waits two minutes for a container to be made,
/// so on a loaded machine they take turns.
const LARGE: u64 = 8 << 20;
static TURN: Mutex<()> = Mutex::new(());

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..")
}

fn read(document: &str) -> String {
    fs::read_to_string(root().join(document)).unwrap()
}

/// Runs a program to its end and returns its standard output.
fn output(command: &mut Command, what: &str) -> String {
    let output = command.stdin(Stdio::null()).output().unwrap();
    let [said, complaints] = [&output.stdout, &output.stderr].map(|bytes| String::from_utf8_lossy(bytes).into_owned());
    assert!(output.status.success(), "{what}: {}\n{said}{complaints}", output.status);
    said
}

/// A reader of the documents: a directory, and the cluster's clients in `PATH`.
struct Reader {
    home: TempDir,
    namespace: Namespace<'static>,
}

impl Reader {
    fn new() -> Self {
        let reader = Self { home: tempfile::tempdir().unwrap(), namespace: Cluster::shared().namespace() };
        let kubectl = reader.namespace.client();
        let words: Vec<_> = std::iter::once(kubectl.get_program()).chain(kubectl.get_args()).collect();
        let words: Vec<_> = words.iter().map(|word| word.to_str().unwrap()).collect();
        reader.client("kubectl", &words.join(" "));
        for name in ["skiff", "push", "in-net"] {
            reader.client(name, reader.namespace.cluster.client(name).get_program().to_str().unwrap());
        }
        // A new Service takes a moment to reach the node's network.
        fs::write(
            reader.home.path().join(".curlrc"),
            "retry 60\nretry-delay 1\nretry-all-errors\nconnect-timeout 5\nfail\n",
        )
        .unwrap();
        reader
    }

    /// Makes a client that runs `command`.
    fn client(&self, name: &str, command: &str) {
        let bin = self.home.path().join("bin");
        fs::create_dir_all(&bin).unwrap();
        fs::write(bin.join(name), format!("#!/bin/sh\nexec {command} \"$@\"\n")).unwrap();
        fs::set_permissions(bin.join(name), fs::Permissions::from_mode(0o755)).unwrap();
    }

    fn file(&self, name: &str) -> PathBuf {
        self.home.path().join(name)
    }

    /// Runs commands in the directory of this name and returns what they print.
    fn run(&self, folder: &str, script: &str) -> String {
        let path = format!("{}:{}", self.file("bin").display(), std::env::var("PATH").unwrap());
        let mut bash = Command::new("bash");
        bash.args(["-euo", "pipefail", "-c", script]).current_dir(self.file(folder));
        output(bash.env("PATH", path).env("CURL_HOME", self.home.path()), script)
    }
}

/// The directory that a section's commands make, and the program that they build in it.
fn built(section: &Section) -> (String, PathBuf) {
    let script = tempfile::NamedTempFile::new().unwrap();
    fs::write(script.path(), section.script_until("skiff pack")).unwrap();
    let said = output(Command::new("bash").arg("guests/page.sh").arg(script.path()), &section.title);
    let folder = Path::new(said.lines().last().unwrap()).read_dir().unwrap().next().unwrap().unwrap();
    (folder.file_name().into_string().unwrap(), folder.path().join("app.wasm"))
}

/// Does what a section of `from-source-to-pod.md` describes.
fn check(title: &str) {
    let page = sections(&read("docs/from-source-to-pod.md"));
    let section = |title: &str| page.iter().find(|section| section.title == title).unwrap();
    let (folder, program) = built(section(title));
    let reader = Reader::new();
    reader.run("", &section("Before you start").script());
    fs::create_dir(reader.file(&folder)).unwrap();
    let size = fs::copy(program, reader.file(&folder).join("app.wasm")).unwrap();
    let _turn = (size > LARGE).then(|| TURN.lock().unwrap_or_else(PoisonError::into_inner));
    let said = reader.run(&folder, &section(title).script_from("skiff pack"));
    let expected = section(title).output().replace("NAMESPACE", &reader.namespace.name);
    assert!(said.ends_with(&expected), "{title}: {said}");
    let reference = said.lines().find(|line| line.starts_with("localhost:5000/mine/")).unwrap();
    assert!(reference.starts_with(&format!("localhost:5000/mine/{folder}:1@sha256:")), "{reference}");
}

#[test]
fn a_job_in_go() {
    check("Go");
}

#[test]
fn a_job_in_c() {
    check("C");
}

#[test]
fn a_service_in_rust() {
    check("Rust");
}

#[test]
fn a_service_in_rust_with_wasi_03() {
    check("Rust with WASI 0.3");
}

#[test]
fn a_service_in_javascript() {
    check("JavaScript");
}

#[test]
fn a_service_in_python() {
    check("Python");
}

#[test]
fn a_job_in_python() {
    check("A command in Python");
}

#[test]
fn a_job_that_calls_the_api_server_with_its_token() {
    check("Call the Kubernetes API");
}

#[test]
fn every_program_of_the_page_is_tested() {
    let page = sections(&read("docs/from-source-to-pod.md"));
    let this = read("test/tests/kube_documents.rs");
    for section in page.iter().filter(|section| section.script().contains("skiff pack")) {
        assert!(this.contains(&format!("check(\"{}\")", section.title)), "{}", section.title);
    }
}

/// What `make demo` ends with, for a folder of a cluster.
fn hint(folder: &str) -> String {
    output(Command::new("bash").args(["cluster/next.sh", folder]), "next.sh")
}

#[test]
fn the_last_lines_of_the_demo_run_a_program_of_ones_own() {
    let reader = Reader::new();
    let shown = hint(reader.home.path().to_str().unwrap());
    let mut program = fs::read(guest("rust-p2-http")).unwrap();
    // The second time it is another program, which replaces the first.
    for text in ["hello\n", "other\n"] {
        let place = program.windows(text.len()).position(|bytes| bytes == b"hello\n").unwrap();
        program[place..place + text.len()].copy_from_slice(text.as_bytes());
        fs::write(reader.file("app.wasm"), &program).unwrap();
        let said = reader.run("", &shown);
        assert!(said.ends_with(text), "{said}");
    }
}

#[test]
fn readme_shows_the_last_lines_of_the_demo() {
    let readme = read("README.md");
    for line in hint("~/.cache/skiff/clusters/local-skiff").lines() {
        assert!(readme.contains(&format!("\n    {line}")), "README.md lacks `{line}`");
    }
}

/// Runs every command of a page that is about a pod named `POD`, in this pod, and returns what they print, section by section.
fn followed(reader: &Reader, document: &str, pod: &Value) -> Vec<(Section, String)> {
    reader.namespace.start(pod);
    let name = pod["metadata"]["name"].as_str().unwrap();
    // What is said before the first section is one, too.
    let page = sections(&read(document).replacen("\n", "\n## Beginning\n", 1));
    let run = |section: Section| {
        let said = reader.run("", &section.script().replace("POD", name));
        (section, said)
    };
    page.into_iter().map(run).collect()
}

#[test]
fn a_wasm_pod_is_looked_into() {
    let reader = Reader::new();
    let mounts = json!([{"name": "data", "mountPath": "/data"}]);
    let write = json!({"args": ["write:/data/report.csv=1,2,3"], "volumeMounts": mounts});
    // Only a guest that computes can be dumped.
    let mut pod = wasm_pod("busy", &[container("main", "c-spin", json!({"volumeMounts": mounts}))]);
    pod["spec"]["initContainers"] = json!([container("write", "files", write)]);
    pod["spec"]["volumes"] = json!([{"name": "data", "emptyDir": {}}]);
    let said: String = followed(&reader, "docs/debug-a-wasm-pod.md", &pod).into_iter().map(|(_, said)| said).collect();
    for part in ["nameserver", "PATH=", "/data"] {
        assert!(said.contains(part), "{part:?} is not in {said}");
    }
    assert_eq!(fs::read_to_string(reader.file("report.csv")).unwrap(), "1,2,3");
    let profile: Value = serde_json::from_slice(&fs::read(reader.file("profile.json")).unwrap()).unwrap();
    assert!(profile["threads"].is_array(), "{profile:#}");
    assert!(fs::read(reader.file("core.wasm")).unwrap().starts_with(b"\0asm"));
}

#[test]
fn a_native_container_sees_a_guest_that_is_not_root() {
    let page = sections(&read("docs/debugging.md"));
    let section = page.iter().find(|section| section.title == "Look into a running container").unwrap();
    let reader = Reader::new();
    let mut pod = http_pod("web");
    pod["spec"]["securityContext"] = json!({"runAsNonRoot": true, "runAsUser": 65532});
    reader.namespace.start(&pod);
    let script = section.script().replace("--image=busybox", "--image=localhost:5000/examples/busybox:1");
    let said = reader.run("", &script);
    for part in ["/proc/self/fd/3 /http.wasm\n", "\nhttp.wasm\n", "hello\n"] {
        assert!(said.contains(part), "{part:?} is not in {said}");
    }
}

/// A program that no node has compiled yet: a custom section makes its content unique. Also its sha256.
fn unique_service(path: &Path) -> String {
    let mut bytes = fs::read(guest("rust-p2-http")).unwrap();
    let name = random_name("unique");
    let length = u8::try_from(name.len()).unwrap();
    bytes.extend([0, length + 1, length]);
    bytes.extend(name.as_bytes());
    fs::write(path, &bytes).unwrap();
    sha256(&bytes)
}

#[test]
fn a_daemon_set_warms_the_cache() {
    let page = sections(&read("docs/kubernetes.md"));
    let section = page.iter().find(|section| section.title == "Start times").unwrap();
    let reader = Reader::new();
    let sum = unique_service(&reader.file("app.wasm"));
    let image =
        reader.run("", &format!("skiff pack app.wasm -o app.tar > log; push app.tar mine/{}:1", random_name("app")));
    reader.run("", &section.script().replace("registry.example/app:2", image.trim()));
    let entry = format!("test -e /var/lib/skiff/cache/*/{sum}.cwasm");
    reader.namespace.cluster.run("in-node", &["sh", "-c", &entry]);
}

#[test]
fn functions_of_a_pod_are_called() {
    let reader = Reader::new();
    reader.namespace.start(&wasm_pod("my-pod", &[container("main", "reactor", json!({}))]));
    fs::write(reader.file("expressions"), "add(3, 4)\nhalf(5)\n").unwrap();
    let page = read("docs/call-functions.md");
    let commands: Vec<_> = page.lines().map(str::trim).filter(|line| line.starts_with("kubectl ")).collect();
    let said = reader.run("", &(commands.join("\n") + "\n"));
    assert!(said.starts_with("3\n") && said.contains("counter") && said.ends_with("7\n2.5\n"), "{said}");
}
