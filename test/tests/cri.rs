//! Pods through a real containerd's CRI: `crictl` makes the calls that a kubelet would make.

use std::fs;
use std::path::PathBuf;
use std::process::Command;
use std::time::Duration;

use nix::sys::signal::Signal;
use serde_json::{Value, json};
use skiff_test::cri::{BUSYBOX, Node, image_of, merge, pid_in};
use skiff_test::{
    Cgroup, Lasting, SHIM, command_line_of, eventually, is_alive, processes_touching, signal, status_field, tools,
    until,
};

/// A native container that runs until SIGTERM, and then ends with 0.
const PATIENT: [&str; 3] = ["sh", "-c", "trap 'exit 0' TERM; echo waiting; while :; do sleep 0.1; done"];
const NOTHING: Value = Value::Null;

/// A namespace of a process, as the kernel names it.
fn namespace(pid: u32, kind: &str) -> PathBuf {
    fs::read_link(format!("/proc/{pid}/ns/{kind}")).unwrap()
}

fn own_namespace(kind: &str) -> PathBuf {
    fs::read_link(format!("/proc/self/ns/{kind}")).unwrap()
}

/// What busybox prints in the namespaces (nsenter's options) of process `pid`.
fn inside(pid: u32, namespaces: &[&str], words: &[&str]) -> String {
    let busybox = tools().join("busybox");
    let mut command = Command::new(&busybox);
    command.args(["nsenter", "--target", &pid.to_string()]).args(namespaces).arg("--").arg(&busybox).args(words);
    String::from_utf8(command.output().unwrap().stdout).unwrap().trim().to_string()
}

fn is_shim(pid: u32) -> bool {
    command_line_of(pid).contains(SHIM)
}

/// Waits until a server answers.
fn answer_of(node: &Node, address: &str, path: &str) -> String {
    eventually("the server answers", || node.get(address, path).ok())
}

#[test]
fn a_pod_is_as_its_description_says_without_a_pause_process() {
    let node = Node::start(&[]);
    let mut description = node.pod("plain");
    description["linux"]["sysctls"] = json!({"net.ipv4.ip_local_port_range": "2000 3000", "kernel.msgmax": "4321"});
    let pod = node.run_pod(&description);
    let pid = pod.pid();
    assert!(is_shim(pid), "{}", command_line_of(pid));
    // The shim, and the process by which others find the pod. It is still a copy of the shim for a moment after the start.
    eventually("the pod has its shim and the sandbox's process alone", || {
        let mut others = processes_touching(&node.token);
        others.retain(|(other, line)| *other != pid && line.contains(&pod.id));
        matches!(&others[..], [(_, line)] if line.starts_with("skiff-sandbox in ")).then_some(())
    });

    assert_eq!(inside(pid, &["--uts"], &["hostname"]), "plain");
    assert_eq!(inside(pid, &["--net"], &["cat", "/proc/sys/net/ipv4/ip_local_port_range"]), "2000\t3000");
    assert_eq!(inside(pid, &["--ipc"], &["cat", "/proc/sys/kernel/msgmax"]), "4321");
    for kind in ["net", "uts", "ipc"] {
        assert_ne!(namespace(pid, kind), own_namespace(kind), "{kind}");
    }
    // The kubelet reads the pod's network statistics here.
    let traffic = fs::read_to_string(format!("/proc/{pid}/net/dev")).unwrap();
    assert!(traffic.contains("eth0"), "{traffic}");
    let refused = node.get(&pod.address(), "/").unwrap_err();
    assert_eq!(refused.kind(), std::io::ErrorKind::ConnectionRefused, "the pod is reached: {refused}");

    assert!(pod.socket().exists());
    pod.remove();
    node.assert_nothing_left();
}

#[test]
fn a_pods_network_is_found_by_a_process_of_its_cgroup_until_the_sandbox_ends() {
    let node = Node::start(&["c-hello"]);
    let pod = node.run_pod(&node.pod("found"));
    let id = pod.run("hello", &image_of("c-hello"), &[], &NOTHING);
    eventually("the container ends", || {
        (node.ask_json(&["inspect", &id])["status"]["state"] == "CONTAINER_EXITED").then_some(())
    });
    // As an agent looks: through the cgroups of all processes.
    let found = || processes_touching(&pod.id).into_iter().find(|(_, line)| line.starts_with("skiff-sandbox in "));
    let (pid, _) = eventually("a process is in the pod's cgroup", found);
    for kind in ["net", "uts", "ipc"] {
        assert_eq!(namespace(pid, kind), namespace(pod.pid(), kind), "{kind}");
        assert_ne!(namespace(pid, kind), own_namespace(kind), "{kind}");
    }
    let cgroups = fs::read_to_string(format!("/proc/{pid}/cgroup")).unwrap();
    let own = |line: &&str| line.contains(":memory:") || line.starts_with("0::/skiff");
    assert!(cgroups.lines().find(own).is_some_and(|line| line.contains(&pod.id)), "{cgroups}");
    node.ask(&["stopp", &pod.id]);
    assert!(!is_alive(pid), "it ends with the sandbox");
    pod.remove();

    // A shim that is killed takes it along.
    let pod = node.run_pod(&node.pod("killed"));
    let found = || processes_touching(&pod.id).into_iter().find(|(_, line)| line.starts_with("skiff-sandbox in "));
    let (pid, _) = eventually("a process is in the pod's cgroup", found);
    signal(pod.pid(), Signal::SIGKILL).unwrap();
    assert!(until(Duration::from_secs(60), || !is_alive(pid)));
    pod.remove();
    node.assert_nothing_left();
}

#[test]
fn a_wasm_server_answers_the_node_and_a_native_neighbour() {
    let node = Node::start(&["rust-p2-http"]);
    let mut description = node.pod("web");
    description["dns_config"] = json!({"servers": ["10.9.8.7"], "searches": ["cluster.test"]});
    let pod = node.run_pod(&description);
    let limits = json!({"envs": [{"key": "COLOUR", "value": "blue"}], "linux": {"resources": {
        "memory_limit_in_bytes": 64 << 20, "cpu_period": 100_000, "cpu_quota": 80_000, "cpu_shares": 512
    }}});
    let server = pod.run("server", &image_of("rust-p2-http"), &[], &limits);
    let side = pod.run("side", BUSYBOX, &PATIENT, &NOTHING);
    let address = pod.address();
    assert_eq!(answer_of(&node, &address, "/"), "hello\n");
    assert!(answer_of(&node, &address, "/env").contains("COLOUR=blue\n"));
    assert_eq!(answer_of(&node, &address, "/files?path=/etc/hostname"), "web\n");
    let resolver = answer_of(&node, &address, "/files?path=/etc/resolv.conf");
    assert!(resolver.contains("nameserver 10.9.8.7") && resolver.contains("search cluster.test"), "{resolver}");
    let from_side = node.ask(&["exec", &side, "/busybox", "wget", "-qO-", "http://127.0.0.1:8080/"]);
    assert_eq!(from_side, "hello");

    let pids = [&server, &side].map(|id| pid_in(&node.ask_json(&["inspect", id])));
    for kind in ["net", "uts", "ipc"] {
        assert_eq!(namespace(pids[0], kind), namespace(pids[1], kind), "{kind}");
        assert_eq!(namespace(pids[0], kind), namespace(pod.pid(), kind), "{kind}");
    }
    for kind in ["pid", "mnt"] {
        assert_ne!(namespace(pids[0], kind), namespace(pids[1], kind), "{kind}");
    }
    assert_eq!(node.ask(&["exec", &side, "/busybox", "hostname"]), "web");

    let cgroup = Cgroup::at(&format!("skiff-test-{}/web/{server}", node.token));
    assert_eq!(cgroup.memory_limit(), Some(64 << 20));
    let grown = answer_of(&node, &address, "/grow?mib=200");
    assert!(!grown.contains("200"), "a guest of 64 MiB grew: {grown}");

    answer_of(&node, &address, "/log");
    let expected = ["stdout on stdout", "stderr on stderr"].map(str::to_string);
    assert!(
        until(Duration::from_secs(5), || expected.iter().all(|line| pod.log("server").contains(line))),
        "{:?}",
        pod.log("server")
    );
    assert_eq!(node.ask(&["logs", &side]), "waiting");
    check_stats(&node, &server);
    check_stats(&node, &side);
    let present = node.leftovers();
    for kind in ["process", "mount", "cgroup", "file", "socket"] {
        assert!(
            present.iter().any(|line| line.starts_with(kind)),
            "no {kind} is seen while there are some: {present:#?}"
        );
    }

    node.ask(&["stop", "--timeout", "10", &server]);
    node.ask(&["stop", "--timeout", "10", &side]);
    for id in [&server, &side] {
        let status = &node.ask_json(&["inspect", id])["status"];
        assert_eq!((&status["exitCode"], &status["reason"]), (&json!(0), &json!("Completed")), "{status}");
    }
    assert!(node.get(&address, "/").is_err());
    pod.remove();
    node.assert_nothing_left();
}

fn check_stats(node: &Node, id: &str) {
    let stats = &node.ask_json(&["stats", "-o", "json", id])["stats"][0];
    let figure =
        |path: &str| stats.pointer(path).and_then(Value::as_str).and_then(|text| text.parse::<u64>().ok()).unwrap_or(0);
    assert!(figure("/cpu/usageCoreNanoSeconds/value") > 0, "{stats}");
    assert!(figure("/memory/workingSetBytes/value") > 0, "{stats}");
}

#[test]
fn what_a_wasm_container_does_not_have_is_said_aloud() {
    let node = Node::start(&["c-sleep"]);
    let pod = node.run_pod(&node.pod("limits"));
    let guest = pod.run("guest", &image_of("c-sleep"), &[], &NOTHING);
    let limit = json!({"linux": {"resources": {"memory_limit_in_bytes": 32 << 20}}});
    let side = pod.run("side", BUSYBOX, &PATIENT, &limit);
    let said = |output: std::process::Output| String::from_utf8_lossy(&output.stderr).into_owned();
    let exec = said(node.crictl(&["exec", &guest, "/busybox", "true"]));
    assert!(exec.contains("there is no `/busybox` in this wasm container"), "{exec}");
    for id in [&guest, &side] {
        node.ask(&["update", "--memory", &(48 << 20).to_string(), id]);
        let cgroup = Cgroup::at(&format!("skiff-test-{}/limits/{id}", node.token));
        assert_eq!(cgroup.memory_limit(), Some(48 << 20), "{id}");
    }
    pod.remove();
    node.assert_nothing_left();
}

#[test]
fn a_client_attaches_to_a_terminal_and_leaves_it_and_attaches_again() {
    let node = Node::start(&["sqlite-shell"]);
    let pod = node.run_pod(&node.pod("interactive"));
    let shell = pod.run("shell", &image_of("sqlite-shell"), &[], &json!({"tty": true, "stdin": true}));
    let attached = |typed: &str, answer: &str| {
        let mut session = Lasting::at_terminal(&node.crictl_command(&["attach", "-i", "-t", &shell]));
        session.write(typed);
        session.expect(answer);
        session
    };
    drop(attached("select 1+1;\n", "\r\n2\r\nsqlite> "));
    // By now the client does not take the key for itself.
    let mut session = attached("select 40+2;\n", "\r\n42\r\nsqlite> ");
    session.write("\x03");
    let status = || node.ask_json(&["inspect", &shell])["status"].clone();
    let ended = eventually("Ctrl-C ends it", || Some(status()).filter(|status| status["state"] == "CONTAINER_EXITED"));
    assert_eq!(ended["exitCode"], 130);
    drop(session);
    pod.remove();
    node.assert_nothing_left();
}

#[test]
fn crictl_executes_a_module_at_a_terminal_of_its_own() {
    let node = Node::start(&["sqlite-shell"]);
    let pod = node.run_pod(&node.pod("executing"));
    let guest = pod.run("guest", &image_of("sqlite-shell"), &[], &json!({"stdin": true}));
    let mut session = Lasting::at_terminal(&node.crictl_command(&["exec", "-i", "-t", &guest, "/app.wasm"]));
    session.expect("sqlite> ");
    session.write("select 40+2;\r");
    session.expect("\r\n42\r\nsqlite> ");
    session.write(".exit 7\r");
    assert!(session.end().is_err(), "it ends with the code of the shell");
    pod.remove();
    node.assert_nothing_left();
}

#[test]
fn a_restricted_pod_serves() {
    let node = Node::start(&["rust-p2-http"]);
    let restrictions = json!({
        "run_as_user": {"value": 1000}, "run_as_group": {"value": 1000}, "no_new_privs": true, "readonly_rootfs": true,
        "capabilities": {"drop_capabilities": ["ALL"]}, "seccomp": {"profile_type": 0},
        "masked_paths": ["/proc/kcore", "/proc/keys"], "readonly_paths": ["/proc/sys"]
    });
    let mut description = node.pod("restricted");
    merge(&mut description["linux"]["security_context"], &restrictions);
    let pod = node.run_pod(&description);
    let server =
        pod.run("server", &image_of("rust-p2-http"), &[], &json!({"linux": {"security_context": restrictions}}));
    let address = pod.address();
    assert_eq!(answer_of(&node, &address, "/"), "hello\n");
    let pid = pid_in(&node.ask_json(&["inspect", &server]));
    for (name, expected) in
        [("Uid", "1000"), ("Gid", "1000"), ("CapBnd", "0000000000000000"), ("NoNewPrivs", "1"), ("Seccomp", "2")]
    {
        assert_eq!(status_field(pid, name).unwrap().split_whitespace().next(), Some(expected), "{name}");
    }
    let written = answer_of(&node, &address, "/write?path=/here");
    assert!(!written.contains("written"), "{written}");
    node.ask(&["stop", "--timeout", "10", &server]);
    assert_eq!(node.ask_json(&["inspect", &server])["status"]["exitCode"], 0);
    pod.remove();
    node.assert_nothing_left();
}

#[test]
fn what_cannot_be_made_leaves_nothing() {
    let node = Node::start(&["c-sleep"]);
    let mut description = node.pod("impossible");
    description["linux"]["sysctls"] = json!({"kernel.no_such_thing": "1"});
    let said = node.try_pod("skiff", &description).err().expect("there is no such sysctl");
    assert!(said.contains("kernel.no_such_thing"), "{said}");
    node.assert_nothing_left();

    let pod = node.run_pod(&node.pod("possible"));
    let missing = pod.create("missing", &image_of("c-sleep"), &[], &json!({"command": ["/missing.wasm"]}));
    let output = node.crictl(&["start", &missing]);
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(!output.status.success() && said.contains("/missing.wasm"), "{said}");
    let left: Vec<_> = node
        .leftovers()
        .into_iter()
        .filter(|line| line.contains(&missing))
        .filter(|line| !line.contains("cri/"))
        .collect();
    assert!(left.is_empty(), "{left:?}");
    node.ask(&["rm", &missing]);
    let guest = pod.run("guest", &image_of("c-sleep"), &[], &NOTHING);
    node.ask(&["rm", "--force", &guest]);
    pod.remove();
    node.assert_nothing_left();
}

#[test]
fn commands_end_with_their_codes() {
    let node = Node::start(&["c-sleep", "c-exit"]);
    let pod = node.run_pod(&node.pod("codes"));
    let code_of = |id: &str| {
        let state = || node.ask_json(&["inspect", id])["status"].clone();
        let ended = || Some(state()).filter(|status| status["state"] == "CONTAINER_EXITED");
        eventually("the container has ended", ended)["exitCode"].clone()
    };
    let exit = pod.run("exit", &image_of("c-exit"), &["42"], &NOTHING);
    assert_eq!(code_of(&exit), 42);
    let stopped = pod.run("stopped", &image_of("c-sleep"), &[], &NOTHING);
    eventually("it sleeps", || pod.log("stopped").contains(&"stdout sleeping".into()).then_some(()));
    node.ask(&["stop", "--timeout", "10", &stopped]);
    assert_eq!(code_of(&stopped), 143);
    let killed = pod.run("killed", &image_of("c-sleep"), &[], &NOTHING);
    node.ask(&["stop", "--timeout", "0", &killed]);
    assert_eq!(code_of(&killed), 137);
    for id in [&exit, &stopped, &killed] {
        node.ask(&["rm", id]);
    }
    assert!(
        node.leftovers().iter().all(|line| ![&exit, &stopped, &killed].iter().any(|id| line.contains(id.as_str())))
    );
    pod.remove();
    node.assert_nothing_left();
}

#[test]
fn the_stop_signal_of_an_image_ends_its_containers() {
    let node = Node::start(&[]);
    let pod = node.run_pod(&node.pod("stop"));
    for (name, guest, signal, code) in [
        ("quit", "rust-p2-http", "SIGQUIT", 0),
        ("winch", "c-sleep", "SIGWINCH", 156),
        ("realtime", "c-sleep", "SIGRTMIN+3", 165),
    ] {
        let image = format!("localhost/{name}:1");
        node.import_stopped_by(&image, guest, signal);
        let id = pod.run(name, &image, &[], &NOTHING);
        // A container that ignores the signal is killed after that, and ends with 137.
        node.ask(&["--timeout", "60s", "stop", "--timeout", "30", &id]);
        assert_eq!(node.ask_json(&["inspect", &id])["status"]["exitCode"], json!(code), "{signal}");
    }
    pod.remove();
}

#[test]
fn a_pod_lives_on_while_containerd_is_restarted() {
    let mut node = Node::start(&["rust-p2-http"]);
    let pod = node.run_pod(&node.pod("lasting"));
    let server = pod.run("server", &image_of("rust-p2-http"), &[], &NOTHING);
    let side = pod.run("side", BUSYBOX, &PATIENT, &NOTHING);
    let (address, shim, id) = (pod.address(), pod.pid(), pod.id.clone());
    answer_of(&node, &address, "/");
    let pid = pid_in(&node.ask_json(&["inspect", &server]));
    node.restart_containerd(|node| {
        assert_eq!(node.get(&address, "/").unwrap(), "hello\n");
        assert_eq!(node.get(&address, "/log").unwrap(), "logged\n");
    });
    assert_eq!(node.get(&address, "/").unwrap(), "hello\n");
    let inspected = node.ask_json(&["inspect", &server]);
    assert_eq!((&inspected["status"]["state"], pid_in(&inspected)), (&json!("CONTAINER_RUNNING"), pid));
    let sandbox = node.ask_json(&["inspectp", &id]);
    assert_eq!((&sandbox["status"]["state"], pid_in(&sandbox)), (&json!("SANDBOX_READY"), shim));
    assert_eq!(node.ask(&["exec", &side, "/busybox", "wget", "-qO-", "http://127.0.0.1:8080/"]), "hello");
    let log = fs::read_to_string(node.dir.join("logs/lasting/server.log")).unwrap();
    assert!(log.contains("on stdout") && log.contains("on stderr"), "what was written meanwhile is there: {log}");
    node.ask(&["stop", "--timeout", "10", &server]);
    assert_eq!(node.ask_json(&["inspect", &server])["status"]["exitCode"], 0);
    node.ask(&["stopp", &id]);
    node.ask(&["rmp", &id]);
    node.assert_nothing_left();
}

#[test]
fn a_shared_process_namespace_is_the_pods_and_not_the_nodes() {
    let node = Node::start(&["c-sleep"]);
    let mut description = node.pod("shared");
    description["linux"]["security_context"]["namespace_options"]["pid"] = json!(0);
    let pod = node.run_pod(&description);
    let side = pod.run("side", BUSYBOX, &PATIENT, &NOTHING);
    let guest = pod.run("guest", &image_of("c-sleep"), &[], &NOTHING);
    let pids = [&side, &guest].map(|id| pid_in(&node.ask_json(&["inspect", id])));
    for pid in pids {
        assert_ne!(namespace(pid, "pid"), own_namespace("pid"), "a container sees the node's processes");
        let inside = status_field(pid, "NSpid").unwrap();
        assert_eq!(inside.split_whitespace().count(), 2, "{inside}");
    }
    assert_eq!(namespace(pids[0], "pid"), namespace(pids[1], "pid"));
    let seen = node.ask(&["exec", &side, "/busybox", "ps"]);
    assert!(seen.contains("c-sleep") || seen.contains("app.wasm"), "{seen}");
    assert!(!seen.contains("containerd.toml"), "{seen}");
    // The end of one container is not the end of the others.
    node.ask(&["stop", "--timeout", "1", &guest]);
    assert!(is_alive(pids[0]));
    pod.remove();
    node.assert_nothing_left();
}

#[test]
fn a_pod_with_the_nodes_processes_sees_them() {
    let node = Node::start(&["c-sleep"]);
    let mut description = node.pod("hostpid");
    description["linux"]["security_context"]["namespace_options"]["pid"] = json!(2);
    let pod = node.run_pod(&description);
    let side = pod.run("side", BUSYBOX, &PATIENT, &NOTHING);
    let guest = pod.run("guest", &image_of("c-sleep"), &[], &NOTHING);
    for id in [&side, &guest] {
        let pid = pid_in(&node.ask_json(&["inspect", id]));
        assert_eq!(namespace(pid, "pid"), own_namespace("pid"));
    }
    let seen = node.ask(&["exec", &side, "/busybox", "ps"]);
    assert!(seen.contains("containerd.toml"), "{seen}");
    pod.remove();
    node.assert_nothing_left();
}

#[test]
fn a_pod_on_the_nodes_network_has_the_nodes_address() {
    let node = Node::start(&["rust-p2-http"]);
    let mut description = node.pod("hostnet");
    description["hostname"] = json!("");
    description["linux"]["security_context"]["namespace_options"]["network"] = json!(2);
    let pod = node.run_pod(&description);
    let server = pod.run("server", &image_of("rust-p2-http"), &[], &NOTHING);
    assert_eq!(answer_of(&node, "127.0.0.1", "/"), "hello\n");
    let pid = pid_in(&node.ask_json(&["inspect", &server]));
    let containerd =
        processes_touching(&node.token).into_iter().find(|(_, line)| line.contains("containerd.toml")).unwrap().0;
    for kind in ["net", "uts"] {
        assert_eq!(namespace(pid, kind), namespace(containerd, kind), "{kind}");
    }
    pod.remove();
    node.assert_nothing_left();
}

#[test]
fn a_pod_can_have_a_user_namespace() {
    let node = Node::start(&["rust-p2-http"]);
    let mut description = node.pod("userns");
    let mapping = json!([{"host_id": 300_000, "container_id": 0, "length": 65536}]);
    let users = json!({"userns_options": {"mode": 0, "uids": mapping, "gids": mapping}});
    merge(&mut description["linux"]["security_context"]["namespace_options"], &users);
    // containerd 2.4 cannot start such a pod with a foreign runtime that has options.
    let pod = node.try_pod("skiff-plain", &description).unwrap();
    let server = pod.run("server", &image_of("rust-p2-http"), &[], &NOTHING);
    let side = pod.run("side", BUSYBOX, &PATIENT, &NOTHING);
    assert_eq!(answer_of(&node, &pod.address(), "/"), "hello\n");
    for id in [&server, &side] {
        let pid = pid_in(&node.ask_json(&["inspect", id]));
        assert_ne!(namespace(pid, "user"), own_namespace("user"));
        assert_eq!(status_field(pid, "Uid").unwrap().split_whitespace().next(), Some("300000"));
    }
    assert_eq!(node.ask(&["exec", &side, "/busybox", "id", "-u"]), "0");
    node.ask(&["stop", "--timeout", "10", &server]);
    pod.remove();
    node.assert_nothing_left();
}

#[test]
fn ten_pods_at_once_come_and_go() {
    let node = Node::start(&["rust-p2-http"]);
    std::thread::scope(|scope| {
        for number in 0..10 {
            let node = &node;
            scope.spawn(move || {
                let pod = node.run_pod(&node.pod(&format!("pod{number}")));
                let name = format!("I={number}");
                let server = pod.run(
                    "server",
                    &image_of("rust-p2-http"),
                    &[],
                    &json!({"envs": [{"key": "I", "value": number.to_string()}]}),
                );
                let answer = answer_of(node, &pod.address(), "/env");
                assert!(answer.lines().any(|line| line == name), "{answer}");
                node.ask(&["stop", "--timeout", "10", &server]);
                assert_eq!(node.ask_json(&["inspect", &server])["status"]["exitCode"], 0);
                pod.remove();
            });
        }
    });
    node.assert_nothing_left();
}

#[test]
fn a_killed_shim_is_noticed_and_cleaned_up() {
    let node = Node::start(&["c-sleep"]);
    let pod = node.run_pod(&node.pod("orphaned"));
    let guest = pod.run("guest", &image_of("c-sleep"), &[], &NOTHING);
    let side = pod.run("side", BUSYBOX, &PATIENT, &NOTHING);
    let created = pod.create("created", &image_of("c-sleep"), &[], &NOTHING);
    signal(pod.pid(), Signal::SIGKILL).unwrap();
    for id in [&guest, &side] {
        let state = || node.ask_json(&["inspect", id])["status"].clone();
        let status =
            eventually("containerd notices", || Some(state()).filter(|status| status["state"] == "CONTAINER_EXITED"));
        // containerd's code for an exit that was not reported, or the exit code that `delete` returned.
        assert!(status["exitCode"] == 255 || status["exitCode"] == 137, "{status}");
    }
    eventually("the sandbox is not ready", || (pod.inspect()["status"]["state"] == "SANDBOX_NOTREADY").then_some(()));
    for id in [&guest, &side, &created] {
        node.ask(&["rm", "--force", id]);
    }
    pod.remove();
    node.assert_nothing_left();
}
