//! The node's labels in Kubernetes: one by which wasm pods find it, and one that says which version it has.

use serde_json::{Value, json};

use crate::error::Result;
use crate::kube::api::{Api, MERGE, Request};

/// The label of a node that has the runtime.
pub(crate) const LABEL: &str = "skiff.dev/installed";

/// The label with the version of skiff on the node. It is there whenever the other one is.
const VERSION_LABEL: &str = "skiff.dev/version";
/// The version of this program, and of those that it installs.
const VERSION: &str = env!("CARGO_PKG_VERSION");

/// Whether the node should have the labels.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Label {
    Present,
    Absent,
}

/// The labels of one node, and the API that sets them.
#[derive(Clone, Debug)]
pub(crate) struct Labels {
    pub(crate) api: Api,
    pub(crate) node: String,
}

impl Labels {
    /// Sets or removes the labels.
    pub(crate) async fn set(&self, label: Label) -> Result<()> {
        self.api.ask(&request(&self.node, label)).await.map(drop)
    }
}

fn request(node: &str, label: Label) -> Request {
    let (installed, version) = match label {
        Label::Present => (json!("true"), json!(VERSION)),
        Label::Absent => (Value::Null, Value::Null),
    };
    let path = format!("/api/v1/nodes/{node}?fieldManager=skiff-node");
    Request::Patch(path, MERGE, json!({"metadata": {"labels": {LABEL: installed, VERSION_LABEL: version}}}))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_patch_sets_the_labels_and_one_takes_them_away() {
        let check = |label, installed: Value, version: Value| {
            let path = "/api/v1/nodes/node-1?fieldManager=skiff-node".to_owned();
            let body =
                json!({"metadata": {"labels": {"skiff.dev/installed": installed, "skiff.dev/version": version}}});
            assert_eq!(request("node-1", label), Request::Patch(path, MERGE, body));
        };
        check(Label::Present, json!("true"), json!("0.1.0"));
        check(Label::Absent, Value::Null, Value::Null);
    }
}
