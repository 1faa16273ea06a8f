//! Which container is a pod's sandbox, and what its namespaces shall be.

use std::collections::HashMap;
use std::path::PathBuf;

use oci_spec::runtime::{LinuxNamespaceType, Spec};
use serde_json::Value;

const CONTAINER_TYPE: &str = "io.kubernetes.cri.container-type";
const SANDBOX_ID: &str = "io.kubernetes.cri.sandbox-id";
/// The annotation with the pod's namespace in Kubernetes.
pub(crate) const SANDBOX_NAMESPACE: &str = "io.kubernetes.cri.sandbox-namespace";

/// The namespaces of a pod's sandbox.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct SandboxNamespaces {
    /// The network namespace to join; none is the node's.
    pub(crate) network: Option<PathBuf>,
    /// A new IPC namespace.
    pub(crate) new_ipc: bool,
    /// A new UTS namespace.
    pub(crate) new_uts: bool,
    /// The host name in the new UTS namespace.
    pub(crate) hostname: Option<String>,
    /// Sysctls to set inside, by their dotted names.
    pub(crate) sysctls: Vec<(String, String)>,
}

/// The pod that a container belongs to: containers of one pod share a shim.
pub(crate) fn pod_of(annotations: Option<&HashMap<String, String>>) -> Option<&str> {
    annotations?.get(SANDBOX_ID).map(String::as_str).filter(|id| !id.is_empty())
}

/// Whether `spec` is that of a pod's sandbox.
pub(crate) fn is_sandbox(spec: &Spec) -> bool {
    let annotations = spec.annotations().as_ref();
    annotations.and_then(|all| all.get(CONTAINER_TYPE)).is_some_and(|kind| kind == "sandbox")
}

/// The namespaces of the pod that `spec` is the sandbox of, where the shim can hold them without a process.
///
/// `None` for an ordinary container, and for a sandbox with a user namespace, which needs a process to live in.
pub(crate) fn held_by_the_shim(spec: &Spec) -> Option<SandboxNamespaces> {
    if !is_sandbox(spec) {
        return None;
    }
    let linux = spec.linux().as_ref()?;
    let namespaces = linux.namespaces().as_deref().unwrap_or_default();
    let find = |kind| namespaces.iter().find(|namespace| namespace.typ() == kind);
    if find(LinuxNamespaceType::User).is_some() {
        return None;
    }
    // A namespace to join is given by its path; only the network's ever is for a sandbox.
    let new = |kind| find(kind).is_some_and(|namespace| namespace.path().is_none());
    let network = find(LinuxNamespaceType::Network);
    if network.is_some_and(|namespace| namespace.path().is_none()) {
        return None;
    }
    let mut sysctls: Vec<_> = linux.sysctl().clone().unwrap_or_default().into_iter().collect();
    sysctls.sort();
    Some(SandboxNamespaces {
        network: network.and_then(|namespace| namespace.path().clone()),
        new_ipc: new(LinuxNamespaceType::Ipc),
        new_uts: new(LinuxNamespaceType::Uts),
        hostname: spec.hostname().clone().filter(|name| !name.is_empty()),
        sysctls,
    })
}

/// Whether every process of the container ends with its first one because they have a pid namespace of their own.
pub(crate) fn has_own_pids(spec: &Spec) -> bool {
    let namespaces = spec.linux().as_ref().and_then(|linux| linux.namespaces().as_ref());
    namespaces
        .into_iter()
        .flatten()
        .any(|namespace| namespace.typ() == LinuxNamespaceType::Pid && namespace.path().is_none())
}

/// The pid namespace in `spec` (a parsed `config.json`) if it is the pod's, for its `path` to be set to the real one.
///
/// containerd takes the sandbox's pid for a process of the pod and names `/proc/PID/ns/pid`; here that is the shim, which
/// is in the node's pid namespace.
pub(crate) fn shared_pids(spec: &mut Value, sandbox_pid: u32) -> Option<&mut Value> {
    let shared = format!("/proc/{sandbox_pid}/ns/pid");
    let mut namespaces = spec["linux"]["namespaces"].as_array_mut().into_iter().flatten();
    namespaces.find(|namespace| namespace["type"] == "pid" && namespace["path"] == shared)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn spec(json: &str) -> Spec {
        serde_json::from_str(json).unwrap()
    }

    const POD: &str = r#"{"ociVersion":"1.1.0","hostname":"pod-1","annotations":{"io.kubernetes.cri.container-type":"sandbox",
        "io.kubernetes.cri.sandbox-id":"s1"},"linux":{"sysctl":{"net.ipv4.ip_unprivileged_port_start":"0"},"namespaces":[
        {"type":"pid"},{"type":"ipc"},{"type":"uts"},{"type":"mount"},{"type":"network","path":"/var/run/netns/cni-1"}]}}"#;

    #[test]
    fn an_ordinary_pod_needs_no_process() {
        let spec = spec(POD);
        assert_eq!(pod_of(spec.annotations().as_ref()), Some("s1"));
        assert_eq!(
            held_by_the_shim(&spec),
            Some(SandboxNamespaces {
                network: Some("/var/run/netns/cni-1".into()),
                new_ipc: true,
                new_uts: true,
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
    fn a_shared_pid_namespace_is_the_pods_and_not_the_nodes() {
        let mut spec = json!({"linux": {"namespaces": [{"type": "pid", "path": "/proc/7/ns/pid"}, {"type": "mount"}]}});
        assert!(shared_pids(&mut spec, 8).is_none());
        shared_pids(&mut spec, 7).unwrap()["path"] = json!("/proc/9/ns/pid");
        assert!(shared_pids(&mut spec, 7).is_none());
        assert_eq!(spec["linux"]["namespaces"][0]["path"], "/proc/9/ns/pid");
    }

    #[test]
    fn user_namespaces_and_ordinary_containers_are_left_to_the_oci_runtime() {
        assert_eq!(held_by_the_shim(&spec(&POD.replace(r#"{"type":"pid"}"#, r#"{"type":"user"}"#))), None);
        assert_eq!(held_by_the_shim(&spec(&POD.replace("\"sandbox\"", "\"container\""))), None);
        assert_eq!(held_by_the_shim(&spec(r#"{"ociVersion":"1.1.0"}"#)), None);
    }
}
