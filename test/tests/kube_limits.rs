//! The limits of wasm pods as Kubernetes sets, changes and shows them, on either version of cgroups.

use serde_json::{Value, json};
use skiff_test::{Cluster, Namespace, container, status_of, wasm_pod};

const MIB: u64 = 1 << 20;

fn namespace() -> Namespace<'static> {
    Cluster::shared().namespace()
}

/// Limits so low that the pods of all tests together fit on a node with one processor.
fn limits(memory_mib: u64, cpu: &str) -> Value {
    let memory = format!("{memory_mib}Mi");
    json!({"limits": {"memory": memory, "cpu": cpu}, "requests": {"memory": memory, "cpu": "10m"}})
}

/// Changes the limits of a running pod's container `main`.
fn resize(namespace: &Namespace<'_>, pod: &str, memory_mib: u64, cpu: &str) {
    let patch = json!({"spec": {"containers": [{"name": "main", "resources": limits(memory_mib, cpu)}]}});
    namespace.kubectl(&["patch", "pod", pod, "--subresource", "resize", "-p", &patch.to_string()]);
}

/// The limits of a container in the kernel: bytes of memory, and microseconds of processor time in each period.
fn kept_to(pod: &Value) -> (u64, u64, u64) {
    let cluster = Cluster::shared();
    let id = status_of(pod, "main")["containerID"].as_str().unwrap().trim_start_matches("containerd://");
    let inspected: Value = serde_json::from_str(&cluster.run("crictl", &["inspect", id])).unwrap();
    let script = r#"
        where() { sed -n "s/^[0-9]*:$1://p" "/proc/$pid/cgroup"; }
        if [ -f /sys/fs/cgroup/cgroup.controllers ]; then
            here=/sys/fs/cgroup$(where ""); cat "$here/memory.max" "$here/cpu.max"
        else
            cat "/sys/fs/cgroup/memory$(where memory)/memory.limit_in_bytes"
            here=/sys/fs/cgroup/cpu$(where '[a-z,]*cpu\(,[a-z,]*\)*'); cat "$here/cpu.cfs_quota_us" "$here/cpu.cfs_period_us"
        fi"#;
    let script = format!("pid={}; {script}", inspected["info"]["pid"]);
    let said = cluster.run("in-node", &["sh", "-c", &script]);
    let numbers: Vec<u64> = said.split_whitespace().map(|word| word.parse().expect(&said)).collect();
    (numbers[0], numbers[1], numbers[2])
}

/// Sends a request to the guest.
fn ask(pod: &Value, path: &str) -> String {
    let address = pod["status"]["podIP"].as_str().unwrap();
    Cluster::shared().run("in-net", &["curl", "-sS", &format!("http://{address}:8080{path}")])
}

/// The pod in the kubelet's summary, once `is_right` holds for it.
fn summary(namespace: &Namespace<'_>, pod: &str, mut is_right: impl FnMut(&Value) -> bool) -> Value {
    let path = format!("/api/v1/nodes/{}/proxy/stats/summary", Cluster::shared().node());
    namespace.eventually("the summary of the pod", || {
        let summary: Value = serde_json::from_str(&namespace.kubectl(&["get", "--raw", &path])).unwrap();
        let is_it = |entry: &&Value| entry["podRef"]["name"] == pod && entry["podRef"]["namespace"] == *namespace.name;
        summary["pods"].as_array()?.iter().find(is_it).filter(|found| is_right(found)).cloned()
    })
}

/// The container in a pod's summary.
fn of_main(summary: &Value) -> &Value {
    summary["containers"].as_array().and_then(|containers| containers.first()).unwrap_or(&Value::Null)
}

#[test]
fn a_guest_out_of_memory_is_oom_killed() {
    let namespace = namespace();
    let fields = |args: &[&str]| json!({"args": args, "resources": limits(64, "500m"), "terminationMessagePolicy": "FallbackToLogsOnError"});
    let data = json!([{"name": "data", "mountPath": "/data"}]);
    // Files in memory count as memory of the container.
    let mut fills = fields(&["/data/file"]);
    fills["volumeMounts"] = data;
    fills["terminationMessagePolicy"] = json!("File");
    let mut description = wasm_pod(
        "killed",
        &[
            container("gives-up", "c-grow", fields(&["abort"])),
            container("fills", "c-fill", fills),
            container("copes", "c-grow", fields(&["on"])),
        ],
    );
    description["spec"]["volumes"] = json!([{"name": "data", "emptyDir": {"medium": "Memory"}}]);
    let ended = namespace.run(&description);
    let state = |name: &str| status_of(&ended, name)["state"]["terminated"].clone();
    for (name, sentence) in
        [("gives-up", "ran out of memory"), ("fills", "killed by the kernel at its memory limit of")]
    {
        let state = state(name);
        assert_eq!((&state["reason"], &state["exitCode"]), (&json!("OOMKilled"), &json!(137)), "{name}: {state}");
        let message = state["message"].as_str().unwrap();
        assert!(message.contains(sentence) && message.contains("67108864"), "{name}: {message}");
    }
    assert_eq!((&state("copes")["reason"], &state("copes")["exitCode"]), (&json!("Completed"), &json!(0)));
    assert_eq!(namespace.logs(&["killed", "-c", "copes"]), "refused after 59 MiB\n");
}

#[test]
fn the_limit_of_a_whole_pod_bounds_its_guest() {
    let namespace = namespace();
    let mut description = wasm_pod("bound", &[container("main", "c-grow", json!({"args": ["on"]}))]);
    description["spec"]["resources"] = limits(32, "500m");
    let ended = namespace.run(&description);
    let state = &status_of(&ended, "main")["state"]["terminated"];
    assert_eq!(state["exitCode"], 0, "{state}");
    let said = namespace.logs(&["bound"]);
    let mib = said.trim_start_matches("refused after ").trim_end_matches(" MiB\n").parse::<u64>().expect(&said);
    assert!((20..32).contains(&mib), "{said}");
}

#[test]
fn annotations_of_the_pod_bound_its_guests() {
    let namespace = namespace();
    let containers = [
        container("timed", "c-sleep", json!({})),
        container("small", "c-grow", json!({"args": ["on", "1"], "resources": limits(64, "500m")})),
    ];
    let mut description = wasm_pod("bound", &containers);
    description["metadata"]["annotations"] =
        json!({"timed.limits.skiff.dev/run-time": "1s", "limits.skiff.dev/memory-pages": "64"});
    let ended = namespace.run(&description);
    assert_eq!(status_of(&ended, "timed")["state"]["terminated"]["exitCode"], 143, "{ended:#}");
    assert_eq!(namespace.logs(&["bound", "-c", "small"]), "refused after 3 MiB\n");
}

#[test]
fn a_resize_reaches_the_running_guest() {
    let namespace = namespace();
    namespace.start(&wasm_pod("web", &[container("main", "http", json!({"resources": limits(64, "500m")}))]));
    let before = namespace.get(&["pod/web"]);
    assert_eq!(kept_to(&before), (64 * MIB, 50_000, 100_000));
    assert!(ask(&before, "/grow?mib=100").starts_with("refused after"));
    for (memory_mib, cpu, quota, grows) in [(256, "800m", 80_000, true), (96, "300m", 30_000, false)] {
        resize(&namespace, "web", memory_mib, cpu);
        // Not the pod's status: after two resizes in a row the kubelet may report the first one for minutes.
        let resized = (memory_mib * MIB, quota, 100_000);
        namespace.eventually("the new limits", || (kept_to(&before) == resized).then_some(()));
        let answer = ask(&before, "/grow?mib=100");
        assert!(
            answer.starts_with(if grows { "grew 100 MiB" } else { "refused after" }),
            "at {memory_mib} MiB: {answer}"
        );
        let after = namespace.get(&["pod/web"]);
        let [status, old] = [&after, &before].map(|pod| status_of(pod, "main"));
        assert_eq!((&status["restartCount"], &status["containerID"]), (&json!(0), &old["containerID"]));
    }
}

#[test]
fn a_resize_below_what_is_in_use_is_refused() {
    let namespace = namespace();
    let fields = json!({"args": ["wait", "16", "40"], "stdin": true, "resources": limits(64, "500m")});
    namespace.start(&wasm_pod("holds", &[container("main", "c-grow", fields)]));
    namespace.eventually("what the guest takes", || (namespace.logs(&["holds"]) == "grew 40 MiB\n").then_some(()));
    resize(&namespace, "holds", 16, "500m");
    let is_refused = |condition: &Value| {
        condition["type"] == "PodResizeInProgress"
            && condition["message"].as_str().is_some_and(|message| message.contains("below current usage"))
    };
    let pod =
        namespace.watch("pod/holds", |pod| pod["status"]["conditions"].as_array().unwrap().iter().any(is_refused));
    let status = status_of(&pod, "main");
    assert_eq!((&status["restartCount"], &status["resources"]["limits"]["memory"]), (&json!(0), &json!("64Mi")));
    assert_eq!(kept_to(&pod).0, 64 * MIB);
    // It runs on, and can grow up to the old limit.
    let mut attached = namespace.lasting(&["attach", "-i", "holds"]);
    attached.write("10\n");
    attached.expect("grew 50 MiB\n");
}

#[test]
fn a_guest_that_spins_gets_the_share_that_its_limit_says() {
    let namespace = namespace();
    let mut resources = limits(64, "200m");
    // On a busy node a container may not get its share.
    resources["requests"]["cpu"] = json!("200m");
    namespace.start(&wasm_pod("spins", &[container("main", "c-spin", json!({"resources": resources}))]));
    // The time of the measurement, and what the guest had used by then.
    let nanos = |summary: &Value| {
        let cpu = &of_main(summary)["cpu"];
        let [taken, time] = [&cpu["usageCoreNanoSeconds"], &cpu["time"]];
        Some((taken.as_u64().filter(|taken| *taken > 0)?, time.as_str()?.to_string()))
    };
    let first = summary(&namespace, "spins", |summary| nanos(summary).is_some());
    let (taken_before, time_before) = nanos(&first).unwrap();
    let second = summary(&namespace, "spins", |summary| {
        nanos(summary).is_some_and(|(_, time)| seconds_between(&time_before, &time) >= 8)
    });
    let (taken, time) = nanos(&second).unwrap();
    let share = (taken - taken_before) / seconds_between(&time_before, &time) / 1_000_000;
    // Thousandths of a processor. A busy node may give less than the limit; the times are in whole seconds.
    assert!((20..=240).contains(&share), "{share} of 1000");
    let shown = of_main(&second)["cpu"]["usageNanoCores"].as_u64().unwrap() / 1_000_000;
    assert!((20..=240).contains(&shown), "{shown} of 1000");
}

/// The seconds from one time of the same day, or the next, to another: `2026-01-01T10:20:30Z`.
fn seconds_between(from: &str, to: &str) -> u64 {
    let of_day = |time: &str| {
        let clock = time.split_once('T').expect(time).1.trim_end_matches('Z');
        clock.split(':').fold(0, |sum, part| sum * 60 + part.parse::<u64>().expect(time))
    };
    (of_day(to) + 86400 - of_day(from)) % 86400
}

#[test]
fn the_figures_of_a_pod_are_the_guests() {
    let namespace = namespace();
    let fields = json!({"args": ["wait", "16", "40"], "stdin": true, "resources": limits(64, "500m")});
    namespace.start(&wasm_pod("holds", &[container("main", "c-grow", fields)]));
    // Between the pages that the guest has written to and the container's limit.
    let range = 40 * MIB..=64 * MIB;
    let is_in = |value: &Value| value.as_u64().is_some_and(|bytes| range.contains(&bytes));
    // The kubelet looks for a sandbox container to tell the network of a pod (docs/configuration.md, The Sandbox API).
    let has_network = std::env::var("SKIFF_SANDBOXER").as_deref() != Ok("shim");
    let found = summary(&namespace, "holds", |summary| {
        let memory = &of_main(summary)["memory"];
        is_in(&memory["workingSetBytes"])
            && is_in(&memory["usageBytes"])
            && is_in(&summary["memory"]["workingSetBytes"])
            && summary["network"].is_object() == has_network
    });
    let (main, network) = (of_main(&found), &found["network"]);
    assert_eq!(main["name"], "main");
    let memory = &main["memory"];
    let sum = memory["availableBytes"].as_u64().unwrap() + memory["workingSetBytes"].as_u64().unwrap();
    assert_eq!(sum, 64 * MIB, "{memory}");
    assert!(main["cpu"]["usageCoreNanoSeconds"].as_u64().unwrap() > 0, "{main}");
    assert!(!has_network || (network["name"] == "eth0" && network["rxBytes"].is_u64()), "{network}");
    // metrics-server reads this for `kubectl top`.
    let path = format!("/api/v1/nodes/{}/proxy/metrics/resource", Cluster::shared().node());
    let metrics = namespace.kubectl(&["get", "--raw", &path]);
    let of_pod = format!("namespace=\"{}\",pod=\"holds\"}} ", namespace.name);
    let of_container = format!("{{container=\"main\",{of_pod}");
    let value = |name: &str, labels: &str| {
        let line = metrics.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(labels));
        let line = line.unwrap_or_else(|| panic!("there is no {name}{labels} in {metrics}"));
        line.split(' ').next().unwrap().parse::<f64>().unwrap()
    };
    let range = 40.0 * MIB as f64..=64.0 * MIB as f64;
    assert!(range.contains(&value("container_memory_working_set_bytes", &of_container)));
    assert!(range.contains(&value("pod_memory_working_set_bytes", &format!("{{{of_pod}"))));
    assert!(value("container_cpu_usage_seconds_total", &of_container) > 0.0);
    assert!(value("container_start_time_seconds", &of_container) > 1.0e9);
}
