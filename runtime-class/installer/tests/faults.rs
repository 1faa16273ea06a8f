//! What can go wrong: the tool is killed at any step, a disk is full, a containerd refuses, hangs, or does not come back, somebody
//! else wrote a file. Afterwards the node is either as it was or as it should be, and it always has its default runtime.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test that cannot go on has failed")]

mod node;
mod steps;

use std::collections::BTreeSet;
use std::fs::{self, Permissions};
use std::os::unix::fs::{PermissionsExt, chown, symlink};
use std::path::PathBuf;

use nix::fcntl::{Flock, FlockArg};
use nix::mount::{MsFlags, mount, umount};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use node::{Files, Kind, Node, PLAIN};
use steps::{End, run_and_kill};

const ROOT: &str = "version = 3\n";
const CONFIG: &str = "etc/containerd/config.toml";

fn plain() -> Node {
    Node::new(&PLAIN, &[(CONFIG, ROOT)])
}

/// A node with skiff, and its files before that.
fn installed() -> (Node, Files) {
    let node = plain();
    let before = node.all_files();
    node.succeed(&["install"]);
    (node, before)
}

/// The files are those of before; what differs is shown by name, because programs are long.
fn check_same(now: &Files, before: &Files, what: &str) {
    let names = now.keys().chain(before.keys()).filter(|name| now.get(*name) != before.get(*name));
    let differing: BTreeSet<_> = names.collect();
    assert!(differing.is_empty(), "{what}: {differing:?}");
}

/// Runs `words`, which must fail with `code` and a sentence, and leave the node as it was.
fn check_untouched(node: &Node, words: &[&str], code: i32, sentence: &str, restarts: usize) {
    let before = node.all_files();
    let said = node.run(words);
    assert_eq!(said.code, Some(code), "{}", said.stderr);
    assert!(said.stderr.contains(sentence), "{}", said.stderr);
    check_same(&node.all_files(), &before, &said.stderr);
    assert_eq!(node.restarts(), restarts, "{}", said.stderr);
}

/// Kills `words` before each step that changes something, on a node that `prepare` makes, and calls `check` on the result.
fn kill_at_every_step(words: &[&str], prepare: impl Fn() -> (Node, Files), check: impl Fn(usize, &Node, &Files)) {
    kill_at(1.., words, prepare, check);
}

/// The same for some steps.
fn kill_at(
    steps: impl Iterator<Item = usize>,
    words: &[&str],
    prepare: impl Fn() -> (Node, Files),
    check: impl Fn(usize, &Node, &Files),
) {
    for step in steps {
        let (node, before) = prepare();
        match run_and_kill(node.command(words), step) {
            End::Killed => {
                assert!(node.has_default_runtime(), "step {step}: containerd would not start with its default runtime");
                check(step, &node, &before);
            }
            End::Done(code) => {
                assert!(code == 0 || code == 3, "it ended with {code}");
                assert!(step > 40, "only {step} steps were seen");
                return;
            }
        }
    }
}

/// After a killed run, the next one completes its work, every other time after an install, and nothing is left in the end.
fn check_the_next_runs(step: usize, node: &Node, before: &Files) {
    if step.is_multiple_of(2) {
        node.succeed(&["install"]);
        node.succeed(&["verify"]);
    }
    node.succeed(&["remove"]);
    check_same(&node.all_files(), before, &format!("step {step}"));
    assert!(!node.is_reported(), "step {step}");
}

#[test]
fn an_install_that_is_killed_at_any_step_is_completed_or_taken_back() {
    let prepare = || {
        let node = plain();
        let before = node.all_files();
        (node, before)
    };
    kill_at_every_step(&["install"], prepare, check_the_next_runs);
}

#[test]
fn a_remove_that_is_killed_at_any_step_is_completed_or_taken_back() {
    kill_at_every_step(&["remove"], installed, check_the_next_runs);
}

#[test]
fn an_upgrade_that_is_killed_at_any_step_leaves_new_pods_their_programs() {
    let prepare = || {
        let (node, before) = installed();
        node.write("fake/programs/skiff", "a newer one");
        (node, before)
    };
    kill_at_every_step(&["install"], prepare, |step, node, before| {
        assert!(node.path("opt/skiff/current/containerd-shim-skiff-v1").exists(), "step {step}");
        node.succeed(&["install"]);
        assert_eq!(node.read("opt/skiff/current/skiff"), "a newer one", "step {step}");
        node.succeed(&["remove"]);
        assert_eq!(node.all_files(), *before, "step {step}");
    });
}

#[test]
fn a_pod_that_starts_during_a_remove_keeps_its_programs() {
    let (node, before) = installed();
    let installed = node.configuration();
    node.write("fake/pod", "/opt/skiff/current/skiff-engine");
    let said = node.run(&["remove"]);
    let pid = Pid::from_raw(node.read("fake/pid").parse().unwrap());
    kill(pid, Signal::SIGKILL).unwrap();
    assert_eq!(said.code, Some(3), "{}", said.stderr);
    assert!(said.stderr.contains(&format!("for example {pid})")), "{}", said.stderr);
    assert!(node.is_reported());
    assert_eq!(node.configuration(), installed);
    node.succeed(&["verify"]);
    node.succeed(&["remove", "--wait", "10"]);
    assert_eq!(node.all_files(), before);
}

#[test]
fn a_run_that_is_killed_while_it_takes_everything_back_is_taken_back_by_the_next() {
    let prepare = || {
        let node = plain();
        let before = node.all_files();
        node.write("fake/never", "");
        (node, before)
    };
    // Each run waits for the handler until its time is over: only some steps are tried, from about the restart on.
    kill_at((60..).step_by(7), &["install"], prepare, |step, node, before| {
        fs::remove_file(node.path("fake/never")).unwrap();
        check_the_next_runs(step, node, before);
    });
}

#[test]
fn two_runs_do_not_meet_on_a_node() {
    let node = plain();
    let directory = fs::File::open(node.path("var/lib")).unwrap();
    let lock = Flock::lock(directory, FlockArg::LockExclusive).unwrap();
    check_untouched(&node, &["install"], 1, "another skiff-node is changing this node", 0);
    check_untouched(&node, &["remove"], 1, "another skiff-node is changing this node", 0);
    drop(lock);
    node.succeed(&["install"]);
}

#[test]
fn what_is_not_understood_is_not_touched() {
    let check = |root: &str, sentence: &str| {
        let node = plain();
        node.write(CONFIG, root);
        check_untouched(&node, &["install"], 1, sentence, 0);
    };
    check("version = 3\n[plugins", "containerd refuses the configuration");
    check("version = 5\n", "containerd refuses the configuration");
    check("version = 3\ndisabled_plugins = ['cri']\n", "disables its CRI");
    let skiff = "[plugins.'io.containerd.cri.v1.runtime'.containerd.runtimes.skiff]\nruntime_type = 'x'\n";
    check(&format!("version = 3\n{skiff}"), "somebody else defined the runtime `skiff`");

    let node = plain();
    node.write("etc/containerd/conf.d/skiff.toml", "# of somebody else\nversion = 3\n");
    check_untouched(
        &node,
        &["install"],
        1,
        "`/etc/containerd/conf.d/skiff.toml` (31 bytes) was not written by skiff-node",
        0,
    );

    let node = Node::new(&Kind { version: "1.6.20", ..PLAIN }, &[(CONFIG, "version = 2\n")]);
    check_untouched(&node, &["install"], 1, "skiff needs 1.7 or newer", 0);

    let node = plain();
    node.write("var/lib/skiff/node/record.json", "{}");
    check_untouched(&node, &["install"], 1, "`/var/lib/skiff/node/record.json` is not a valid record", 0);
}

#[test]
fn a_containerd_that_is_not_up_is_left_alone() {
    let node = plain();
    node.write("fake/reported", "");
    check_untouched(&node, &["install"], 1, "nothing was changed: containerd's CRI does not respond", 0);
    let node = plain();
    node.write("fake/unit", "another");
    check_untouched(&node, &["install"], 1, "none of the units `containerd` is active", 0);
    let node = plain();
    node.write("fake/hang", "");
    check_untouched(&node, &["install"], 2, "`/usr/bin/containerd` did not end within 2 s", 0);
}

#[test]
fn a_containerd_that_never_reports_the_handler_gets_its_configuration_back() {
    let node = plain();
    node.write("fake/never", "");
    check_untouched(&node, &["install"], 3, "the CRI does not report the handler `skiff`, 2 s after the restart", 2);
    fs::remove_file(node.path("fake/never")).unwrap();
    node.succeed(&["install"]);
    node.succeed(&["verify"]);
}

#[test]
fn a_failed_upgrade_puts_the_old_installation_back() {
    let (node, before) = installed();
    node.write("var/lib/skiff/cache/code", "compiled");
    let source = node.read("fake/programs/skiff");
    node.write("fake/programs/skiff", "a newer one");
    node.write("fake/never", "");
    // The place differs, so that containerd has to be restarted.
    let words = ["install", "--to", "/usr/local/lib/skiff"];
    check_untouched(&node, &words, 3, "the CRI does not report the handler `skiff`", 3);
    fs::remove_file(node.path("fake/never")).unwrap();
    node.succeed(&["install"]);
    node.succeed(&["verify"]);
    node.succeed(&["remove"]);
    node.write("fake/programs/skiff", &source);
    check_same(&node.all_files(), &before, "removed");
}

#[test]
fn a_move_that_is_killed_at_any_step_is_completed_or_taken_back() {
    kill_at_every_step(&["install", "--to", "/usr/local/lib/skiff"], installed, check_the_next_runs);
}

#[test]
fn a_file_that_is_broken_by_hand_stops_a_removal_before_it_changes_anything() {
    let node = plain();
    node.succeed(&["install"]);
    node.write(CONFIG, "version = 3\n[plugins");
    check_untouched(&node, &["remove"], 1, "`/etc/containerd/config.toml` is not TOML", 1);
    node.write(CONFIG, ROOT);
    node.succeed(&["remove"]);
}

#[test]
fn a_failed_move_from_a_place_that_is_lost_keeps_the_record() {
    let (node, before) = installed();
    fs::remove_dir_all(node.path("opt/skiff")).unwrap();
    node.write("fake/never", "");
    let said = node.run(&["install", "--to", "/usr/local/lib/skiff"]);
    assert_eq!(said.code, Some(3), "{}", said.stderr);
    fs::remove_file(node.path("fake/never")).unwrap();
    node.succeed(&["install"]);
    node.succeed(&["remove"]);
    check_same(&node.all_files(), &before, "removed");
}

#[test]
fn a_place_with_two_names_is_not_moved() {
    let node = plain();
    fs::create_dir_all(node.path("var/opt")).unwrap();
    symlink("var/opt", node.path("opt")).unwrap();
    node.succeed(&["install"]);
    node.succeed(&["install", "--to", "/var/opt/skiff"]);
    node.succeed(&["verify"]);
    assert!(node.path("var/opt/skiff/current/skiff").exists());
    node.succeed(&["remove"]);
}

/// A file system that is mounted in a node's tree.
struct Mounted(PathBuf);

impl Mounted {
    fn new(node: &Node, path: &str, flags: MsFlags, options: &str) -> Self {
        let place = node.path(path);
        fs::create_dir_all(&place).unwrap();
        mount(Some("tmpfs"), &place, Some("tmpfs"), flags, Some(options)).unwrap();
        Self(place)
    }
}

impl Drop for Mounted {
    fn drop(&mut self) {
        umount(&self.0).unwrap();
    }
}

#[test]
fn a_full_disk_leaves_the_node_as_it_was() {
    let node = plain();
    let _full = Mounted::new(&node, "opt", MsFlags::empty(), "size=64k,mode=755");
    check_untouched(&node, &["install"], 3, "No space left on device", 0);

    // A move to a full place.
    let node = plain();
    node.succeed(&["install"]);
    node.write("var/lib/skiff/cache/code", "compiled");
    let _full = Mounted::new(&node, "usr/local/lib", MsFlags::empty(), "size=64k,mode=755");
    check_untouched(&node, &["install", "--to", "/usr/local/lib/skiff"], 3, "No space left on device", 1);

    let node = plain();
    let _full = Mounted::new(&node, "var/lib", MsFlags::empty(), "size=4k,mode=755");
    node.write("var/lib/filler", &"x".repeat(4096));
    let before = node.configuration();
    let said = node.run(&["install"]);
    assert!(said.stderr.contains("No space left on device"), "{}", said.stderr);
    assert_eq!((said.code, node.restarts()), (Some(2), 0), "{}", said.stderr);
    assert_eq!(node.configuration(), before);
}

#[test]
fn programs_go_where_they_can_be_written_and_executed() {
    let node = plain();
    let _noexec = Mounted::new(&node, "opt", MsFlags::MS_NOEXEC, "mode=755");
    let _read_only = Mounted::new(&node, "usr/local", MsFlags::MS_RDONLY, "mode=755");
    node.succeed(&["install"]);
    assert!(node.path("var/lib/skiff/programs/current/skiff").exists());
    node.succeed(&["verify"]);
    node.succeed(&["remove"]);
    check_untouched(&node, &["install", "--to", "/opt/skiff"], 1, "`/opt/skiff` is mounted noexec", 2);
}

#[test]
fn programs_leave_a_place_that_has_become_read_only() {
    let node = plain();
    let opt = Mounted::new(&node, "opt", MsFlags::empty(), "mode=755");
    node.succeed(&["install"]);
    mount(None::<&str>, &opt.0, None::<&str>, MsFlags::MS_REMOUNT | MsFlags::MS_RDONLY, None::<&str>).unwrap();
    node.succeed(&["install"]);
    assert!(node.path("usr/local/lib/skiff/current/skiff").exists());
    node.succeed(&["install"]);
    node.succeed(&["verify"]);
    mount(None::<&str>, &opt.0, None::<&str>, MsFlags::MS_REMOUNT, None::<&str>).unwrap();
    node.succeed(&["remove"]);
    assert!(!node.path("opt/skiff").exists());
}

#[test]
fn programs_go_where_nobody_but_root_can_change_them() {
    let node = plain();
    let mode = |path: &str, mode| fs::set_permissions(node.path(path), Permissions::from_mode(mode)).unwrap();
    fs::create_dir_all(node.path("opt")).unwrap();
    mode("opt", 0o775);
    let sentence = "`/opt/skiff` cannot be trusted: `/opt` can be written by users other than root (mode 0775)";
    check_untouched(&node, &["install", "--to", "/opt/skiff"], 1, sentence, 0);
    node.succeed(&["install"]);
    assert!(node.path("usr/local/lib/skiff/current/skiff").exists());
    node.succeed(&["verify"]);
    chown(node.path("usr/local/lib"), Some(1000), None).unwrap();
    let said = node.run(&["verify"]);
    let sentence = "`/usr/local/lib/skiff` cannot be trusted: `/usr/local/lib` belongs to user 1000";
    assert!(said.stderr.contains(sentence), "{}", said.stderr);
    mode("opt", 0o755);
    node.succeed(&["install"]);
    assert!(node.path("opt/skiff/current/skiff").exists());
    node.succeed(&["verify"]);
}
