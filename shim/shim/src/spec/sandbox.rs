//! Which container is a pod's sandbox, and what its namespaces shall be.

use std::path::PathBuf;

use oci_spec::runtime::LinuxNamespaceType;

use crate::spec::config::{Config, Linux, Namespace};

const CONTAINER_TYPE: &str = "io.kubernetes.cri.container-type";

/// The namespaces of a pod's sandbox.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct SandboxNamespaces {
    /// The network namespace to join; none is the node's.
    pub(crate) network: Option<PathBuf>,
    /// A new IPC namespace.
    pub(crate) new_ipc: bool,
    /// A new UTS namespace.
    pub(crate) new_uts: bool,
    /// Containers that name the pod's pid namespace mean the node's.
    pub(crate) nodes_pids: bool,
    /// The host name in the new UTS namespace.
    pub(crate) hostname: Option<String>,
    /// Sysctls to set inside, by their dotted names.
    pub(crate) sysctls: Vec<(String, String)>,
}

/// Whether `config` is that of a pod's sandbox.
pub(crate) fn is_sandbox(config: &Config) -> bool {
    config.annotations.get(CONTAINER_TYPE).is_some_and(|kind| kind == "sandbox")
}

/// The namespaces of the pod that `config` is the sandbox of, where the shim can hold them without a process.
///
/// `None` for an ordinary container, and for a sandbox with a user namespace, which needs a process to live in.
pub(crate) fn held_by_the_shim(config: &Config) -> Option<SandboxNamespaces> {
    if !is_sandbox(config) || config.linux == Linux::default() || config.namespace(LinuxNamespaceType::User).is_some() {
        return None;
    }
    // A namespace to join is given by its path; for a sandbox that is only ever the network's.
    let new = |kind| config.namespace(kind).is_some_and(|namespace| namespace.path.is_none());
    if new(LinuxNamespaceType::Network) {
        return None;
    }
    let network = config.namespace(LinuxNamespaceType::Network);
    Some(SandboxNamespaces {
        network: network.and_then(|namespace| namespace.path.clone()),
        new_ipc: new(LinuxNamespaceType::Ipc),
        new_uts: new(LinuxNamespaceType::Uts),
        nodes_pids: config.namespace(LinuxNamespaceType::Pid).is_none(),
        hostname: config.hostname.clone().filter(|name| !name.is_empty()),
        sysctls: config.linux.sysctl.clone().into_iter().collect(),
    })
}

/// Whether every process of the container ends with its first one because they have a pid namespace of their own.
pub(crate) fn has_own_pids(config: &Config) -> bool {
    let namespaces = &config.linux.namespaces;
    namespaces.iter().any(|namespace| namespace.kind == LinuxNamespaceType::Pid && namespace.path.is_none())
}

/// The pid namespace in `config` if it is the pod's, for its `path` to be set to the real one.
///
/// containerd takes the sandbox's pid for a process of the pod and names `/proc/PID/ns/pid`; here that is the shim, which
/// is in the node's pid namespace.
pub(crate) fn shared_pids(config: &mut Config, sandbox_pid: u32) -> Option<&mut Namespace> {
    let shared = PathBuf::from(format!("/proc/{sandbox_pid}/ns/pid"));
    let mut namespaces = config.linux.namespaces.iter_mut();
    // As containerd writes it, letter by letter.
    let is_pods = |path: &PathBuf| path.as_os_str() == shared.as_os_str();
    namespaces
        .find(|namespace| namespace.kind == LinuxNamespaceType::Pid && namespace.path.as_ref().is_some_and(is_pods))
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;

    fn spec(json: &str) -> Config {
        Config::parse(json.as_bytes(), Path::new("/bundle")).unwrap()
    }

    const POD: &str = r#"{"ociVersion":"1.1.0","hostname":"pod-1","annotations":{"io.kubernetes.cri.container-type":"sandbox",
        "io.kubernetes.cri.sandbox-id":"s1"},"linux":{"sysctl":{"net.ipv4.ip_unprivileged_port_start":"0"},"namespaces":[
        {"type":"pid"},{"type":"ipc"},{"type":"uts"},{"type":"mount"},{"type":"network","path":"/var/run/netns/cni-1"}]}}"#;

    #[test]
    fn an_ordinary_pod_needs_no_process() {
        let spec = spec(POD);
        assert_eq!(spec.pod(), Some("s1"));
        assert_eq!(
            held_by_the_shim(&spec),
            Some(SandboxNamespaces {
                network: Some("/var/run/netns/cni-1".into()),
                new_ipc: true,
                new_uts: true,
                nodes_pids: false,
                hostname: Some("pod-1".into()),
                sysctls: vec![("net.ipv4.ip_unprivileged_port_start".into(), "0".into())],
            })
        );
    }

    #[test]
    fn a_pod_on_the_nodes_network_joins_nothing() {
        let spec = spec(&POD.replace(r#",{"type":"network","path":"/var/run/netns/cni-1"}"#, ""));
        assert_eq!(held_by_the_shim(&spec).unwrap().network, None);
    }

    #[test]
    fn a_pod_without_pids_of_its_own_has_the_nodes() {
        let spec = spec(&POD.replace(r#"{"type":"pid"},"#, ""));
        assert!(held_by_the_shim(&spec).unwrap().nodes_pids);
    }

    #[test]
    fn a_shared_pid_namespace_is_the_pods_and_not_the_nodes() {
        let mut spec = spec(r#"{"linux":{"namespaces":[{"type":"pid","path":"/proc/7/ns/pid"},{"type":"mount"}]}}"#);
        assert!(shared_pids(&mut spec, 8).is_none());
        shared_pids(&mut spec, 7).unwrap().path = Some("/proc/9/ns/pid".into());
        assert!(shared_pids(&mut spec, 7).is_none());
        assert_eq!(spec.linux.namespaces[0].path.as_deref(), Some(Path::new("/proc/9/ns/pid")));
    }

    #[test]
    fn user_namespaces_and_ordinary_containers_are_left_to_the_oci_runtime() {
        assert_eq!(held_by_the_shim(&spec(&POD.replace(r#"{"type":"pid"}"#, r#"{"type":"user"}"#))), None);
        assert_eq!(held_by_the_shim(&spec(&POD.replace("\"sandbox\"", "\"container\""))), None);
        assert_eq!(held_by_the_shim(&spec(r#"{"ociVersion":"1.1.0"}"#)), None);
    }
}
