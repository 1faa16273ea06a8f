//! What the shim leaves in a bundle so that `delete` can clean up after a shim that was killed.

use std::fs;
use std::io::{self, Write};
use std::path::Path;

use serde::{Deserialize, Serialize};
use skiff_linux::cgroup::Cgroup;

use crate::settings::Settings;

const FILE: &str = "skiff.json";

/// What made the processes of a container and can end them.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum LauncherName {
    /// The node's OCI runtime.
    OciRuntime,
    /// Skiff's own, which leaves to the OCI runtime what it does not understand.
    Own,
}

/// The record of a container. It is in the bundle before anything is made and until everything is gone.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Record {
    /// The options that the container was made with.
    pub(crate) settings: Settings,
    /// The namespace in containerd, which is part of the OCI runtime's state directory.
    pub(crate) namespace: String,
    /// The launcher that made the container; `None` for a pod's sandbox without a process.
    #[serde(default)]
    pub(crate) launcher: Option<LauncherName>,
    /// The container's cgroup: the specification's `cgroupsPath`.
    pub(crate) cgroups_path: Option<String>,
    /// The socket of the shim that serves the container.
    pub(crate) socket: String,
    /// The process id of that shim.
    pub(crate) shim_pid: u32,
}

/// A record as it is stored, possibly by a release that knew only one launcher.
#[derive(Deserialize)]
struct Stored {
    #[serde(flatten)]
    record: Record,
    #[serde(default)]
    in_runtime: bool,
}

impl Record {
    /// Writes the record into `bundle`, completely or not at all.
    pub(crate) fn save(&self, bundle: &Path) -> io::Result<()> {
        let temporary = bundle.join(".skiff.json");
        let mut file = fs::File::create(&temporary)?;
        file.write_all(&serde_json::to_vec(self)?)?;
        drop(file);
        fs::rename(temporary, bundle.join(FILE))
    }

    /// Reads the record of `bundle`; `None` when the shim did not get far enough to write one.
    pub(crate) fn load(bundle: &Path) -> io::Result<Option<Self>> {
        let text = match fs::read(bundle.join(FILE)) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            read => read?,
        };
        let Stored { mut record, in_runtime } = serde_json::from_slice(&text)?;
        record.launcher = record.launcher.or(in_runtime.then_some(LauncherName::OciRuntime));
        Ok(Some(record))
    }

    /// The cgroup that the specification of the container `id` names, if any.
    pub(crate) fn cgroup(&self, id: &str) -> io::Result<Option<Cgroup>> {
        let path = self.cgroups_path.as_deref();
        path.map(|path| Cgroup::from_spec(path, self.settings.systemd_cgroup, id)).transpose()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn record() -> Record {
        Record { namespace: "k8s.io".into(), shim_pid: 7, ..Record::default() }
    }

    #[test]
    fn what_is_saved_is_loaded() {
        let bundle = tempfile::tempdir().unwrap();
        assert_eq!(Record::load(bundle.path()).unwrap(), None);
        for launcher in [None, Some(LauncherName::OciRuntime), Some(LauncherName::Own)] {
            let record = Record { launcher, ..record() };
            record.save(bundle.path()).unwrap();
            assert_eq!(Record::load(bundle.path()).unwrap(), Some(record));
        }
    }

    #[test]
    fn the_record_of_an_earlier_release_names_its_launcher() {
        let bundle = tempfile::tempdir().unwrap();
        for (in_runtime, launcher) in [(false, None), (true, Some(LauncherName::OciRuntime))] {
            let mut old = serde_json::to_value(record()).unwrap();
            old.as_object_mut().unwrap().remove("launcher");
            old["in_runtime"] = in_runtime.into();
            fs::write(bundle.path().join(FILE), old.to_string()).unwrap();
            assert_eq!(Record::load(bundle.path()).unwrap().unwrap(), Record { launcher, ..record() });
        }
    }
}
