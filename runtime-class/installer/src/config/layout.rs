//! Where each distribution keeps containerd: the file that containerd reads, the template of that file, the socket, the unit.

use std::path::{Path, PathBuf};

/// What k3s and RKE2 use where there is no template: their own configuration, unchanged.
pub(crate) const GO_BASE: &str = "{{ template \"base\" . }}\n";

/// How a distribution runs containerd. All paths are the node's.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Layout {
    /// Its name in messages.
    pub(crate) name: &'static str,
    /// The file that containerd is started with.
    pub(crate) config: PathBuf,
    /// What that file is generated from at every start; `None` when it is not generated.
    pub(crate) template: Option<Template>,
    /// containerd's socket.
    pub(crate) socket: PathBuf,
    /// The systemd units that may run containerd; the active one is restarted.
    pub(crate) units: Vec<String>,
    /// Where containerd's program may be.
    pub(crate) programs: Vec<PathBuf>,
}

/// A file from which another program generates containerd's configuration.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Template {
    /// TOML with variables inside strings (MicroK8s).
    Toml(PathBuf),
    /// A Go template, which may be absent. The configuration's version decides which file it is (k3s, RKE2).
    Go { version2: PathBuf, version3: PathBuf },
}

/// k3s, and distributions built on it.
fn k3s(name: &'static str, data: &str, units: &[&str], program: &str) -> Layout {
    let directory = Path::new(data).join("agent/etc/containerd");
    Layout {
        name,
        config: directory.join("config.toml"),
        template: Some(Template::Go {
            version2: directory.join("config.toml.tmpl"),
            version3: directory.join("config-v3.toml.tmpl"),
        }),
        socket: "/run/k3s/containerd/containerd.sock".into(),
        units: units.iter().map(ToString::to_string).collect(),
        programs: vec![Path::new(data).join(program)],
    }
}

fn microk8s() -> Layout {
    let arguments = Path::new("/var/snap/microk8s/current/args");
    Layout {
        name: "microk8s",
        config: arguments.join("containerd.toml"),
        template: Some(Template::Toml(arguments.join("containerd-template.toml"))),
        socket: "/var/snap/microk8s/common/run/containerd.sock".into(),
        units: vec!["snap.microk8s.daemon-containerd".into()],
        programs: vec!["/snap/microk8s/current/bin/containerd".into()],
    }
}

/// containerd as its own packages install it.
pub(crate) fn plain() -> Layout {
    let directories = ["/usr/bin", "/usr/local/bin", "/usr/sbin", "/bin", "/opt/bin", "/home/kubernetes/bin"];
    Layout {
        name: "containerd",
        config: "/etc/containerd/config.toml".into(),
        template: None,
        socket: "/run/containerd/containerd.sock".into(),
        units: vec!["containerd".into()],
        programs: directories.iter().map(|directory| Path::new(directory).join("containerd")).collect(),
    }
}

/// The layouts that are recognised by a file. The first whose file exists is the node's; without any of them it is [`plain`].
pub(crate) fn known() -> [(PathBuf, Layout); 3] {
    let rke2 = k3s("rke2", "/var/lib/rancher/rke2", &["rke2-server", "rke2-agent"], "bin/containerd");
    let k3s = k3s("k3s", "/var/lib/rancher/k3s", &["k3s", "k3s-agent"], "data/current/bin/containerd");
    let microk8s = microk8s();
    [
        (rke2.config.clone(), rke2),
        (k3s.config.clone(), k3s),
        ("/var/snap/microk8s/current/args/containerd-template.toml".into(), microk8s),
    ]
}
