//! The pod overhead that the RuntimeClass declares covers what a pod uses outside of its containers: its shim.

use std::path::Path;
use std::time::{Duration, Instant};

use serde_json::Value;
use skiff_test::{Cluster, Namespace, until};

const PODS: usize = 5;
const KIB: u64 = 1 << 10;
const MIB: u64 = 1 << 20;
/// The kernel's stack of a thread.
const STACK_BYTES: u64 = 16 * KIB;
/// A declared overhead above this multiple of the measured memory would waste memory.
const GENEROSITY: u64 = 4;
/// How long the processor time of idle shims is measured.
const WINDOW: Duration = Duration::from_secs(15);

const IDLE: &str = "
apiVersion: apps/v1
kind: Deployment
metadata: {name: idle}
spec:
  replicas: 5
  selector: {matchLabels: {app: idle}}
  template:
    metadata: {labels: {app: idle}}
    spec:
      runtimeClassName: skiff
      containers: [{name: web, image: 'localhost:5000/examples/http:1'}]
";

/// Idle pods, and their shims.
struct Idle {
    namespace: Namespace<'static>,
    shims: Vec<u64>,
}

impl Idle {
    fn begin() -> Self {
        let namespace = Cluster::shared().namespace();
        namespace.apply(IDLE);
        namespace.kubectl(&["rollout", "status", "deployment/idle", "--timeout=120s"]);
        let cluster = namespace.cluster;
        let sandboxes = cluster.run("crictl", &["pods", "--quiet", "--namespace", &namespace.name]);
        let shim = |sandbox: &str| {
            let inspected: Value = serde_json::from_str(&cluster.run("crictl", &["inspectp", sandbox])).unwrap();
            // The sandbox is the shim. The process that stands in its cgroup is a 30th of it.
            inspected["info"]["pid"].as_u64().unwrap()
        };
        let shims: Vec<_> = sandboxes.lines().map(shim).collect();
        assert_eq!(shims.len(), PODS);
        Self { namespace, shims }
    }

    /// The sum over all shims of what `script` prints of one, whose folder in `/proc` is its first argument.
    fn sum(&self, script: &str) -> u64 {
        let folders = self.shims.iter().map(|pid| format!("/proc/{pid}"));
        let script = format!("for folder in \"$@\"; do {script}; done");
        let mut words = vec!["sh".to_owned(), "-c".to_owned(), script, "sh".to_owned()];
        words.extend(folders);
        let words: Vec<_> = words.iter().map(String::as_str).collect();
        let said = self.namespace.cluster.run("in-node", &words);
        said.split_whitespace().map(|number| number.parse::<u64>().unwrap()).sum()
    }
}

/// The overhead that the cluster's RuntimeClass declares: bytes, and thousandths of a processor.
fn declared() -> (u64, u64) {
    let class = Cluster::shared().get(&["runtimeclass", "skiff"]);
    let overhead = &class["overhead"]["podFixed"];
    let number = |name: &str, unit: &str| {
        let text = overhead[name].as_str().unwrap_or_else(|| panic!("no overhead: {class:#}"));
        text.strip_suffix(unit).unwrap_or_else(|| panic!("{name} is not in {unit}: {text}")).parse::<u64>().unwrap()
    };
    (number("memory", "Mi") * MIB, number("cpu", "m"))
}

#[test]
fn the_cluster_has_the_class_of_the_manifest() {
    let file = Path::new(env!("CARGO_MANIFEST_DIR")).join("../runtime-class/manifests/skiff.yaml");
    let cluster = Cluster::shared();
    let words = ["create", "--dry-run=client", "-o", "json", "-f", file.to_str().unwrap()];
    let manifest: Value = serde_json::from_str(&cluster.kubectl(&words)).unwrap();
    let class = cluster.get(&["runtimeclass", "skiff"]);
    for field in ["handler", "overhead", "scheduling"] {
        assert_eq!(class[field], manifest[field], "{field}");
    }
}

#[test]
fn the_overhead_covers_the_memory_of_a_shim_and_not_much_more() {
    let idle = Idle::begin();
    let pods = idle.namespace.get(&["pods"]);
    let (memory, cpu) = declared();
    for pod in pods["items"].as_array().unwrap() {
        let overhead = &pod["spec"]["overhead"];
        assert_eq!(overhead["memory"], format!("{}Mi", memory / MIB), "{overhead}");
        assert_eq!(overhead["cpu"], format!("{cpu}m"), "{overhead}");
    }
    let pss = idle.sum("sed -n 's/^Pss: *\\([0-9]*\\) kB/\\1/p' \"$folder/smaps_rollup\"") * KIB;
    let tables = idle.sum("sed -n 's/^VmPTE:[[:space:]]*\\([0-9]*\\) kB/\\1/p' \"$folder/status\"") * KIB;
    let stacks = idle.sum("ls \"$folder/task\" | wc -l") * STACK_BYTES;
    let measured = (pss + tables + stacks) / PODS as u64;
    let parts =
        format!("{measured} bytes of {memory}: PSS {pss}, page tables {tables}, stacks {stacks} of {PODS} pods");
    assert!(measured <= memory, "{parts}");
    assert!(memory <= GENEROSITY * measured, "{parts}");
}

#[test]
fn the_overhead_covers_the_processor_time_of_an_idle_shim() {
    let idle = Idle::begin();
    // The first field is the time on a processor, in nanoseconds.
    let spent = || idle.sum("cut -d ' ' -f 1 \"$folder\"/task/*/schedstat");
    // A shim that has just started a container looks for orphans twice before it rests.
    let started = Instant::now();
    until(WINDOW * 2, || started.elapsed() >= WINDOW);
    let (before, begun) = (spent(), Instant::now());
    until(WINDOW * 2, || begun.elapsed() >= WINDOW);
    let (after, took) = (spent(), begun.elapsed());
    let (_, declared) = declared();
    let limit = u128::from(declared) * took.as_nanos() / 1000;
    let each = u128::from(after - before) / PODS as u128;
    assert!(each <= limit, "{each} ns of {limit} in {took:?}");
}
