//! The same with the containerd that the tests build: it reads what was written, and reports the handler.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test that cannot go on has failed")]

mod node;

use std::fs::{self, File};
use std::os::unix::net::UnixStream;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use node::trees::{copy, node, trees};
use node::{Kind, Node, PLAIN};

/// Keeps starting containerd in the tree, in separate namespaces that end with their first process.
const SUPERVISOR: &str = "mount --make-rprivate / && mkdir -p $0/proc $0/sys $0/dev && mount -t proc proc $0/proc && \
    mount --rbind /sys $0/sys && mount --rbind /dev $0/dev && \
    while :; do chroot $0 /usr/bin/containerd --config $1 || sleep 0.1; done";
const START_LIMIT: Duration = Duration::from_secs(30);

#[test]
fn containerd_reads_what_is_written_for_it_in_every_version() {
    // containerd 2.4 reads versions 2, 3 and 4; the trees of older containerds are nodes after an upgrade of containerd.
    let plain = ["containerd-1.7", "containerd-1.7-defaults", "containerd-2.1", "containerd-2.4", "kind"];
    let clouds = ["aks-containerd-1.7", "aks-containerd-2.0", "eks-al2", "eks-nodeadm", "gke"];
    for name in plain.into_iter().chain(clouds) {
        let node = node(name, &PLAIN);
        node.use_real_containerd(PLAIN.program);
        let before = node.all_files();
        node.succeed(&["install", "--timeout", "30"]);
        node.succeed(&["verify"]);
        node.succeed(&["remove", "--timeout", "30"]);
        assert_eq!(node.all_files(), before, "{name}");
    }
}

#[test]
fn containerd_reads_what_is_written_into_templates() {
    let k3s = "/var/lib/rancher/k3s/agent/etc/containerd/config.toml";
    let rke2 = "/var/lib/rancher/rke2/agent/etc/containerd/config.toml";
    let microk8s = "/var/snap/microk8s/current/args/containerd.toml";
    for (name, config) in [
        ("k3s-containerd-1.7", k3s),
        ("k3s-containerd-2", k3s),
        ("rke2-own-template", rke2),
        ("rke2-containerd-2", rke2),
        ("microk8s-containerd-1.7", microk8s),
        ("microk8s-containerd-2", microk8s),
    ] {
        let node = Node::new(&PLAIN, &[]);
        copy(&trees().join(name).join("after"), node.root());
        node.use_real_containerd(PLAIN.program);
        let text = node.dump(config);
        for runtime in ["runc", "skiff"] {
            assert!(text.contains(&format!(".containerd.runtimes.{runtime}]\n")), "{name}: {text}");
        }
    }
}

/// A containerd that runs in a tree.
struct Running {
    node: Node,
    supervisor: Child,
}

impl Running {
    fn start(config: &str) -> Self {
        let kind = Kind { socket: "/run/not-used.sock", ..PLAIN };
        let node = Node::new(&kind, &[("etc/containerd/config.toml", config)]);
        node.use_real_containerd(PLAIN.program);
        let log = File::create(node.path("fake/log")).unwrap();
        let supervisor = Command::new("unshare")
            .args(["--mount", "--net", "--pid", "--fork", "--kill-child", "sh", "-c", SUPERVISOR])
            .arg(node.root())
            .arg(PLAIN.config)
            .stdin(Stdio::null())
            .stdout(log.try_clone().unwrap())
            .stderr(log)
            .spawn()
            .unwrap();
        let running = Self { node, supervisor };
        let deadline = Instant::now() + START_LIMIT;
        while running.run(&["verify"]).contains("does not respond") || running.connect().is_err() {
            assert!(Instant::now() < deadline, "{}", running.node.read("fake/log"));
        }
        running
    }

    fn connect(&self) -> std::io::Result<UnixStream> {
        UnixStream::connect(self.node.path("run/containerd/containerd.sock"))
    }

    fn run(&self, words: &[&str]) -> String {
        let said = self.node.run(&[words, &["--restart-by-signal", "--timeout", "30"]].concat());
        said.stdout + &said.stderr
    }

    fn configuration(&self) -> Vec<(String, String)> {
        let mut found = Vec::new();
        for directory in ["etc/containerd", "etc/containerd/conf.d"] {
            for entry in fs::read_dir(self.node.path(directory)).into_iter().flatten().flatten() {
                let name = entry.file_name().into_string().unwrap();
                found.push((name, fs::read_to_string(entry.path()).unwrap_or_default()));
            }
        }
        found.sort();
        found
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        self.supervisor.kill().unwrap();
        self.supervisor.wait().unwrap();
    }
}

#[test]
fn a_running_containerd_reports_the_handler_after_install_and_not_after_remove() {
    for config in ["version = 2\n", "version = 3\n", "version = 4\n"] {
        let running = Running::start(config);
        let before = running.configuration();
        let said = running.run(&["install"]);
        assert!(said.contains("containerd reports the handler"), "{said}\n{}", running.node.read("fake/log"));
        assert!(running.run(&["status"]).contains("handlers    runc, skiff\n"), "{}", running.run(&["status"]));
        assert!(running.run(&["install"]).contains("is installed already"));
        running.node.write("fake/programs/skiff", "a newer one");
        assert!(running.run(&["install"]).contains("containerd was not restarted"));
        let said = running.run(&["remove"]);
        assert!(said.contains("removed"), "{said}");
        assert!(running.run(&["status"]).contains("handlers    runc\n"), "{}", running.run(&["status"]));
        assert_eq!(running.configuration(), before);
    }
}
