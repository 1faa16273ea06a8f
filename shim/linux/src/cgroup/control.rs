//! Settings of cgroups of version 1, for whoever makes a container without the OCI runtime.

use std::fs;
use std::io::{self, ErrorKind};
use std::path::Path;
use std::time::{Duration, Instant};

use super::files::{at, read};
use super::{Cgroup, Hierarchy};

/// How long a cgroup may take to freeze.
const FREEZE_WITHIN: Duration = Duration::from_secs(5);
/// How long processes that are caught while they make others may go on before they are frozen again.
const THAWED_FOR: Duration = Duration::from_millis(10);

impl Cgroup {
    /// The directories in the hierarchies of version 1: the controllers of each, where it is mounted, and the container's own
    /// directory. None on version 2.
    pub fn v1_dirs(&self) -> impl Iterator<Item = (&[String], &Path, &Path)> {
        let is_v1 = self.hierarchy == Hierarchy::V1;
        let nodes = self.own_nodes().filter(move |node| is_v1 && !node.controllers.is_empty());
        nodes.map(|node| (&*node.controllers, &*node.mountpoint, &*node.path))
    }

    /// The container's own directory in the unified tree of a node with version 1, which has no controllers.
    pub fn unified_dir(&self) -> Option<&Path> {
        self.own_nodes().find(|node| node.controllers.is_empty()).map(|node| &*node.path)
    }

    /// Writes `value` to the `file` of `controller`.
    ///
    /// # Errors
    /// `Unsupported` without that controller; those of writing, unchanged.
    pub fn set(&self, controller: &str, file: &str, value: &str) -> io::Result<()> {
        let missing = || io::Error::new(ErrorKind::Unsupported, format!("there is no cgroup for `{controller}`"));
        // Nothing is made here: a file that the kernel does not have is an error.
        let mut options = fs::File::options();
        let mut file = options.write(true).open(self.dir(controller).ok_or_else(missing)?.join(file))?;
        io::Write::write_all(&mut file, value.as_bytes())
    }

    /// Stops every process of a container of version 1 where it is, and waits until all are.
    ///
    /// # Errors
    /// `TimedOut` when that does not succeed; then they go on. Those of reading and writing.
    pub fn freeze(&self) -> io::Result<()> {
        let frozen = self.try_freeze();
        if frozen.is_err() {
            // The first error says why.
            let _thawed = self.thaw();
        }
        frozen
    }

    fn try_freeze(&self) -> io::Result<()> {
        let missing = || io::Error::new(ErrorKind::Unsupported, "there is no freezer");
        let state = self.dir("freezer").ok_or_else(missing)?.join("freezer.state");
        let (deadline, mut thaw_at) = (Instant::now() + FREEZE_WITHIN, Instant::now() + THAWED_FOR);
        while Instant::now() < deadline {
            fs::write(&state, "FROZEN").map_err(|error| at("write to", &state, &error))?;
            if read(&state)?.trim() == "FROZEN" {
                return Ok(());
            }
            if Instant::now() > thaw_at {
                self.thaw()?;
                thaw_at = Instant::now() + THAWED_FOR;
            }
            std::thread::yield_now();
        }
        Err(io::Error::new(ErrorKind::TimedOut, "its processes do not stop"))
    }

    /// Lets them go on.
    ///
    /// # Errors
    /// Those of writing.
    pub fn thaw(&self) -> io::Result<()> {
        self.set("freezer", "freezer.state", "THAWED")
    }
}
