//! The DaemonSet that keeps the nodes: its pods' environment, and how many of its nodes are done.

use serde_json::{Value, json};

use crate::error::Result;
use crate::kube::api::{Api, Request, STRATEGIC};

/// The container of the DaemonSet's pods.
const CONTAINER: &str = "skiff-node";

/// The DaemonSet that keeps the nodes.
#[derive(Clone, Debug)]
pub(crate) struct DaemonSet {
    pub(crate) api: Api,
    pub(crate) namespace: String,
    pub(crate) name: String,
}

impl DaemonSet {
    fn path(&self) -> String {
        format!("/apis/apps/v1/namespaces/{}/daemonsets/{}", self.namespace, self.name)
    }

    /// Sets a variable of the pods' environment, which replaces them one by one.
    pub(crate) async fn set_variable(&self, name: &str, value: &str) -> Result<()> {
        let variable = json!({"name": name, "value": value});
        let container = json!({"name": CONTAINER, "env": [variable]});
        let body = json!({"spec": {"template": {"spec": {"containers": [container]}}}});
        let path = format!("{}?fieldManager=skiff-node", self.path());
        self.api.ask(&Request::Patch(path, STRATEGIC, body)).await.map(drop)
    }

    /// How many nodes are left, with a reason for each; `None` when all are done.
    pub(crate) async fn rest(&self) -> Result<Option<String>> {
        let set = self.api.ask_json(&Request::Get(self.path())).await?;
        let Some(rest) = rest(&set) else { return Ok(None) };
        let reasons = self.reasons(&set).await.unwrap_or_default();
        Ok(Some(format!("{rest}{reasons}")))
    }

    /// The last line that each pod that is not ready has logged.
    async fn reasons(&self, set: &Value) -> Result<String> {
        let labels = set["spec"]["selector"]["matchLabels"].as_object().into_iter().flatten();
        let labels: Vec<_> = labels.map(|(key, value)| format!("{key}%3D{}", value.as_str().unwrap_or(""))).collect();
        let pods = format!("/api/v1/namespaces/{}/pods", self.namespace);
        let list = self.api.ask_json(&Request::Get(format!("{pods}?labelSelector={}", labels.join(",")))).await?;
        let mut text = String::new();
        for (pod, node) in not_ready(&list) {
            let last = self.api.ask(&Request::Get(format!("{pods}/{pod}/log?tailLines=1"))).await;
            let last = last.unwrap_or_else(|error| error.to_string());
            let last = last.trim().trim_start_matches("skiff-node: ").to_owned();
            text += &format!("; node `{node}`: {last}");
        }
        Ok(text)
    }
}

/// How many nodes are left; `None` when all are done.
fn rest(set: &Value) -> Option<String> {
    let status = &set["status"];
    let number = |key: &str| status[key].as_u64().unwrap_or(0);
    let desired = number("desiredNumberScheduled");
    let is_seen = status["observedGeneration"].as_u64() >= set["metadata"]["generation"].as_u64();
    let done = number("updatedNumberScheduled").min(number("numberReady"));
    (!is_seen || done < desired).then(|| format!("skiff is not yet removed from all {desired} nodes"))
}

/// The pods that are not ready, with their nodes.
fn not_ready(list: &Value) -> Vec<(&str, &str)> {
    let is_ready = |pod: &Value| {
        let mut conditions = pod["status"]["conditions"].as_array().into_iter().flatten();
        conditions.any(|condition| condition["type"] == "Ready" && condition["status"] == "True")
    };
    let pods = list["items"].as_array().into_iter().flatten().filter(|pod| !is_ready(pod));
    pods.filter_map(|pod| Some((pod["metadata"]["name"].as_str()?, pod["spec"]["nodeName"].as_str()?))).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_node_is_done_when_all_new_pods_are_ready() {
        let check = |observed: u64, updated: u64, ready: u64, expected: bool| {
            let set = json!({"metadata": {"generation": 3}, "status": {"observedGeneration": observed,
                "desiredNumberScheduled": 2, "updatedNumberScheduled": updated, "numberReady": ready}});
            assert_eq!(rest(&set).is_none(), expected, "{set}");
        };
        check(3, 2, 2, true);
        check(2, 2, 2, false);
        check(3, 1, 2, false);
        check(3, 2, 1, false);
        assert!(rest(&json!({"metadata": {"generation": 1}})).is_some(), "its controller has not seen it");
        let none =
            json!({"metadata": {"generation": 1}, "status": {"observedGeneration": 1, "desiredNumberScheduled": 0}});
        assert!(rest(&none).is_none(), "it has no nodes");
    }

    #[test]
    fn pods_that_are_not_ready_are_named_with_their_nodes() {
        let pod = |name: &str, ready: &str| {
            json!({"metadata": {"name": name}, "spec": {"nodeName": format!("on-{name}")},
                "status": {"conditions": [{"type": "Ready", "status": ready}]}})
        };
        let pending = json!({"metadata": {"name": "c"}, "spec": {}});
        let list = json!({"items": [pod("a", "True"), pod("b", "False"), pending]});
        assert_eq!(not_ready(&list), [("b", "on-b")]);
    }
}
