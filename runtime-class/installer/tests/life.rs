//! A node's life with skiff: install, install again, upgrade, verify, remove.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test that cannot go on has failed")]

mod node;

use std::fs;
use std::io::{BufRead, BufReader};
use std::os::unix::fs::symlink;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use node::{Kind, Node, PLAIN};

const ROOT: &str = "version = 3\n";
const CONFIG: &str = "etc/containerd/config.toml";
const DROP_IN: &str = "etc/containerd/conf.d/skiff.toml";

fn plain() -> Node {
    Node::new(&PLAIN, &[(CONFIG, ROOT)])
}

#[test]
fn an_installed_node_reports_the_handler_and_gets_back_what_it_had() {
    let node = plain();
    let before = node.all_files();
    assert_eq!(node.run(&["verify"]).code, Some(1));
    node.succeed(&["install"]);
    assert!(node.is_reported());
    assert_eq!(node.restarts(), 1);
    node.succeed(&["verify"]);
    assert!(node.succeed(&["status"]).contains("ready       yes\n"));
    let status: serde_json::Value = serde_json::from_str(&node.run(&["status", "--json"]).stdout).unwrap();
    assert_eq!((&status["ready"], &status["programs"]), (&true.into(), &"/opt/skiff".into()));
    assert_eq!(status["handlers"], serde_json::json!(["runc", "skiff"]));
    node.succeed(&["remove"]);
    assert!(!node.is_reported());
    assert_eq!(node.restarts(), 2);
    assert_eq!(node.all_files(), before);
    assert!(node.succeed(&["remove"]).contains("nothing to remove"));
    assert_eq!(node.restarts(), 2);
}

#[test]
fn a_second_install_writes_nothing_and_restarts_nothing() {
    let node = plain();
    node.succeed(&["install"]);
    let stamps = node.stamps();
    assert!(node.succeed(&["install"]).contains("is installed already"));
    assert_eq!(node.stamps(), stamps);
    assert_eq!(node.restarts(), 1);
}

#[test]
fn a_node_without_a_configuration_gets_one_and_loses_it_again() {
    for version in ["2.4.2", "2.0.7", "1.7.27"] {
        let node = Node::new(&Kind { version, ..PLAIN }, &[]);
        let before = node.all_files();
        node.succeed(&["install"]);
        assert!(node.is_reported(), "{version}");
        assert!(node.read("fake/reported").contains("runc "), "{version}: the default runtime stays");
        assert!(node.succeed(&["install"]).contains("is installed already"), "{version}");
        node.succeed(&["remove"]);
        assert_eq!(node.all_files(), before, "{version}");
    }
}

#[test]
fn an_upgrade_leaves_a_running_pod_its_programs_and_containerd_alone() {
    let node = plain();
    node.succeed(&["install"]);
    let old = fs::read_link(node.path("opt/skiff/current")).unwrap();
    let old = node.path("opt/skiff").join(old);
    let pod = Pod(Command::new(old.join("skiff-engine")).spawn().unwrap());
    node.write("fake/programs/skiff", "a newer one");
    let newer = node.programs.to_str().unwrap();
    node.succeed(&["verify"]);
    assert!(node.run(&["verify", "--programs", newer]).stderr.contains("the installed version is not `0.1.0-"));
    assert!(node.succeed(&["install"]).contains("containerd was not restarted"));
    node.succeed(&["verify", "--programs", newer]);
    assert_eq!(node.restarts(), 1);
    assert_eq!(node.read("opt/skiff/current/skiff"), "a newer one");
    assert!(old.join("skiff").exists(), "a process runs from the old version");
    let refused = node.run(&["remove"]);
    assert_eq!(refused.code, Some(1), "{}", refused.stderr);
    assert!(refused.stderr.contains("wasm pods are still running"), "{}", refused.stderr);
    node.succeed(&["verify"]);
    drop(pod);
    node.succeed(&["install"]);
    assert!(!old.exists(), "nothing runs from the old version any more");
    node.succeed(&["remove"]);
}

/// A process that is ended with the test.
struct Pod(Child);

impl Drop for Pod {
    fn drop(&mut self) {
        // It may have ended.
        drop(self.0.kill());
        self.0.wait().unwrap();
    }
}

#[test]
fn what_others_change_in_the_meantime_stays_when_skiff_goes() {
    let node = plain();
    node.succeed(&["install"]);
    let changed = node.read(CONFIG) + "[debug]\nlevel = 'debug'\n";
    node.write(CONFIG, &changed);
    assert_eq!(node.run(&["verify"]).code, Some(1));
    node.succeed(&["install"]);
    node.succeed(&["verify"]);
    node.succeed(&["remove"]);
    assert_eq!(node.read(CONFIG), "version = 3\n[debug]\nlevel = 'debug'\n");
    assert!(!node.path(DROP_IN).exists());
}

#[test]
fn a_node_that_was_reverted_is_installed_again() {
    let node = plain();
    node.succeed(&["install"]);
    node.write(CONFIG, ROOT);
    let said = node.run(&["verify"]);
    assert!(
        said.stderr.contains("`/etc/containerd/config.toml` was changed after the installation"),
        "{}",
        said.stderr
    );
    node.succeed(&["install"]);
    node.succeed(&["verify"]);
    fs::remove_dir_all(node.path("opt/skiff")).unwrap();
    assert!(node.run(&["verify"]).stderr.contains("is missing or not executable"));
    node.succeed(&["install"]);
    node.succeed(&["verify"]);
    node.succeed(&["remove"]);
    assert_eq!(node.read(CONFIG), ROOT);
}

#[test]
fn what_keep_is_told_by_variables_status_is_told_too() {
    let kind = Kind { program: "/opt/other/containerd", config: "/etc/other.toml", ..PLAIN };
    let node = Node::new(&kind, &[("etc/other.toml", "version = 3\n")]);
    let refused = node.run(&["status"]);
    assert!(refused.stderr.contains("pass its path with `--containerd`"), "{}", refused.stderr);
    let run = |words: &[&str]| {
        let mut command = node.command(words);
        command.env("SKIFF_NODE_CONTAINERD", kind.program).env("SKIFF_NODE_CONFIG", kind.config);
        command.env("SKIFF_NODE_SOCKET", kind.socket).env("SKIFF_NODE_RESTART_COMMAND", "restart it");
        command.output().unwrap()
    };
    let installed = run(&["install"]);
    assert!(installed.status.success(), "{}", String::from_utf8_lossy(&installed.stderr));
    let status = String::from_utf8(run(&["status"]).stdout).unwrap();
    assert!(status.contains("ready       yes\n") && status.contains("config      /etc/other.toml\n"), "{status}");
    assert!(run(&["verify"]).status.success());
    assert!(run(&["remove"]).status.success());
}

/// Ends a run that stays.
fn end(mut kept: Pod) {
    let pid = nix::unistd::Pid::from_raw(kept.0.id().cast_signed());
    nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGTERM).unwrap();
    assert!(kept.0.wait().unwrap().success());
}

#[test]
fn a_node_that_is_kept_is_installed_again() {
    let node = plain();
    let kept = Pod(node.command(&["keep", "--interval", "1"]).stderr(Stdio::null()).spawn().unwrap());
    let is_verified = || node.run(&["verify"]).code == Some(0);
    wait_for(is_verified);
    fs::remove_file(node.path(DROP_IN)).unwrap();
    wait_for(|| node.path(DROP_IN).exists() && is_verified());
    node.write(CONFIG, "version = 3\n[broken");
    assert_eq!(node.run(&["verify"]).code, Some(1));
    node.write(CONFIG, ROOT);
    wait_for(is_verified);
    end(kept);
}

#[test]
fn the_probe_reads_what_was_seen_last_and_runs_nothing() {
    let node = plain();
    assert!(node.run(&["ready"]).stderr.contains("has not looked at the node yet"));
    let kept = Pod(node.command(&["keep", "--interval", "1"]).stderr(Stdio::null()).spawn().unwrap());
    wait_for(|| node.run(&["ready"]).code == Some(0));
    // A probe that ran containerd would wait for it.
    node.write("fake/hang", "");
    let start = Instant::now();
    node.run(&["ready"]);
    assert!(start.elapsed() < Duration::from_secs(1), "{:?}", start.elapsed());
    fs::remove_file(node.path("fake/hang")).unwrap();
    wait_for(|| node.run(&["ready"]).code == Some(0));
    node.write(CONFIG, "version = 3\n[broken");
    wait_for(|| node.run(&["ready"]).stderr.contains("containerd refuses the configuration"));
    node.write(CONFIG, ROOT);
    wait_for(|| node.run(&["ready"]).code == Some(0));
    drop(kept);
    wait_for(|| node.run(&["ready"]).stderr.contains("has not looked at the node for"));
}

#[test]
fn a_tool_that_reverts_each_mend_does_not_get_a_restart_for_each() {
    let node = plain();
    let mut kept = Pod(node.command(&["keep", "--interval", "1"]).stderr(Stdio::piped()).spawn().unwrap());
    let deadline = Instant::now() + Duration::from_secs(10);
    while Instant::now() < deadline {
        if node.restarts() > 0 && node.run(&["ready"]).code == Some(0) && node.path(DROP_IN).exists() {
            fs::remove_file(node.path(DROP_IN)).unwrap();
        }
    }
    // The installation, and mends after about 1, 2, 4 and 8 s, or fewer on a busy machine.
    assert!((3..=5).contains(&node.restarts()), "{}", node.restarts());
    let said = node.run(&["ready"]).stderr;
    assert!(said.contains("another tool undid the repair") && said.contains("the node is left alone for"), "{said}");
    assert!(node.run(&["status"]).stdout.contains(" times without an hour of peace\n"));
    assert!(node.run(&["status", "--json"]).stdout.contains("\"mends\":"));
    let stderr = kept.0.stderr.take().unwrap();
    end(kept);
    let said: Vec<_> = BufReader::new(stderr).lines().map(Result::unwrap).collect();
    let mends = |line: &&String| line.contains("repaired what somebody else changed: 1 of 10 times");
    assert_eq!(said.iter().filter(mends).count(), 1, "{said:?}");
}

#[test]
fn a_node_that_is_wanted_without_skiff_waits_for_its_pods() {
    let node = plain();
    let before = node.all_files();
    node.succeed(&["install"]);
    assert_eq!(node.run(&["verify", "--wanted", "removed"]).code, Some(1));
    let pod = Pod(Command::new(node.path("opt/skiff/current/skiff-engine")).spawn().unwrap());
    let mut command = node.command(&["keep", "--interval", "1"]);
    let mut kept = Pod(command.env("SKIFF_NODE_WANTED", "removed").stderr(Stdio::piped()).spawn().unwrap());
    let mut said = String::new();
    BufReader::new(kept.0.stderr.take().unwrap()).read_line(&mut said).unwrap();
    assert!(said.contains("wasm pods are still running"), "{said}");
    node.succeed(&["verify"]);
    drop(pod);
    wait_for(|| !node.path("var/lib/skiff").exists());
    assert_eq!(node.all_files(), before);
    node.succeed(&["verify", "--wanted", "removed"]);
    wait_for(|| node.run(&["ready"]).code == Some(0));
    end(kept);
    let said = node.run(&["uninstall", "--namespace", "n", "--daemon-set", "d"]);
    assert!(said.stderr.contains("this is not a pod"), "{}", said.stderr);
}

fn wait_for(mut condition: impl FnMut() -> bool) {
    let deadline = Instant::now() + Duration::from_secs(30);
    while !condition() {
        assert!(Instant::now() < deadline, "the condition did not become true");
    }
}

#[test]
fn a_configuration_behind_a_link_is_changed_where_it_is() {
    let node = plain();
    node.write("data/config.toml", ROOT);
    fs::remove_file(node.path(CONFIG)).unwrap();
    symlink("/data/config.toml", node.path(CONFIG)).unwrap();
    let before = node.all_files();
    node.succeed(&["install"]);
    assert!(node.path(CONFIG).is_symlink());
    assert!(node.read("data/config.toml").contains("imports"));
    node.succeed(&["remove"]);
    assert_eq!(node.all_files(), before);
}

#[test]
fn images_of_other_platforms_are_unpacked_where_containerd_has_to_be_told() {
    for (version, expected) in [("2.4.2", true), ("2.1.0", true), ("2.0.7", false)] {
        let node = Node::new(&Kind { version, ..PLAIN }, &[(CONFIG, ROOT)]);
        node.succeed(&["install"]);
        assert_eq!(node.read(DROP_IN).contains("use_local_image_pull = true"), expected, "{version}");
    }
}

#[test]
fn an_upgrade_of_containerd_moves_the_runtime_into_a_file_of_its_own() {
    let node = Node::new(&Kind { version: "1.7.27", ..PLAIN }, &[(CONFIG, "version = 2\n")]);
    let before = node.all_files();
    node.succeed(&["install"]);
    assert!(node.read(CONFIG).contains("runtimes.skiff]") && !node.path(DROP_IN).exists());
    node.write("fake/version", "2.4.2");
    assert_eq!(node.run(&["verify"]).code, Some(1), "images of other platforms are not unpacked");
    node.succeed(&["install"]);
    assert!(!node.read(CONFIG).contains("runtimes.skiff]") && node.path(DROP_IN).exists());
    node.succeed(&["verify"]);
    node.succeed(&["remove"]);
    assert_eq!(node.all_files(), before);
}

#[test]
fn a_place_that_is_named_is_where_the_programs_go() {
    let node = plain();
    node.succeed(&["install", "--to", "/home/kubernetes/bin/skiff"]);
    assert!(node.read(DROP_IN).contains("'/home/kubernetes/bin/skiff/current/containerd-shim-skiff-v1'"));
    node.succeed(&["install"]);
    assert_eq!(node.restarts(), 1, "the place is kept");
    let said = node.run(&["verify", "--to", "/opt/skiff"]);
    assert!(said.stderr.contains("the programs are not in `/opt/skiff`"), "{}", said.stderr);
    node.succeed(&["install", "--to", "/opt/skiff"]);
    assert_eq!(node.restarts(), 2);
    assert!(!node.path("home/kubernetes/bin/skiff/current").exists());
    node.succeed(&["remove"]);
}

#[test]
fn what_the_shim_left_goes_with_it_and_states_of_another_skiff_stay() {
    let node = plain();
    let before = node.all_files();
    node.succeed(&["install"]);
    node.write("var/lib/skiff/cache/code", "compiled");
    fs::create_dir_all(node.path("run/skiff/runc/k8s.io")).unwrap();
    node.succeed(&["remove"]);
    assert_eq!(node.all_files(), before);
    node.succeed(&["install"]);
    node.write("run/skiff/runc/default/container/state.json", "{}");
    node.succeed(&["remove"]);
    assert!(node.path("run/skiff/runc/default/container/state.json").exists());
}
