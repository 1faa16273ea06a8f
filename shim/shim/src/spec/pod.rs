//! A pod as the CRI describes it, and what follows from that for its sandbox: what containerd writes into the specification of a
//! pause container when it makes one.

use std::collections::BTreeMap;
use std::path::Path;

use crate::error::{Error, Kind, Result};
use crate::spec::sandbox::SandboxNamespaces;

/// Sysctls that containerd sets for a pod with a network of its own (`enable_unprivileged_ports` and
/// `enable_unprivileged_icmp`, which are its defaults), unless the pod sets them.
const NETWORK_SYSCTLS: [(&str, &str); 2] =
    [("net.ipv4.ip_unprivileged_port_start", "0"), ("net.ipv4.ping_group_range", "0 2147483647")];

/// A pod: the part of `runtime.v1.PodSandboxConfig` that the shim reads.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct PodConfig {
    /// The pod's name in Kubernetes.
    pub(crate) name: String,
    /// The pod's namespace in Kubernetes.
    pub(crate) namespace: String,
    /// Empty for the node's name.
    pub(crate) hostname: String,
    /// `None` for the node's resolver.
    pub(crate) dns: Option<Dns>,
    /// Empty for a pod without a cgroup.
    pub(crate) cgroup_parent: String,
    pub(crate) sysctls: BTreeMap<String, String>,
    pub(crate) has_nodes_network: bool,
    pub(crate) has_nodes_pids: bool,
    pub(crate) has_nodes_ipc: bool,
    pub(crate) has_own_users: bool,
}

/// The contents of a pod's `resolv.conf`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Dns {
    pub(crate) servers: Vec<String>,
    pub(crate) searches: Vec<String>,
    pub(crate) options: Vec<String>,
}

impl PodConfig {
    /// The namespaces of the pod's sandbox; containerd has made its network at the path `network`, unless it is the node's.
    ///
    /// # Errors
    /// `Unsupported` for a pod that needs a process to hold its namespaces.
    pub(crate) fn namespaces(&self, network: &Path) -> Result<SandboxNamespaces> {
        if self.has_own_users {
            return Err(Error::new(
                Kind::Unsupported,
                "user namespaces (`hostUsers: false`) are not implemented with `sandboxer = \"shim\"`: \
                 run the pod with a runtime whose sandboxer is `podsandbox`",
            ));
        }
        if !self.has_nodes_network && network.as_os_str().is_empty() {
            return Err(Error::invalid("the pod has no network namespace"));
        }
        let mut sysctls = self.sysctls.clone();
        if !self.has_nodes_network {
            for (name, value) in NETWORK_SYSCTLS {
                sysctls.entry(name.into()).or_insert_with(|| value.into());
            }
        }
        Ok(SandboxNamespaces {
            network: (!self.has_nodes_network).then(|| network.into()),
            new_ipc: !self.has_nodes_ipc,
            new_uts: !self.has_nodes_network,
            nodes_pids: self.has_nodes_pids,
            hostname: Some(self.hostname.clone()).filter(|name| !name.is_empty()),
            sysctls: sysctls.into_iter().collect(),
        })
    }

    /// The `cgroupsPath` of the sandbox `id`, in systemd's form below a slice.
    pub(crate) fn cgroups_path(&self, id: &str) -> Option<String> {
        if self.cgroup_parent.is_empty() {
            return None;
        }
        let parent = Path::new(&self.cgroup_parent);
        let slice = parent.file_name().and_then(|name| name.to_str()).filter(|name| name.ends_with(".slice"));
        Some(match slice {
            Some(slice) => format!("{slice}:cri-containerd:{id}"),
            None => parent.join(id).to_string_lossy().into_owned(),
        })
    }
}

impl Dns {
    /// The text of `resolv.conf`.
    pub(crate) fn to_text(&self) -> String {
        let mut text = String::new();
        let mut line = |name: &str, words: &str| text.extend([name, " ", words, "\n"]);
        if !self.searches.is_empty() {
            line("search", &self.searches.join(" "));
        }
        for server in &self.servers {
            line("nameserver", server);
        }
        if !self.options.is_empty() {
            line("options", &self.options.join(" "));
        }
        text
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pod() -> PodConfig {
        PodConfig { hostname: "pod-1".into(), cgroup_parent: "/kubepods/pod1".into(), ..PodConfig::default() }
    }

    #[test]
    fn an_ordinary_pod_has_its_own_namespaces() {
        let sysctls = BTreeMap::from([("net.ipv4.ping_group_range".into(), "1 2".into())]);
        let namespaces = PodConfig { sysctls, ..pod() }.namespaces(Path::new("/n")).unwrap();
        let expected = SandboxNamespaces {
            network: Some("/n".into()),
            new_ipc: true,
            new_uts: true,
            nodes_pids: false,
            hostname: Some("pod-1".into()),
            sysctls: vec![
                ("net.ipv4.ip_unprivileged_port_start".into(), "0".into()),
                ("net.ipv4.ping_group_range".into(), "1 2".into()),
            ],
        };
        assert_eq!(namespaces, expected);
    }

    #[test]
    fn a_pod_on_the_node_has_the_nodes_namespaces() {
        let pod =
            PodConfig { has_nodes_network: true, has_nodes_pids: true, has_nodes_ipc: true, ..PodConfig::default() };
        let namespaces = pod.namespaces(Path::new("")).unwrap();
        assert_eq!(namespaces, SandboxNamespaces { nodes_pids: true, ..SandboxNamespaces::default() });
    }

    #[test]
    fn what_needs_a_process_is_refused_in_a_sentence() {
        let error = PodConfig { has_own_users: true, ..pod() }.namespaces(Path::new("/n")).unwrap_err();
        assert_eq!(error.kind(), Kind::Unsupported);
        assert!(error.to_string().contains("`hostUsers: false`"), "{error}");
        assert!(pod().namespaces(Path::new("")).is_err(), "a pod without a network");
    }

    #[test]
    fn the_cgroup_is_where_containerd_has_that_of_a_pause_container() {
        for (parent, expected) in [
            ("", None),
            ("/kubepods/pod1", Some("/kubepods/pod1/s1")),
            ("/kubepods.slice/kubepods-pod1.slice", Some("kubepods-pod1.slice:cri-containerd:s1")),
            ("kubepods-pod1.slice", Some("kubepods-pod1.slice:cri-containerd:s1")),
        ] {
            let pod = PodConfig { cgroup_parent: parent.into(), ..pod() };
            assert_eq!(pod.cgroups_path("s1").as_deref(), expected, "{parent}");
        }
    }

    #[test]
    fn the_resolver_is_as_containerd_writes_it() {
        let words = |words: &[&str]| words.iter().map(|word| (*word).to_string()).collect();
        let dns = Dns {
            servers: words(&["10.0.0.1", "10.0.0.2"]),
            searches: words(&["a.test", "b.test"]),
            options: words(&["ndots:5", "edns0"]),
        };
        let expected = "search a.test b.test\nnameserver 10.0.0.1\nnameserver 10.0.0.2\noptions ndots:5 edns0\n";
        assert_eq!(dns.to_text(), expected);
        assert_eq!(Dns::default().to_text(), "");
    }
}
