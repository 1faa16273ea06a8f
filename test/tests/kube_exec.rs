//! Commands in running pods, as `kubectl exec` and `kubectl cp` give them: wasm, native programs, and neither.

use std::fs;
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use skiff_test::{Cluster, Namespace, Outcome, container, files_below, mostly, until, wasm_pod};

/// As much as containerd's and Kubernetes' own tests send through an exec.
const LARGE: usize = 10 << 20;

/// A namespace with a pod of this image that runs until it is deleted.
fn running(image: &str) -> Namespace<'static> {
    let namespace = Cluster::shared().namespace();
    namespace.start(&wasm_pod("main", &[container("main", image, json!({}))]));
    namespace
}

/// The kubelet reports the code of a command that fails at the end of its standard error.
fn assert_outcome(outcome: &Outcome, code: u32, stdout: &str, stderr: &str) {
    assert_eq!((outcome.code, outcome.stdout.as_str()), (code, stdout), "{outcome:?}");
    assert!(outcome.stderr.contains(stderr), "{stderr:?} is not in {outcome:?}");
}

#[test]
fn a_command_is_wasm_or_native_and_ends_with_its_own_code() {
    let namespace = running("mixed");
    let rows: [(&[&str], u32, &str, &str); 12] = [
        (&["/wasm/hello.wasm"], 0, "hello\n", ""),
        (&["hello.wasm"], 0, "hello\n", ""),
        (&["hello"], 0, "hello\n", ""),
        (&["wasm/hello.wasm", "exit", "7"], 7, "", "exit code 7"),
        (&["hello", "args", "it's \"quoted\"", "", "$HOME; *"], 0, "hello\nargs\nit's \"quoted\"\n\n$HOME; *\n", ""),
        (&["trap"], 134, "about to trap\n", "trapped: wasm `unreachable` instruction executed"),
        (&["/bin/busybox", "echo", "native"], 0, "native\n", ""),
        (&["echo", "it's \"quoted\"", ""], 0, "it's \"quoted\" \n", ""),
        (&["sh", "-c", "echo out; echo err >&2; exit 3"], 3, "out\n", "err\n"),
        (&["sh", "-c", "kill -9 $$"], 137, "", ""),
        (&["nonsense"], 127, "", "`nonsense`"),
        (&["/bin"], 127, "", "/bin"),
    ];
    for (command, code, stdout, stderr) in rows {
        assert_outcome(&namespace.exec("main", command), code, stdout, stderr);
    }
    let said = namespace.exec("main", &["nonsense"]).stderr;
    for form in ["wasm", "native", "invoke", "skiff"] {
        assert!(said.contains(form), "`{form}` is not among what would work: {said}");
    }
    assert_eq!(namespace.get(&["pod/main"])["status"]["containerStatuses"][0]["restartCount"], 0);
}

#[test]
fn a_command_has_the_containers_environment_files_and_limits() {
    let namespace = Cluster::shared().namespace();
    let fields = json!({
        "env": [{"name": "COLOUR", "value": "blue"}], "workingDir": "/wasm",
        "resources": {"limits": {"memory": "64Mi"}}, "securityContext": {"runAsUser": 1000, "runAsGroup": 1000},
        "volumeMounts": [{"name": "data", "mountPath": "/data"}],
    });
    let mut pod = wasm_pod("main", &[container("main", "mixed", fields)]);
    pod["spec"]["volumes"] = json!([{"name": "data", "emptyDir": {}}]);
    namespace.start(&pod);
    for (command, stdout) in [
        (&["hello", "env", "COLOUR"][..], "blue\n"),
        (&["./hello.wasm", "env", "PWD"], "/wasm\n"),
        (&["id", "-u"], "1000\n"),
        (&["sh", "-c", "echo from the shell > /data/note; cat /data/note"], "from the shell\n"),
    ] {
        assert_outcome(&namespace.exec("main", command), 0, stdout, "");
    }
}

#[test]
fn input_and_output_of_any_size_go_through() {
    let namespace = running("mixed");
    let line = "0123456789abcde\n";
    let input = line.repeat(LARGE / line.len());
    for program in ["cat.wasm", "/bin/cat"] {
        let outcome = namespace.outcome(&["exec", "-i", "main", "--", program], input.as_bytes());
        assert!(outcome.code == 0 && outcome.stdout == input, "{program}: {} of {LARGE} bytes", outcome.stdout.len());
    }
    let outcome = namespace.exec("main", &["flood", "10"]);
    assert_eq!((outcome.code, outcome.stdout.len()), (0, LARGE), "{}", outcome.stderr);
    let outcome = namespace.outcome(&["exec", "-i", "main", "--", "cat"], b"");
    assert_outcome(&outcome, 0, "", "");
}

#[test]
fn files_are_copied_to_a_container_with_tar_and_back() {
    let namespace = running("mixed");
    let home = tempfile::tempdir().unwrap();
    let [there, back] = ["there", "back"].map(|name| home.path().join(name));
    // Not compressible, and not text.
    let content: Vec<u8> =
        (0..u32::try_from(LARGE).unwrap() / 4).flat_map(|n| n.wrapping_mul(2_654_435_761).to_le_bytes()).collect();
    fs::write(&there, &content).unwrap();
    namespace.kubectl(&["cp", there.to_str().unwrap(), "main:/tmp/file"]);
    namespace.kubectl(&["cp", "main:/tmp/file", back.to_str().unwrap()]);
    assert!(fs::read(&back).unwrap() == content, "the file is the same");
    let folder = home.path().join("folder");
    namespace.kubectl(&["cp", "main:/wasm", folder.to_str().unwrap()]);
    assert_eq!(files_below(&folder).len(), 5);
}

#[test]
fn files_are_read_from_a_container_without_tar() {
    let namespace = running("http");
    let outcome = namespace.exec("main", &["skiff", "ls", "/"]);
    assert!(outcome.code == 0 && outcome.stdout.contains("http.wasm"), "{outcome:?}");
    let mut kubectl = namespace.client();
    let output = kubectl.args(["exec", "main", "--", "skiff", "cat", "/http.wasm"]).output().unwrap();
    assert!(output.status.success(), "{output:?}");
    let original = fs::read(skiff_test::guest("rust-p2-http")).unwrap();
    assert!(output.stdout == original, "{} of {} bytes", output.stdout.len(), original.len());
    let missing = namespace.exec("main", &["skiff", "cat", "/missing"]);
    assert_outcome(&missing, 1, "", "missing");
}

/// The processes of the node that are in the cgroups of a pod.
fn processes_of(pod: &Value) -> String {
    let uid = pod["metadata"]["uid"].as_str().unwrap();
    // With `systemd` as the cgroup driver, a uid has underscores in names of cgroups.
    let script = "grep -lE \"$1|$2\" /proc/[0-9]*/cgroup 2> /dev/null | grep -v \"/proc/$$/\" || true";
    Cluster::shared().run("in-node", &["sh", "-c", script, "sh", uid, &uid.replace('-', "_")])
}

#[test]
fn a_pod_that_is_deleted_takes_its_commands_along() {
    let namespace = running("mixed");
    let pod = namespace.get(&["pod/main"]);
    let commands = [&["sleep.wasm"][..], &["sh", "-c", "echo sleeping; sleep 3600"]];
    let running = commands.map(|command| namespace.lasting(&[&["exec", "main", "--"], command].concat()));
    running.iter().for_each(|command| command.expect("sleeping\n"));
    assert!(processes_of(&pod).lines().count() >= 4, "guest, two commands and what keeps the sandbox");
    namespace.kubectl(&["delete", "pod", "main", "--grace-period=1"]);
    for command in running {
        command.end().expect_err("it was killed");
    }
    namespace.eventually("no process of the pod", || processes_of(&pod).is_empty().then_some(()));
    let id = pod["status"]["containerStatuses"][0]["containerID"].as_str().unwrap();
    let id = id.trim_start_matches("containerd://");
    let left = "ls -d /run/containerd/io.containerd.runtime.v2.task/k8s.io/$1 2> /dev/null || true";
    assert_eq!(namespace.cluster.run("in-node", &["sh", "-c", left, "sh", id]), "");
}

#[test]
fn a_client_that_goes_away_takes_its_command_along_as_with_native_containers() {
    let namespace = running("mixed");
    let mut cat = namespace.lasting(&["exec", "-i", "main", "--", "cat.wasm"]);
    cat.write("here\n");
    cat.expect("here\n");
    drop(cat);
    // Its input has ended.
    let pod = namespace.get(&["pod/main"]);
    let is_alone = || {
        let script = "ps | grep -c '/proc/self/fd/[3]' || true";
        namespace.exec("main", &["sh", "-c", script]).stdout == "1\n"
    };
    assert!(until(Duration::from_secs(60), is_alone), "{}", processes_of(&pod));
}

#[test]
fn many_commands_run_at_once() {
    let namespace = running("mixed");
    let commands = [&["hello"][..], &["echo", "hello"], &["nonsense"]];
    std::thread::scope(|scope| {
        let run = |number: usize| {
            let command = commands[number % commands.len()];
            let namespace = &namespace;
            (command, scope.spawn(move || namespace.exec("main", command)))
        };
        for (command, outcome) in (0..12).map(run).collect::<Vec<_>>() {
            let (code, stdout) = if command == ["nonsense"] { (127, "") } else { (0, "hello\n") };
            assert_outcome(&outcome.join().unwrap(), code, stdout, "");
        }
    });
}

/// How long commands in pods take that are run in turns: the shortest of several times each, which other load disturbs least.
fn shortest(namespace: &Namespace<'_>, commands: [(&str, &str); 3]) -> [Duration; 3] {
    let mut shortest = [Duration::MAX; 3];
    for _ in 0..11 {
        for ((pod, command), shortest) in commands.iter().zip(&mut shortest) {
            let since = Instant::now();
            assert_eq!(namespace.exec(pod, &[command]).code, 0);
            *shortest = since.elapsed().min(*shortest);
        }
    }
    shortest
}

#[test]
fn a_command_in_a_wasm_container_takes_little_longer_than_one_in_a_native_container() {
    let namespace = running("mixed");
    let native = container("main", "busybox", json!({"command": ["sleep", "3600"]}));
    let mut native = wasm_pod("native", &[native]);
    native["spec"].as_object_mut().unwrap().remove("runtimeClassName");
    namespace.start(&native);
    // The benchmark measures it (25 ms at most, without kubectl): this is for what waits for something, or compiles each time.
    mostly(
        || {
            let took = shortest(&namespace, [("native", "true"), ("main", "true"), ("main", "hello")]);
            println!(
                "`kubectl exec` of `true` in a native container, of `true` and a module in a wasm container: {took:?}"
            );
            took
        },
        |took| took.iter().all(|each| *each <= took[0] + Duration::from_millis(100)),
    );
}

#[test]
fn functions_of_a_running_guest_are_called() {
    let namespace = running("reactor");
    let call = |expression: &str| namespace.exec("main", &["invoke", expression]);
    assert_outcome(&call("add(1, 2)"), 0, "3\n", "");
    assert_outcome(&call("counter()"), 0, "1\n", "");
    assert_outcome(&call("counter()"), 0, "2\n", "");
    assert_outcome(&call("half(5)"), 0, "2.5\n", "");
    let outcome = namespace.outcome(&["exec", "-i", "main", "--", "invoke"], b"add(1, 2)\nadd(3, 4)\n");
    assert_outcome(&outcome, 0, "3\n7\n", "");
    let list = namespace.exec("main", &["invoke"]);
    assert!(list.code == 0 && list.stdout.contains("add") && list.stdout.contains("counter"), "{list:?}");
    let refused = call("gone()");
    assert!(refused.code != 0 && refused.stderr.contains("gone"), "{refused:?}");
}

#[test]
fn functions_of_a_component_take_and_return_values_of_its_types() {
    let namespace = running("values");
    let shop = "guests:values/shop";
    let item =
        "{name: \"nail\", count: 3, colour: red, rights: {read, run}, shape: rectangle((1, 2)), note: some(\"x\")}";
    let rows = [
        ("initial(\"über\")".to_owned(), 0, "some('ü')\n".to_owned(), ""),
        ("divide(7, 2)".into(), 0, "ok(3)\n".into(), ""),
        ("divide(7, 0)".into(), 1, String::new(), "cannot divide 7 by 0"),
        (format!("{shop}#put({item})"), 0, "ok(1)\n".into(), ""),
        (format!("{shop}#get(\"nail\")"), 0, format!("some({item})\n"), ""),
        (format!("{shop}#names()"), 0, "[\"nail\"]\n".into(), ""),
    ];
    for (expression, code, stdout, stderr) in rows {
        assert_outcome(&namespace.exec("main", &["invoke", &expression]), code, &stdout, stderr);
    }
}
