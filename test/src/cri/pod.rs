//! A pod of a [`Node`], and the containers in it.

use std::fs;
use std::path::{Path, PathBuf};

use serde_json::{Value, json};

use super::{NAMESPACE, Node};
use crate::image::sha256;

/// A running pod.
pub struct Pod<'a> {
    /// Its id: the sandbox container's.
    pub id: String,
    pub(super) node: &'a Node,
    pub(super) config: String,
    pub(super) description: Value,
}

impl Pod<'_> {
    /// The output of `crictl inspectp`.
    pub fn inspect(&self) -> Value {
        self.node.ask_json(&["inspectp", &self.id])
    }

    /// The pid of its sandbox.
    pub fn pid(&self) -> u32 {
        pid_in(&self.inspect())
    }

    /// Its address.
    pub fn address(&self) -> String {
        self.inspect()["status"]["network"]["ip"].as_str().unwrap().to_string()
    }

    /// The socket of its shim.
    pub fn socket(&self) -> PathBuf {
        let name = sha256(format!("{}/c.sock/{NAMESPACE}/{}", self.node.dir.display(), self.id).as_bytes());
        Path::new("/run/containerd/s").join(name)
    }

    /// Creates and starts a container of `image`; `more` is merged into its description.
    pub fn run(&self, name: &str, image: &str, args: &[&str], more: &Value) -> String {
        let id = self.create(name, image, args, more);
        self.node.ask(&["start", &id]);
        id
    }

    /// Creates it only.
    pub fn create(&self, name: &str, image: &str, args: &[&str], more: &Value) -> String {
        let file = self.describe(name, image, args, more);
        self.node.ask(&["create", "--no-pull", &self.id, &file, &self.config])
    }

    /// Starts a container that was created.
    ///
    /// # Errors
    /// The message of `crictl`.
    pub fn try_start(&self, id: &str) -> Result<(), String> {
        let output = self.node.crictl(&["start", id]);
        if output.status.success() { Ok(()) } else { Err(String::from_utf8_lossy(&output.stderr).into_owned()) }
    }

    /// The file with the description of a container.
    fn describe(&self, name: &str, image: &str, args: &[&str], more: &Value) -> String {
        let mut container = json!({
            "metadata": {"name": name, "attempt": 0}, "image": {"image": image}, "args": args,
            "log_path": format!("{name}.log"),
            "linux": {"security_context": {"namespace_options": self.description["linux"]["security_context"]["namespace_options"]}},
        });
        merge(&mut container, more);
        let file = self.node.dir.join(format!("{}-{name}.json", self.id));
        fs::write(&file, container.to_string()).unwrap();
        file.to_str().expect("temporary paths are UTF-8").to_string()
    }

    /// The lines of a container's log, each as `STREAM TEXT`.
    pub fn log(&self, name: &str) -> Vec<String> {
        let path = Path::new(self.description["log_directory"].as_str().unwrap()).join(format!("{name}.log"));
        let text = fs::read_to_string(path).unwrap_or_default();
        // TIME STREAM F TEXT
        let line = |line: &str| {
            let mut fields = line.splitn(4, ' ').skip(1);
            format!("{} {}", fields.next().unwrap_or_default(), fields.nth(1).unwrap_or_default())
        };
        text.lines().map(line).collect()
    }

    /// Stops and removes the pod with all that is in it.
    pub fn remove(self) {
        self.node.ask(&["stopp", &self.id]);
        self.node.ask(&["rmp", &self.id]);
    }
}

/// The pid in the output of `crictl inspect` or `crictl inspectp`.
pub fn pid_in(inspected: &Value) -> u32 {
    u32::try_from(inspected["info"]["pid"].as_u64().unwrap()).unwrap()
}

/// Puts the fields of `more` into `value`, deeply.
pub fn merge(value: &mut Value, more: &Value) {
    match more {
        Value::Object(fields) => fields.iter().for_each(|(name, more)| merge(&mut value[name], more)),
        Value::Null => {}
        more => *value = more.clone(),
    }
}
