//! What the shim leaves in a bundle so that `delete` can clean up after a shim that was killed.

use std::fs;
use std::io::{self, Write};
use std::path::Path;

use serde::{Deserialize, Serialize};

use crate::settings::Settings;

const FILE: &str = "skiff.json";

/// The record of a container, in its bundle from before anything is made until all is gone.
#[derive(Debug, Default, Serialize, Deserialize)]
pub(crate) struct Record {
    /// The options that the container was made with.
    pub(crate) settings: Settings,
    /// The namespace in containerd, which is part of the OCI runtime's state directory.
    pub(crate) namespace: String,
    /// Whether the OCI runtime knows the container; a pod's sandbox without a process it does not.
    pub(crate) in_runtime: bool,
    /// The container's cgroup: the specification's `cgroupsPath`.
    pub(crate) cgroups_path: Option<String>,
    /// The socket of the shim that serves the container.
    pub(crate) socket: String,
    /// The process id of that shim.
    pub(crate) shim_pid: u32,
}

impl Record {
    /// Writes the record into `bundle`, whole or not at all.
    pub(crate) fn save(&self, bundle: &Path) -> io::Result<()> {
        let temporary = bundle.join(".skiff.json");
        let mut file = fs::File::create(&temporary)?;
        file.write_all(&serde_json::to_vec(self)?)?;
        drop(file);
        fs::rename(temporary, bundle.join(FILE))
    }

    /// Reads the record of `bundle`; none when the shim had not come so far.
    pub(crate) fn load(bundle: &Path) -> io::Result<Option<Self>> {
        match fs::read(bundle.join(FILE)) {
            Ok(text) => Ok(Some(serde_json::from_slice(&text)?)),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(error),
        }
    }
}
