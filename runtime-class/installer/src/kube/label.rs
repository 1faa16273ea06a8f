//! The node's label in Kubernetes, by which wasm pods find it.

use serde_json::{Value, json};

use crate::error::Result;
use crate::kube::api::{Api, MERGE, Request};

/// The label of a node that has the runtime.
pub(crate) const LABEL: &str = "skiff.dev/installed";

/// Whether the node should have the label.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Label {
    Present,
    Absent,
}

/// The label of one node, and the API that sets it.
#[derive(Clone, Debug)]
pub(crate) struct Labels {
    pub(crate) api: Api,
    pub(crate) node: String,
}

impl Labels {
    /// Sets or removes the label.
    pub(crate) async fn set(&self, label: Label) -> Result<()> {
        self.api.ask(&request(&self.node, label)).await.map(drop)
    }
}

fn request(node: &str, label: Label) -> Request {
    let value = match label {
        Label::Present => json!("true"),
        Label::Absent => Value::Null,
    };
    let path = format!("/api/v1/nodes/{node}?fieldManager=skiff-node");
    Request::Patch(path, MERGE, json!({"metadata": {"labels": {LABEL: value}}}))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_patch_sets_the_label_and_one_takes_it_away() {
        let check = |label, expected: Value| {
            let path = "/api/v1/nodes/node-1?fieldManager=skiff-node".to_owned();
            let body = json!({"metadata": {"labels": {"skiff.dev/installed": expected}}});
            assert_eq!(request("node-1", label), Request::Patch(path, MERGE, body));
        };
        check(Label::Present, json!("true"));
        check(Label::Absent, Value::Null);
    }
}
