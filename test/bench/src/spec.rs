//! The OCI specification that every target gets: what `ctr run` makes, plus the memory limit and the host's directories that
//! a plan asks for.

use std::path::PathBuf;

use serde_json::{Value, json};

use crate::container::Plan;

/// The network that a container sees.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Network {
    /// A namespace of its own, without interfaces.
    Own,
    /// The host's.
    Host,
}

/// The specification of a container in the cgroup at `cgroup`, as JSON.
pub(crate) fn spec(cgroup: &str, plan: &Plan<'_>) -> Value {
    let command = [&[plan.image.entrypoint.clone()][..], &plan.arguments].concat();
    let mut spec = skiff_test::default_spec(&command, &plan.environment, cgroup);
    if let Some(bytes) = plan.limit_bytes {
        spec["linux"]["resources"]["memory"] = json!({ "limit": bytes });
    }
    if plan.network == Network::Host {
        without_network(&mut spec["linux"]["namespaces"]);
    }
    if let Some(mounts) = spec["mounts"].as_array_mut() {
        mounts.extend(plan.folders.iter().map(bind));
    }
    spec
}

fn without_network(namespaces: &mut Value) {
    if let Some(namespaces) = namespaces.as_array_mut() {
        namespaces.retain(|namespace| namespace["type"] != "network");
    }
}

fn bind(folder: &PathBuf) -> Value {
    json!({"destination": folder, "type": "bind", "source": folder, "options": ["rbind", "ro"]})
}
