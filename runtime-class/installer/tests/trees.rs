//! Nodes of common distributions: their files before and after an installation, and unchanged after a removal.
//! `trees/README.md` documents the source of each tree.
//!
//! `SKIFF_WRITE_TREES=1` writes the results beside the originals, to be reviewed and committed.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test that cannot go on has failed")]

mod node;

use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::Command;

use node::trees::{node, trees};
use node::{Files, Kind, PLAIN};

const K3S: &str = "/var/lib/rancher/k3s/agent/etc/containerd";
const RKE2: &str = "/var/lib/rancher/rke2/agent/etc/containerd";

/// The texts of the configuration, and the links to it.
fn texts(files: Files) -> Vec<(PathBuf, String)> {
    let is_configuration = |path: &Path| {
        path.ends_with("microk8s/current")
            || path.extension().is_some_and(|extension| extension == "toml" || extension == "tmpl")
    };
    files.into_iter().filter(|(path, _)| is_configuration(path)).map(|(path, (text, _))| (path, text)).collect()
}

fn expected(name: &str) -> Vec<(PathBuf, String)> {
    let mut found = Vec::new();
    let root = trees().join(name).join("after");
    let mut pending = vec![root.clone()];
    while let Some(directory) = pending.pop() {
        for entry in fs::read_dir(directory).unwrap().flatten() {
            let path = entry.path();
            let relative = path.strip_prefix(&root).unwrap().to_path_buf();
            if path.is_symlink() {
                found.push((relative, fs::read_link(path).unwrap().display().to_string()));
            } else if path.is_dir() {
                pending.push(path);
            } else {
                found.push((relative, fs::read_to_string(path).unwrap()));
            }
        }
    }
    found.sort();
    found
}

fn check(name: &str, kind: &Kind) {
    let node = node(name, kind);
    let before = node.all_files();
    node.succeed(&["install"]);
    assert!(node.is_reported());
    let after = texts(node.configuration());
    if std::env::var_os("SKIFF_WRITE_TREES").is_some() {
        write(name, &after);
    }
    assert_eq!(after, expected(name), "{name}");
    assert!(node.succeed(&["install"]).contains("is installed already"), "{name}");
    node.succeed(&["verify"]);
    node.succeed(&["remove"]);
    assert_eq!(node.all_files(), before, "{name}");
    assert_eq!(node.restarts(), 2, "{name}");
}

fn write(name: &str, files: &[(PathBuf, String)]) {
    let root = trees().join(name).join("after");
    drop(fs::remove_dir_all(&root));
    for (path, text) in files {
        let path = root.join(path);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        if path.ends_with("microk8s/current") {
            symlink(text, path).unwrap();
        } else {
            fs::write(path, text).unwrap();
        }
    }
    drop(Command::new("sync").status());
}

fn k3s(version: &'static str, config: &'static str, template: &'static str, unit: &'static str) -> Kind {
    let is_rke2 = config.starts_with(RKE2);
    let program = if is_rke2 {
        "/var/lib/rancher/rke2/bin/containerd"
    } else {
        "/var/lib/rancher/k3s/data/current/bin/containerd"
    };
    let socket = "/run/k3s/containerd/containerd.sock";
    Kind { version, unit, config, template: Some(template), socket, program }
}

#[test]
fn plain_containerd() {
    check("containerd-1.7", &Kind { version: "1.7.27", ..PLAIN });
    check("containerd-1.7-defaults", &Kind { version: "1.7.27", ..PLAIN });
    check("containerd-2.1", &Kind { version: "2.1.9", ..PLAIN });
    check("containerd-2.4", &PLAIN);
}

#[test]
fn kind() {
    check("kind", &Kind { program: "/usr/local/bin/containerd", ..PLAIN });
}

#[test]
fn aks() {
    check("aks-containerd-1.7", &Kind { version: "1.7.27", ..PLAIN });
    check("aks-containerd-2.0", &Kind { version: "2.0.4", ..PLAIN });
}

#[test]
fn eks() {
    check("eks-al2", &Kind { version: "1.7.27", ..PLAIN });
    check("eks-nodeadm", &Kind { version: "2.1.5", ..PLAIN });
}

#[test]
fn gke() {
    check("gke", &Kind { version: "1.7.27", program: "/home/kubernetes/bin/containerd", ..PLAIN });
}

#[test]
fn k3s_and_rke2() {
    let [old, new] = ["config.toml.tmpl", "config-v3.toml.tmpl"].map(|name| format!("{K3S}/{name}").leak() as &str);
    let config: &str = format!("{K3S}/config.toml").leak();
    check("k3s-containerd-2", &k3s("2.1.5-k3s1", config, new, "k3s"));
    check("k3s-containerd-1.7", &k3s("1.7.27-k3s1", config, old, "k3s-agent"));
    let [old, new] = ["config.toml.tmpl", "config-v3.toml.tmpl"].map(|name| format!("{RKE2}/{name}").leak() as &str);
    let config: &str = format!("{RKE2}/config.toml").leak();
    check("rke2-own-template", &k3s("1.7.27-k3s1", config, old, "rke2-agent"));
    check("rke2-containerd-2", &k3s("2.1.5-k3s1", config, new, "rke2-server"));
}

#[test]
fn microk8s() {
    let kind = |version| Kind {
        version,
        unit: "snap.microk8s.daemon-containerd",
        config: "/var/snap/microk8s/current/args/containerd.toml",
        template: Some("/var/snap/microk8s/current/args/containerd-template.toml"),
        socket: "/var/snap/microk8s/common/run/containerd.sock",
        program: "/snap/microk8s/current/bin/containerd",
    };
    check("microk8s-containerd-1.7", &kind("1.7.27"));
    check("microk8s-containerd-2", &kind("2.0.4"));
}
