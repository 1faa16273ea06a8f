//! The files that pass between the shim and the OCI runtime for one further process, in the bundle. No process is named by the
//! others' files: a container may be asked to run one that is called `config` or `init`.

use std::fs;
use std::io::{self, ErrorKind};
use std::path::{Path, PathBuf};

use oci_spec::runtime::Process as ProcessSpec;

/// The files of one process; removed when this is dropped.
pub(super) struct ExecFiles {
    /// The specification of the process.
    pub(super) process: PathBuf,
    /// Its pid, once it is made.
    pub(super) pid: PathBuf,
    /// The runtime's log of making it.
    pub(super) log: PathBuf,
}

impl ExecFiles {
    /// Writes the specification of the process `exec_id` into `bundle`.
    ///
    /// # Errors
    /// Those of writing.
    pub(super) fn write(bundle: &Path, exec_id: &str, process: &ProcessSpec) -> io::Result<Self> {
        let file = |suffix| bundle.join(format!("exec-{exec_id}.{suffix}"));
        let files = Self { process: file("json"), pid: file("pid"), log: file("log") };
        fs::write(&files.process, serde_json::to_vec(process)?)?;
        Ok(files)
    }
}

impl Drop for ExecFiles {
    fn drop(&mut self) {
        for file in [&self.process, &self.pid, &self.log] {
            match fs::remove_file(file) {
                Err(error) if error.kind() != ErrorKind::NotFound => {
                    log::warn!("cannot remove `{}`: {error}", file.display());
                }
                _ => {}
            }
        }
    }
}
