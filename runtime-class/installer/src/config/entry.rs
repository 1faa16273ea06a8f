//! What containerd is configured with: the runtime `skiff`, as tables of TOML.

use std::path::PathBuf;

use clap::ValueEnum;
use skiff_protocol::names::ANNOTATION_DOMAINS;
use toml::{Table, Value};

/// The name of the runtime in containerd's configuration, which a RuntimeClass calls its handler.
pub(crate) const HANDLER: &str = "skiff";
/// The section of containerd's configuration for pulling images, since containerd 2.0.
pub(crate) const IMAGES_PLUGIN: &str = "io.containerd.cri.v1.images";

/// Who makes the sandboxes of pods.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub(crate) enum Sandboxer {
    /// containerd, with a pause container.
    #[default]
    Podsandbox,
    /// The shim, by the Sandbox API.
    Shim,
}

/// The runtime's entry in containerd's configuration.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Entry {
    /// The shim's program.
    pub(crate) shim: PathBuf,
    pub(crate) sandboxer: Sandboxer,
    /// Whether containerd can be told not to pull a pause image that nothing uses.
    pub(crate) may_leave_pause_image: bool,
    /// Whether containerd needs a setting to unpack images of other platforms, such as `wasi/wasm`.
    pub(crate) local_pull: bool,
    /// Runtimes that containerd would drop from its defaults once the file names one: containerd 1 replaces the list.
    pub(crate) carried: Vec<(String, Table)>,
}

impl Entry {
    /// The tables of this entry in a configuration of this version.
    ///
    /// The type is the shim's path rather than a name with the path beside it: with a name, a restarted containerd finds only
    /// the sandboxes again and takes the containers in them for dead (containerd issue 10811).
    pub(crate) fn tables(&self, version: u8) -> String {
        let runtimes = format!("plugins.'{}'.containerd.runtimes", runtime_plugin(version));
        let annotations =
            pod_annotations().iter().map(|annotation| format!("'{annotation}'")).collect::<Vec<_>>().join(", ");
        let mut text = format!(
            "[{runtimes}.{HANDLER}]\nruntime_type = '{}'\npod_annotations = [{annotations}]\n",
            self.shim.display()
        );
        if self.sandboxer == Sandboxer::Shim {
            text += "sandboxer = 'shim'\n";
            if self.may_leave_pause_image {
                text += "disable_pause_image_pull = true\n";
            }
        }
        if self.local_pull {
            text += &format!("\n[plugins.'{IMAGES_PLUGIN}']\nuse_local_image_pull = true\n");
        }
        for (name, table) in &self.carried {
            text.push('\n');
            write_table(&mut text, &format!("{runtimes}.{}", Value::String(name.clone())), table);
        }
        text
    }
}

/// The patterns of the pod annotations that containerd passes to the runtime.
pub(crate) fn pod_annotations() -> Vec<String> {
    ANNOTATION_DOMAINS.iter().flat_map(|domain| [format!("{domain}/*"), format!("*.{domain}/*")]).collect()
}

/// The plugin that has the runtimes in a configuration of this version.
pub(crate) const fn runtime_plugin(version: u8) -> &'static str {
    if version < 3 { "io.containerd.grpc.v1.cri" } else { "io.containerd.cri.v1.runtime" }
}

fn write_table(text: &mut String, header: &str, table: &Table) {
    *text += &format!("[{header}]\n");
    for (key, value) in table.iter().filter(|(_, value)| !value.is_table()) {
        *text += &format!("{key} = {value}\n");
    }
    for (key, value) in table {
        if let Value::Table(table) = value {
            write_table(text, &format!("{header}.{key}"), table);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entry(sandboxer: Sandboxer) -> Entry {
        let (local_pull, may_leave_pause_image) = (false, true);
        Entry { shim: "/opt/skiff/shim".into(), sandboxer, may_leave_pause_image, local_pull, carried: Vec::new() }
    }

    #[test]
    fn the_sandboxer_is_named_where_it_is_not_the_default() {
        let settings = |entry: Entry| -> Table {
            let table: Table = entry.tables(3).parse().unwrap();
            let mut runtime = table["plugins"]["io.containerd.cri.v1.runtime"]["containerd"]["runtimes"][HANDLER]
                .as_table()
                .cloned()
                .unwrap();
            runtime.retain(|key, _| !["runtime_type", "pod_annotations"].contains(&key));
            runtime
        };
        assert_eq!(settings(entry(Sandboxer::Podsandbox)), Table::new());
        let both = "sandboxer = 'shim'\ndisable_pause_image_pull = true".parse().unwrap();
        assert_eq!(settings(entry(Sandboxer::Shim)), both);
        let older = Entry { may_leave_pause_image: false, ..entry(Sandboxer::Shim) };
        assert_eq!(settings(older), "sandboxer = 'shim'".parse().unwrap());
    }

    #[test]
    fn carried_runtimes_are_written_whole() {
        let runc: Table = "runtime_type = \"io.containerd.runc.v2\"\n[options]\nSystemdCgroup = true".parse().unwrap();
        let carried = vec![("my.runc".to_owned(), runc.clone())];
        let text = Entry { carried, ..entry(Sandboxer::Podsandbox) }.tables(2);
        let table: Table = text.parse().unwrap();
        assert_eq!(
            table["plugins"]["io.containerd.grpc.v1.cri"]["containerd"]["runtimes"]["my.runc"],
            Value::Table(runc)
        );
    }
}
