//! The configuration that containerd ends up with, as `containerd config dump` prints it.

use std::path::PathBuf;

use toml::{Table, Value};

use crate::config::entry::{Entry, HANDLER, IMAGES_PLUGIN, Sandboxer, pod_annotations};
use crate::error::{Error, Result};

/// The plugins that may have the runtimes, newest first.
const RUNTIME_PLUGINS: [&str; 2] = ["io.containerd.cri.v1.runtime", "io.containerd.grpc.v1.cri"];

/// containerd's own default.
const STATE: &str = "/run/containerd";

/// The printed configuration.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Dump(Table);

impl Dump {
    pub(crate) fn new(table: Table) -> Self {
        Self(table)
    }

    fn plugin(&self, name: &str) -> Option<&Table> {
        self.0.get("plugins")?.get(name)?.as_table()
    }

    fn containerd(&self) -> Option<&Table> {
        let mut plugins = RUNTIME_PLUGINS.iter().filter_map(|name| self.plugin(name));
        plugins.find_map(|plugin| plugin.get("containerd")?.as_table())
    }

    /// The runtimes of the CRI plugin.
    pub(crate) fn runtimes(&self) -> Option<&Table> {
        self.containerd()?.get("runtimes")?.as_table()
    }

    /// The runtime of pods without a RuntimeClass.
    fn default_runtime(&self) -> Option<&Table> {
        let name = self.containerd()?.get("default_runtime_name")?.as_str()?;
        self.runtimes()?.get(name)?.as_table()
    }

    /// Where containerd keeps what is lost with a reboot, such as the bundles of containers.
    pub(crate) fn state_directory(&self) -> PathBuf {
        self.0.get("state").and_then(Value::as_str).unwrap_or(STATE).into()
    }

    /// Refuses a node whose containerd does not serve pods or has no default runtime for them.
    pub(crate) fn check_cri(&self) -> Result<()> {
        let disabled = self.0.get("disabled_plugins").and_then(Value::as_array).into_iter().flatten();
        let mut disabled = disabled.filter_map(Value::as_str);
        if let Some(name) = disabled.find(|name| RUNTIME_PLUGINS.contains(name) || *name == "cri") {
            return Err(Error::refused(format!("containerd's configuration disables its CRI: `{name}`")));
        }
        if self.default_runtime().is_none() {
            return Err(Error::refused("containerd's configuration has no default runtime for pods"));
        }
        Ok(())
    }

    /// Checks that the configuration contains `entry`.
    ///
    /// # Errors
    /// The first difference, as a sentence.
    pub(crate) fn check_entry(&self, entry: &Entry) -> Result<(), String> {
        let runtime = self.runtimes().and_then(|runtimes| runtimes.get(HANDLER)?.as_table());
        let Some(runtime) = runtime else {
            return Err(format!("containerd's configuration does not have the runtime `{HANDLER}`"));
        };
        let found = runtime.get("runtime_type").and_then(Value::as_str).unwrap_or_default();
        let expected = entry.shim.display().to_string();
        if found != expected {
            return Err(format!("`runtime_type` of the runtime `{HANDLER}` is `{found}`, not `{expected}`"));
        }
        let sandboxer = runtime.get("sandboxer").and_then(Value::as_str).unwrap_or_default();
        if entry.sandboxer == Sandboxer::Shim && sandboxer != "shim" {
            return Err(format!("`sandboxer` of the runtime `{HANDLER}` is `{sandboxer}`, not `shim`"));
        }
        let annotations = runtime.get("pod_annotations").and_then(Value::as_array).into_iter().flatten();
        if !annotations.filter_map(Value::as_str).eq(pod_annotations()) {
            return Err(format!("`pod_annotations` of the runtime `{HANDLER}` are not those of skiff"));
        }
        let pull = self.plugin(IMAGES_PLUGIN).and_then(|images| images.get("use_local_image_pull")?.as_bool());
        if entry.local_pull && pull != Some(true) {
            return Err(format!("`use_local_image_pull` of `{IMAGES_PLUGIN}` is not true"));
        }
        Ok(())
    }

    /// The first key of this configuration that `changed` lost, apart from what an installation changes.
    pub(crate) fn lost_in(&self, changed: &Self) -> Option<String> {
        lost(&self.0, &changed.0, "")
    }
}

/// The first key of `before` that is missing from `after` or has another value there.
fn lost(before: &Table, after: &Table, at: &str) -> Option<String> {
    before.iter().find_map(|(key, value)| {
        let path = if at.is_empty() { key.clone() } else { format!("{at}.{key}") };
        match (value, after.get(key)) {
            _ if is_ours(at, key) => None,
            (Value::Table(before), Some(Value::Table(after))) => lost(before, after, &path),
            (before, Some(after)) if before == after => None,
            _ => Some(path),
        }
    })
}

/// Whether an installation may change `key` of the table `at`.
fn is_ours(at: &str, key: &str) -> bool {
    match key {
        "imports" => at.is_empty(),
        HANDLER => at.ends_with(".containerd.runtimes"),
        "use_local_image_pull" => at.ends_with(IMAGES_PLUGIN),
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn dump(text: &str) -> Dump {
        Dump::new(text.parse().unwrap())
    }

    const RUNC: &str = "[plugins.'io.containerd.cri.v1.runtime'.containerd]\ndefault_runtime_name = 'runc'\n\
                        [plugins.'io.containerd.cri.v1.runtime'.containerd.runtimes.runc]\nruntime_type = 'r'\n";

    #[test]
    fn what_an_installation_changes_is_not_lost() {
        let images = "[plugins.'io.containerd.cri.v1.images']\nuse_local_image_pull =";
        let skiff = "[plugins.'io.containerd.cri.v1.runtime'.containerd.runtimes.skiff]\nruntime_type = 's'\n";
        let before = dump(&format!("imports = []\n{RUNC}{images} false"));
        let after = dump(&format!("imports = ['x']\n{RUNC}{skiff}{images} true"));
        assert_eq!(before.lost_in(&after), None);
        assert_eq!(after.lost_in(&before), None);
    }

    #[test]
    fn a_runtime_that_is_gone_is_named() {
        let before = dump(&format!("version = 3\n{RUNC}[plugins.x]\na = [1]"));
        let lost = |text: &str| before.lost_in(&dump(text)).unwrap_or_default();
        assert_eq!(lost(&format!("{RUNC}[plugins.x]\na = [1]")), "version");
        let other = format!("version = 3\n{}[plugins.x]\na = [1]", RUNC.replace("'r'", "'q'"));
        assert_eq!(lost(&other), "plugins.io.containerd.cri.v1.runtime.containerd.runtimes.runc.runtime_type");
        assert_eq!(lost(&format!("version = 3\n{RUNC}[plugins.x]\na = [1, 2]")), "plugins.x.a");
    }

    #[test]
    fn a_node_without_cri_or_default_runtime_is_refused() {
        let refused = |text: &str| dump(text).check_cri().unwrap_err().to_string();
        assert!(dump(RUNC).check_cri().is_ok());
        assert!(refused(&format!("disabled_plugins = ['cri']\n{RUNC}")).contains("disables its CRI: `cri`"));
        assert!(refused(&RUNC.replace("= 'runc'", "= 'other'")).contains("no default runtime"));
    }
}
