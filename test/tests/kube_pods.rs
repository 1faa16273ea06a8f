//! What users do with pods, with wasm in them: logs, attach, describe, exit codes, restarts, hooks, deletion.

use std::fs;

use serde_json::{Value, json};
use skiff_test::{Cluster, Lasting, Namespace, container, status_of, wasm_pod};

/// Keeps a deleted pod's last status readable.
const FINALIZER: &str = "test.skiff.dev/kept";

fn namespace() -> Namespace<'static> {
    Cluster::shared().namespace()
}

/// A pod of one container, `main`.
fn pod(name: &str, image: &str, fields: Value) -> Value {
    wasm_pod(name, &[container("main", image, fields)])
}

/// The output of `kubectl describe` for a pod once it contains all of `parts`, its columns separated by one space. Events arrive late.
fn described(namespace: &Namespace<'_>, pod: &str, parts: &[&str]) -> String {
    namespace.eventually(&format!("a description of {pod} with {parts:?}"), || {
        let text = namespace.kubectl(&["describe", "pod", pod]);
        let words = text.lines().map(|line| line.split_whitespace().collect::<Vec<_>>().join(" ") + "\n");
        Some(words.collect::<String>()).filter(|text| parts.iter().all(|part| text.contains(part)))
    })
}

fn assert_holds(text: &str, parts: &[&str]) {
    for part in parts {
        assert!(text.contains(part), "there is no {part:?} in {text}");
    }
}

#[test]
fn logs_come_while_the_guest_runs_and_end_with_it() {
    let namespace = namespace();
    namespace.start(&pod("cat", "c-cat", json!({"stdin": true, "stdinOnce": true})));
    let followed = namespace.lasting(&["logs", "-f", "cat"]);
    let mut attached = namespace.lasting(&["attach", "-i", "cat"]);
    attached.write("one\n");
    followed.expect("one\n");
    attached.expect("one\n");
    assert_eq!(namespace.get(&["pod/cat"])["status"]["phase"], "Running");
    assert_eq!(namespace.logs(&["cat"]), "one\n");
    attached.write("two\n");
    followed.expect("two\n");
    attached.close();
    assert_eq!(followed.end().unwrap(), "one\ntwo\n");
    assert_eq!(namespace.ended("cat")["reason"], "Completed");
    assert_eq!(namespace.logs(&["cat", "--tail=1"]), "two\n");
    for line in namespace.logs(&["cat", "--timestamps"]).lines() {
        let (time, text) = line.split_once(' ').unwrap();
        assert!(time.starts_with("20") && time.contains('T') && ["one", "two"].contains(&text), "{line}");
    }
}

#[test]
fn a_command_that_is_run_by_hand_reads_standard_input() {
    let namespace = namespace();
    let overrides = r#"{"spec": {"runtimeClassName": "skiff"}}"#;
    let image = "--image=localhost:5000/examples/c-cat:1";
    let words =
        ["run", "cat", "-i", "--rm", "--quiet", "--restart=Never", "--pod-running-timeout=2m", image, "--overrides"];
    let mut run = namespace.lasting(&[&words[..], &[overrides]].concat());
    run.write("typed by hand\n");
    run.close();
    assert_eq!(run.end().unwrap(), "typed by hand\n");
}

#[test]
fn describe_shows_a_running_guest_and_what_led_to_it() {
    let namespace = namespace();
    let fields =
        json!({"ports": [{"containerPort": 8080}], "readinessProbe": {"httpGet": {"path": "/", "port": 8080}}});
    namespace.start(&pod("web", "http", fields));
    let state = [
        "Runtime Class Name: skiff\n",
        "Status: Running\n",
        "State: Running\n",
        "Ready: True\n",
        "Restart Count: 0\n",
        "Image: localhost:5000/examples/http:1\n",
        "Port: 8080/TCP\n",
        "ContainersReady True\n",
    ];
    let events = ["Normal Scheduled ", "Normal Pulled ", "Normal Created ", "Normal Started "];
    let text = described(&namespace, "web", &[&state[..], &events].concat());
    assert!(!text.contains("Warning Failed "), "{text}");
}

#[test]
fn every_end_has_its_exit_code() {
    let namespace = namespace();
    let rows: [(&str, &str, &[&str], u64, &str); 6] = [
        ("success", "c-hello", &[], 0, "Completed"),
        ("exit", "c-hello", &["exit", "7"], 7, "Error"),
        ("return", "c-hello", &["return", "255"], 255, "Error"),
        ("unreachable", "c-trap", &[], 134, "Error"),
        ("divide", "c-trap", &["divide"], 134, "Error"),
        ("component", "command", &["fail"], 1, "Error"),
    ];
    let containers = rows.map(|(name, image, args, ..)| container(name, image, json!({"args": args})));
    let ended = namespace.run(&wasm_pod("ends", &containers));
    assert_eq!(ended["status"]["phase"], "Failed");
    for (name, _, _, code, reason) in rows {
        let state = &status_of(&ended, name)["state"]["terminated"];
        assert_eq!((&state["exitCode"], &state["reason"]), (&json!(code), &json!(reason)), "{name}: {state}");
    }
}

#[test]
fn a_pod_with_a_deadline_ends_at_it() {
    let namespace = namespace();
    let mut description = pod("late", "c-sleep", json!({}));
    description["spec"]["activeDeadlineSeconds"] = json!(3);
    let ended = namespace.run(&description);
    assert_eq!(ended["status"]["reason"], "DeadlineExceeded");
    described(&namespace, "late", &["Reason: DeadlineExceeded\n", "longer than the specified deadline\n"]);
    // The guest ends after the pod's phase is reported.
    let ended = namespace.watch("pod/late", |pod| status_of(pod, "main")["state"]["terminated"].is_object());
    assert_eq!(status_of(&ended, "main")["state"]["terminated"]["exitCode"], 143, "{ended:#}");
}

#[test]
fn a_crash_loop_says_why() {
    let namespace = namespace();
    // The policy changes nothing where the engine leaves a reason.
    let mut description = pod("trap", "c-trap", json!({"terminationMessagePolicy": "FallbackToLogsOnError"}));
    description["spec"]["restartPolicy"] = json!("Always");
    namespace.make(&description);
    let looping = namespace.watch("pod/trap", |pod| {
        let status = status_of(pod, "main");
        status["state"]["waiting"]["reason"] == "CrashLoopBackOff" && status["restartCount"] != 0
    });
    let sentence = "skiff: /c-trap.wasm trapped: wasm `unreachable` instruction executed, in innermost";
    let last = &status_of(&looping, "main")["lastState"]["terminated"];
    assert_eq!((&last["exitCode"], &last["reason"]), (&json!(134), &json!("Error")), "{last}");
    assert_eq!(last["message"], sentence, "{last}");
    let back_off = "Back-off restarting failed container main in pod trap";
    // Between two syncs the kubelet shows `Terminated` or `Waiting`, for native containers too.
    described(&namespace, "trap", &["Reason: Error\n", "Exit Code: 134\n", sentence, back_off]);
    // When a run ends, the kubelet removes the one before, and for a moment still names it as the previous one.
    let parts = ["about to trap\n", sentence, "!middle\n", "!outermost\n"];
    namespace.eventually("the log of the previous run", || {
        let log = namespace.logs(&["trap", "--previous"]);
        parts.iter().all(|part| log.contains(part)).then_some(())
    });
}

#[test]
fn what_cannot_start_says_why_in_the_pods_status() {
    let namespace = namespace();
    let modules = tempfile::tempdir().unwrap();
    let unknown = wat::parse_str(r#"(module (import "env" "missing" (func)) (func (export "_start")))"#).unwrap();
    let library = wat::parse_str(r#"(module (memory (export "memory") 1))"#).unwrap();
    let files: [(&str, &[u8]); 3] =
        [("corrupt.wasm", b"\0asm\x01\0\0\0garbage"), ("unknown.wasm", &unknown), ("library.wasm", &library)];
    for (name, bytes) in files {
        fs::write(modules.path().join(name), bytes).unwrap();
    }
    let from = format!("--from-file={}", modules.path().display());
    namespace.kubectl(&["create", "configmap", "modules", &from]);
    let rows = [
        ("corrupt", "`/modules/corrupt.wasm` is corrupt: unexpected end-of-file (at offset 0xa)"),
        ("unknown", "cannot link `/modules/unknown.wasm`: unknown import: `env::missing` has not been defined"),
        ("library", "`/modules/library.wasm` exports no function `_start`"),
        ("missing", "exec: \"/modules/missing.wasm\": stat /modules/missing.wasm: no such file or directory"),
        (
            "annotated",
            "the annotation `annotated.limits.skiff.dev/stacks` is `1Mi`, but there is no setting `stacks`, only `run-time`, ",
        ),
    ];
    let containers = rows.map(|(name, _)| {
        let command = if name == "annotated" { "/c-hello.wasm".into() } else { format!("/modules/{name}.wasm") };
        let mounts = json!([{"name": "modules", "mountPath": "/modules"}]);
        container(name, "c-hello", json!({"command": [command], "volumeMounts": mounts}))
    });
    let mut description = wasm_pod("refused", &containers);
    description["spec"]["restartPolicy"] = json!("Always");
    description["spec"]["volumes"] = json!([{"name": "modules", "configMap": {"name": "modules"}}]);
    description["metadata"]["annotations"] = json!({"annotated.limits.skiff.dev/stacks": "1Mi"});
    namespace.make(&description);
    let refused = namespace.watch("pod/refused", |pod| {
        rows.iter().all(|(name, _)| {
            let status = status_of(pod, name);
            let last = &status["lastState"]["terminated"];
            status["state"]["waiting"]["reason"] == "CrashLoopBackOff" && last.is_object()
        })
    });
    for (name, sentence) in rows {
        let last = &status_of(&refused, name)["lastState"]["terminated"];
        assert_eq!((&last["exitCode"], &last["reason"]), (&json!(128), &json!("StartError")), "{name}: {last}");
        assert_holds(last["message"].as_str().unwrap(), &[sentence]);
    }
    described(&namespace, "refused", &rows.map(|(_, sentence)| sentence));
    let said = ["get", "events", "--field-selector", "reason=Failed", "-o", "jsonpath={.items[*].message}"];
    namespace.eventually("events with all sentences", || {
        let said = namespace.kubectl(&said);
        rows.iter().all(|(_, sentence)| said.contains(sentence)).then_some(())
    });
}

#[test]
fn a_guest_leaves_its_last_words() {
    let namespace = namespace();
    let default = container("default", "files", json!({"args": ["write:/dev/termination-log=farewell"]}));
    let fields = json!({"args": ["write:/words=from its own path"], "terminationMessagePath": "/words"});
    let ended = namespace.run(&wasm_pod("words", &[default, container("own", "files", fields)]));
    for (name, message) in [("default", "farewell"), ("own", "from its own path")] {
        assert_eq!(status_of(&ended, name)["state"]["terminated"]["message"], message, "{ended:#}");
    }
}

#[test]
fn a_trap_is_in_the_pods_status_whatever_its_policy_and_path() {
    let namespace = namespace();
    let default = container("default", "c-trap", json!({}));
    let own = container("own", "c-trap", json!({"terminationMessagePath": "/words"}));
    let ended = namespace.run(&wasm_pod("last", &[default, own]));
    for name in ["default", "own"] {
        let message = &status_of(&ended, name)["state"]["terminated"]["message"];
        let sentence = "skiff: /c-trap.wasm trapped: wasm `unreachable` instruction executed, in innermost";
        assert_eq!(message, sentence, "{ended:#}");
    }
}

#[test]
fn a_guest_that_fails_is_started_again_until_it_succeeds() {
    let namespace = namespace();
    let mounts = json!([{"name": "data", "mountPath": "/data"}]);
    let args = ["read:/data/once", "write:/data/once=written before"];
    let mut description = pod("again", "files", json!({"args": args, "volumeMounts": mounts}));
    description["spec"]["restartPolicy"] = json!("OnFailure");
    description["spec"]["volumes"] = json!([{"name": "data", "emptyDir": {}}]);
    let ended = namespace.run(&description);
    let status = status_of(&ended, "main");
    assert_eq!((&ended["status"]["phase"], &status["restartCount"]), (&json!("Succeeded"), &json!(1)), "{ended:#}");
    assert_eq!(status["lastState"]["terminated"]["exitCode"], 1);
    assert_holds(&namespace.logs(&["again"]), &["read /data/once: written before"]);
}

#[test]
fn the_environment_holds_what_the_pod_says() {
    let namespace = namespace();
    namespace.kubectl(&["create", "configmap", "settings", "--from-literal=COLOUR=blue"]);
    namespace.kubectl(&["create", "secret", "generic", "key", "--from-literal=key=hidden"]);
    let field = |name: &str, path: &str| json!({"name": name, "valueFrom": {"fieldRef": {"fieldPath": path}}});
    let resource =
        |name: &str, what: &str| json!({"name": name, "valueFrom": {"resourceFieldRef": {"resource": what}}});
    let fields = json!({
        "args": ["env"],
        "resources": {"limits": {"memory": "64Mi", "cpu": "1500m"}},
        "envFrom": [{"configMapRef": {"name": "settings"}}],
        "env": [
            {"name": "PLAIN", "value": "as it is"},
            {"name": "BUILT", "value": "$(PLAIN), and more"},
            {"name": "KEY", "valueFrom": {"secretKeyRef": {"name": "key", "key": "key"}}},
            field("NAME", "metadata.name"), field("LABEL", "metadata.labels['app']"), field("NODE", "spec.nodeName"),
            field("IP", "status.podIP"), resource("MEMORY", "limits.memory"), resource("CPU", "limits.cpu"),
        ],
    });
    let ended = namespace.run(&pod("told", "c-hello", fields));
    let logs = namespace.logs(&["told"]);
    let node = format!("NODE={}", Cluster::shared().node());
    let address = format!("IP={}", ended["status"]["podIP"].as_str().unwrap());
    let expected =
        ["COLOUR=blue", "PLAIN=as it is", "BUILT=as it is, and more", "KEY=hidden", "NAME=told", "LABEL=told"];
    for line in expected.into_iter().chain([&*node, &*address, "MEMORY=67108864", "CPU=2"]) {
        assert!(logs.lines().any(|told| told == line), "there is no {line:?} in {logs}");
    }
}

#[test]
fn command_arguments_and_directory_are_the_pods() {
    let namespace = namespace();
    let fields = json!({
        "command": ["/c-hello.wasm"], "args": ["args", "two words", "$(WHO)", "$$(WHO)", ""],
        "env": [{"name": "WHO", "value": "me"}],
    });
    let mounts = json!([{"name": "work", "mountPath": "/work"}]);
    // WASI 0.1 does not have a working directory; skiff passes it on in this variable.
    let directory = json!({"args": ["env", "PWD"], "workingDir": "/work", "volumeMounts": mounts});
    let containers = [container("main", "c-hello", fields), container("directory", "c-hello", directory)];
    let mut description = wasm_pod("words", &containers);
    description["spec"]["volumes"] = json!([{"name": "work", "emptyDir": {}}]);
    namespace.run(&description);
    assert_eq!(namespace.logs(&["words", "-c", "main"]), "/c-hello.wasm\nargs\ntwo words\nme\n$(WHO)\n\n");
    assert_eq!(namespace.logs(&["words", "-c", "directory"]), "/work\n");
}

#[test]
fn the_strictest_pod_security_is_enough() {
    let namespace = namespace();
    let label = "pod-security.kubernetes.io/enforce=restricted";
    namespace.cluster.kubectl(&["label", "namespace", &namespace.name, label]);
    let image = "--image=localhost:5000/examples/files:1";
    let refused = namespace.try_kubectl(&["run", "plain", image]).unwrap_err();
    assert_holds(&refused, &["violates PodSecurity \"restricted:latest\""]);
    let fields = json!({
        "args": ["write:/tmp=x", "write:/file=x", "write:/data/file=mine", "read:/data/file"],
        "volumeMounts": [{"name": "data", "mountPath": "/data"}],
        "securityContext": {
            "allowPrivilegeEscalation": false, "readOnlyRootFilesystem": true, "capabilities": {"drop": ["ALL"]},
        },
    });
    let mut description = pod("strict", "files", fields);
    description["spec"]["volumes"] = json!([{"name": "data", "emptyDir": {}}]);
    description["spec"]["securityContext"] = json!({"runAsNonRoot": true, "runAsUser": 65532, "fsGroup": 65532, "seccompProfile": {"type": "RuntimeDefault"}});
    let ended = namespace.run(&description);
    let status = status_of(&ended, "main");
    assert_eq!(
        (&status["state"]["terminated"]["exitCode"], &status["user"]["linux"]["uid"]),
        (&json!(2), &json!(65532))
    );
    let logs = namespace.logs(&["strict"]);
    // WASI cannot report a read-only file system everywhere.
    assert!(["EROFS", "EPERM", "EIO"].iter().any(|name| logs.contains(&format!("write /file: {name}\n"))), "{logs}");
    assert_holds(&logs, &["read /data/file: mine"]);
}

#[test]
fn exec_and_cp_say_what_is_not_there() {
    let namespace = namespace();
    namespace.start(&pod("sleeper", "c-sleep", json!({})));
    let commands: [(&[&str], &str); 3] = [
        (&["exec", "sleeper", "--", "ls"], "in this wasm container"),
        // `kubectl cp` has the sentence about `tar` on its standard output, or loses it while it still writes.
        (&["cp", "sleeper:/etc/hosts", "/dev/null"], "exit code 127"),
        (&["cp", "/etc/hosts", "sleeper:/tmp/hosts"], "exit code 127"),
    ];
    for (words, said) in commands {
        assert_holds(&namespace.try_kubectl(words).unwrap_err(), &[said]);
    }
    assert_eq!(namespace.get(&["pod/sleeper"])["status"]["phase"], "Running");
}

#[test]
fn a_native_container_debugs_a_running_guest_at_a_terminal() {
    let namespace = namespace();
    namespace.start(&pod("server", "http", json!({})));
    let mut kubectl = namespace.client();
    let image = "--image=localhost:5000/examples/busybox:1";
    kubectl.args(["debug", "-it", "server", image, "--target=main", "--container=look", "--", "sh"]);
    let mut session = Lasting::at_terminal(&kubectl);
    session.expect("/ #");
    session.write("tty; ps; wget -qO- localhost:8080; exit 9\n");
    session.expect("/dev/pts/");
    session.expect("hello\r\n");
    let ended = namespace.watch("pod/server", |pod| status_of(pod, "look")["state"]["terminated"].is_object());
    assert_eq!(status_of(&ended, "look")["state"]["terminated"]["exitCode"], 9);
    // The guest's process: the two share a pid namespace.
    assert_holds(&session.said(), &["/proc/self/fd/3"]);
    assert_eq!(status_of(&ended, "main")["restartCount"], 0);
}

#[test]
fn hooks_reach_the_guest_after_its_start_and_before_its_end() {
    let namespace = namespace();
    let hook = |port: u16| json!({"httpGet": {"path": "/log", "port": port}});
    let lifecycle = json!({"postStart": hook(8080), "preStop": hook(8080)});
    namespace.start(&pod("hooked", "http", json!({"lifecycle": lifecycle})));
    let followed = namespace.lasting(&["logs", "-f", "hooked"]);
    followed.expect("on stdout\n");
    assert_eq!(namespace.logs(&["hooked"]).matches("on stdout\n").count(), 1);
    namespace.kubectl(&["delete", "pod", "hooked"]);
    assert_eq!(followed.end().unwrap().matches("on stdout\n").count(), 2);
    // There is no server.
    namespace.make(&pod("failing", "http", json!({"lifecycle": {"postStart": hook(8081)}})));
    namespace.watch("pod/failing", |pod| status_of(pod, "main")["state"]["terminated"].is_object());
    described(&namespace, "failing", &["Warning FailedPostStartHook "]);
}

/// Deletes a running pod and returns the exit code of its container.
fn ended_by_deletion(namespace: &Namespace<'_>, pod: &str) -> Value {
    namespace.kubectl(&["delete", "pod", pod, "--wait=false"]);
    let ended = namespace.watch(&format!("pod/{pod}"), |pod| status_of(pod, "main")["state"]["terminated"].is_object());
    namespace.kubectl(&["patch", "pod", pod, "--type=merge", "-p", r#"{"metadata": {"finalizers": null}}"#]);
    status_of(&ended, "main")["state"]["terminated"].clone()
}

#[test]
fn a_deleted_pod_gets_its_grace_and_then_is_killed() {
    let namespace = namespace();
    // How many milliseconds a request takes that is under way when the pod is deleted.
    let rows = [
        ("command", "c-sleep", None, 30, 143),
        ("server", "http", Some(1000), 30, 0),
        ("stuck", "http", Some(90_000), 2, 137),
    ];
    for (name, image, request_ms, grace_s, code) in rows {
        let mut description = pod(name, image, json!({}));
        description["metadata"]["finalizers"] = json!([FINALIZER]);
        description["spec"]["terminationGracePeriodSeconds"] = json!(grace_s);
        namespace.start(&description);
        let running = namespace.get(&[&format!("pod/{name}")]);
        let request = request_ms.map(|ms| Cluster::shared().slow_request(&running, ms));
        let state = ended_by_deletion(&namespace, name);
        assert_eq!(state["exitCode"], code, "{name}: {state}");
        if name == "server" {
            assert_eq!(request.unwrap().end().unwrap(), "hello\nslow\n");
        }
    }
}
