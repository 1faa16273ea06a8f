//! Attacks by a neighbour in the pod, made through a real containerd's CRI as a kubelet would have it: native containers that
//! see the processes of the others. Each one succeeded against skiff before the walls were built.

use std::fs;
use std::time::Duration;

use nix::sys::signal::Signal;
use serde_json::{Value, json};
use skiff_test::cri::{BUSYBOX, Node, Pod, image_of, merge, pid_in};
use skiff_test::{
    Cgroup, children_of, compilers_of, eventually, is_alive, programs, signal, slow_module, status_field, until,
    zombies_of,
};

/// A native container that stays until it is killed.
const IDLE: [&str; 2] = ["sleep", "3600"];
const LIMIT_BYTES: u64 = 64 << 20;

/// Prints which files of other processes it can open for writing. It writes nothing, but to a page map, which anybody with its
/// process's memory can open and nobody can write.
const TRY_ALL: &str = r#"
for file in /proc/[0-9]*/fd/[0-9]* /proc/[0-9]*/exe; do
  target=$(/busybox readlink $file) || continue
  case $target in
    /dev/*|pipe:*|socket:*|anon_inode:*) continue;;
    /proc/*/pagemap) some=/dev/zero;;
    *) some=/dev/null;;
  esac
  /busybox test -f $file || continue
  /busybox dd if=$some of=$file bs=8 count=1 conv=notrunc 2> /dev/null && echo "can write $file, which is $target"
done
echo tried"#;

/// The capabilities of such a container: the usual ones, those and access to other processes, or none.
fn with_capabilities(change: &Value) -> Value {
    json!({"linux": {"security_context": {"capabilities": change}}})
}

fn pod_with_shared_processes<'a>(node: &'a Node, name: &str) -> Pod<'a> {
    let mut description = node.pod(name);
    description["linux"]["security_context"]["namespace_options"]["pid"] = json!(0);
    node.run_pod(&description)
}

/// What busybox prints in a container, whether it fails or not.
fn inside(node: &Node, id: &str, words: &[&str]) -> String {
    let output = node.crictl(&[&["exec", id, "/busybox"], words].concat());
    String::from_utf8_lossy(&[output.stdout, output.stderr].concat()).into_owned()
}

/// The first process of the pid namespace that the containers of a pod share.
fn init_of(pod: &Pod<'_>) -> u32 {
    let is_first = |pid: &u32| {
        let inside = status_field(*pid, "NSpid").unwrap_or_default();
        inside.split_whitespace().skip(1).eq(["1"])
    };
    children_of(pod.pid()).into_iter().find(is_first).expect("the namespace has a first process")
}

#[test]
fn the_first_process_of_a_shared_pid_namespace_shows_nothing_of_the_node() {
    let node = Node::start(&[]);
    let pod = pod_with_shared_processes(&node, "shared");
    let spy = pod.run("spy", BUSYBOX, &IDLE, &with_capabilities(&json!({"add_capabilities": ["SYS_PTRACE"]})));
    let ask = |words: &[&str]| inside(&node, &spy, words);
    let owned = node.dir.join("owned");
    ask(&["touch", &format!("/proc/1/root{}", owned.display())]);
    assert!(!owned.exists(), "a container wrote a file on the node");
    for place in ["/proc/1/root/", "/proc/1/cwd/", "/proc/1/fd/"] {
        assert_eq!(ask(&["ls", "-A", place]).trim(), "", "{place}");
    }
    assert!(ask(&["touch", "/proc/1/root/owned"]).contains("Read-only"));
    assert_eq!(ask(&["cat", "/proc/1/environ"]), "");
    let programs = programs().display().to_string();
    for (words, what) in [
        (&["readlink", "/proc/1/exe"][..], "exe"),
        (&["readlink", "/proc/1/cwd"], "cwd"),
        (&["cat", "/proc/1/maps"], "maps"),
        (&["cat", "/proc/1/cmdline"], "cmdline"),
        (&["cat", "/proc/1/mountinfo"], "mountinfo"),
    ] {
        let said = ask(words);
        assert!(!said.contains(&programs) && !said.contains(&node.token), "{what}: {said}");
    }
    let init = init_of(&pod);
    for set in ["CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb"] {
        assert_eq!(status_field(init, set).as_deref(), Some("0000000000000000"), "{set}");
    }
    for (field, expected) in [("NoNewPrivs", "1"), ("Seccomp", "2"), ("Uid", "65534\t65534\t65534\t65534")] {
        assert_eq!(status_field(init, field).as_deref(), Some(expected), "{field}");
    }
    pod.remove();
    node.assert_nothing_left();
}

#[test]
fn the_first_process_of_a_shared_pid_namespace_cannot_be_killed_from_inside_and_reaps() {
    let node = Node::start(&[]);
    let pod = pod_with_shared_processes(&node, "reaping");
    let side = pod.run("side", BUSYBOX, &IDLE, &Value::Null);
    let init = init_of(&pod);
    let all = "for signal in $(/busybox seq 1 64); do /busybox kill -$signal 1 || exit $signal; done; echo all";
    let said = inside(&node, &side, &["sh", "-c", all]);
    assert!(said == "all\n" && is_alive(init), "signals from inside have ended it: {said}");
    let orphans = "for i in 1 2 3; do /busybox sh -c '/busybox sleep 0.2 & exec /busybox true'; done";
    inside(&node, &side, &["sh", "-c", orphans]);
    let is_asleep = |pid: &u32| fs::read_to_string(format!("/proc/{pid}/comm")).is_ok_and(|name| name == "busybox\n");
    let is_over = || children_of(init).iter().all(|pid| !is_asleep(pid)) && zombies_of(init).is_empty();
    assert!(until(Duration::from_secs(10), is_over), "zombies: {:?}", zombies_of(init));
    assert!(is_alive(init));
    assert_eq!(pod.inspect()["status"]["state"], "SANDBOX_READY");
    pod.remove();
    node.assert_nothing_left();
}

#[test]
fn the_end_of_a_shared_pid_namespace_is_the_end_of_its_sandbox() {
    let node = Node::start(&["c-sleep"]);
    let pod = pod_with_shared_processes(&node, "ending");
    let guest = pod.run("guest", &image_of("c-sleep"), &[], &Value::Null);
    signal(init_of(&pod), Signal::SIGKILL).unwrap();
    eventually("the guest has ended with its namespace", || {
        (node.ask_json(&["inspect", &guest])["status"]["state"] == "CONTAINER_EXITED").then_some(())
    });
    // The kubelet then makes a new one.
    eventually("the sandbox is not ready", || (pod.inspect()["status"]["state"] == "SANDBOX_NOTREADY").then_some(()));
    pod.remove();
    node.assert_nothing_left();
}

/// The files of other processes that a neighbour with the fields `more` can open for writing.
fn tried(node: &Node, pod: &Pod<'_>, name: &str, more: &Value) -> Vec<String> {
    let neighbour = pod.run(name, BUSYBOX, &IDLE, more);
    let said = inside(node, &neighbour, &["sh", "-c", TRY_ALL]);
    assert!(said.ends_with("tried\n"), "{name}: {said}");
    said.lines().filter(|line| *line != "tried").map(str::to_string).collect()
}

/// None of the engine's limit files, which are those of its own cgroup and of all above it, was changed.
fn assert_limits(node: &Node, pod: &str, guest: &str) {
    let parent = format!("skiff-test-{}/{pod}", node.token);
    assert_eq!(Cgroup::at(&format!("{parent}/{guest}")).memory_limit(), Some(LIMIT_BYTES));
    assert_eq!(Cgroup::at(&parent).memory_limit(), None);
}

#[test]
fn a_neighbour_in_the_pid_namespace_cannot_write_what_the_engine_was_handed() {
    let node = Node::start(&["c-sleep"]);
    let pod = pod_with_shared_processes(&node, "neighbours");
    let limit = json!({"linux": {"resources": {"memory_limit_in_bytes": LIMIT_BYTES}}});
    let guest = pod.run("guest", &image_of("c-sleep"), &[], &limit);
    eventually("it sleeps", || pod.log("guest").contains(&"stdout sleeping".into()).then_some(()));
    for (name, capabilities) in [
        ("usual", json!({})),
        ("tracing", json!({"add_capabilities": ["SYS_PTRACE"]})),
        ("dropped", json!({"drop_capabilities": ["ALL"]})),
    ] {
        assert_eq!(tried(&node, &pod, name, &with_capabilities(&capabilities)), Vec::<String>::new(), "{name}");
    }
    assert_limits(&node, "neighbours", &guest);
    pod.remove();
    node.assert_nothing_left();
}

#[test]
fn an_ephemeral_container_cannot_write_what_its_target_was_handed() {
    let node = Node::start(&["c-sleep"]);
    let pod = node.run_pod(&node.pod("debugged"));
    let limit = json!({"linux": {"resources": {"memory_limit_in_bytes": LIMIT_BYTES}}});
    let guest = pod.run("guest", &image_of("c-sleep"), &[], &limit);
    eventually("it sleeps", || pod.log("guest").contains(&"stdout sleeping".into()).then_some(()));
    for (name, capabilities) in [("debugger", json!({})), ("tracer", json!({"add_capabilities": ["SYS_PTRACE"]}))] {
        let mut more = with_capabilities(&capabilities);
        let target = json!({"namespace_options": {"pid": 3, "target_id": guest}});
        merge(&mut more["linux"]["security_context"], &target);
        assert_eq!(tried(&node, &pod, name, &more), Vec::<String>::new(), "{name}");
    }
    let engine = pid_in(&node.ask_json(&["inspect", &guest]));
    assert!(is_alive(engine));
    assert_limits(&node, "debugged", &guest);
    pod.remove();
    node.assert_nothing_left();
}

#[test]
fn a_pod_that_is_deleted_while_it_compiles_leaves_no_shim() {
    let node = Node::start(&[]);
    // Each run has a module of its own, because all suites share the cache.
    let seed = u32::from_str_radix(&node.token[..6], 16).unwrap();
    node.import(&image_of("slow"), "app.wasm", slow_module(seed, 700));
    let pod = node.run_pod(&node.pod("late"));
    let shim = pod.pid();
    let late = pod.create("late", &image_of("slow"), &[], &Value::Null);
    let compiler = std::thread::scope(|scope| {
        let starting = scope.spawn(|| node.crictl(&["--timeout", "2s", "start", &late]));
        let compiler = eventually("the compiler runs", || compilers_of(shim).first().copied());
        // The kubelet gives up in the same way after two minutes.
        assert!(!starting.join().unwrap().status.success());
        compiler
    });
    pod.remove();
    assert!(until(Duration::from_secs(10), || !is_alive(shim)), "the shim outlives its pod");
    assert!(!is_alive(compiler), "the compiler outlives its pod");
    node.assert_nothing_left();
}
