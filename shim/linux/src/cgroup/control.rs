//! Settings of cgroups, for whoever makes a container without the OCI runtime.

use std::fs::{self, File};
use std::io::{self, ErrorKind, Read, Seek};
use std::os::fd::AsFd;
use std::path::Path;
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

use super::files::{at, read};
use super::{Cgroup, Hierarchy, count_in};

/// How long a cgroup may take to freeze.
const FREEZE_WITHIN: Duration = Duration::from_secs(5);
/// How long processes that are caught while they make others may go on before they are frozen again.
const THAWED_FOR: Duration = Duration::from_millis(10);
/// How long somebody else may take to move a process into a cgroup, and how often to look.
const ENTERED_WITHIN: Duration = Duration::from_secs(10);
const LOOK_EVERY_MS: u8 = 1;

impl Cgroup {
    /// The directories in the hierarchies of version 1: the controllers of each, where it is mounted, and the container's own
    /// directory. None on version 2.
    pub fn v1_dirs(&self) -> impl Iterator<Item = (&[String], &Path, &Path)> {
        let is_v1 = self.hierarchy == Hierarchy::V1;
        let nodes = self.own_nodes().filter(move |node| is_v1 && !node.controllers.is_empty());
        nodes.map(|node| (&*node.controllers, &*node.mountpoint, &*node.path))
    }

    /// The container's own directory in the unified tree: the only one on version 2, and one without controllers beside those of
    /// version 1.
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

    /// Waits until somebody else has moved the process `pid` into the container's cgroup.
    ///
    /// # Errors
    /// `TimedOut` when that takes too long.
    pub fn wait_for(&self, pid: u32) -> io::Result<()> {
        let deadline = Instant::now() + ENTERED_WITHIN;
        let is_in = || self.pids().is_ok_and(|pids| pids.iter().any(|there| there.cast_unsigned() == pid));
        while !is_in() {
            if Instant::now() > deadline {
                return Err(io::Error::new(ErrorKind::TimedOut, format!("process {pid} is not moved into its cgroup")));
            }
            let _slept = poll(&mut [], PollTimeout::from(LOOK_EVERY_MS));
        }
        Ok(())
    }

    /// Stops every process of the container where it is, and waits until all are.
    ///
    /// # Errors
    /// `TimedOut` when that does not succeed; then they go on. Those of reading and writing.
    pub fn freeze(&self) -> io::Result<()> {
        let frozen = match self.hierarchy {
            Hierarchy::V1 => self.try_freeze(),
            Hierarchy::V2 => self.try_freeze_on_v2(),
        };
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

    fn try_freeze_on_v2(&self) -> io::Result<()> {
        self.set("freezer", "cgroup.freeze", "1")?;
        let missing = || io::Error::new(ErrorKind::Unsupported, "there is no freezer");
        let path = self.dir("freezer").ok_or_else(missing)?.join("cgroup.events");
        let mut events = File::open(&path).map_err(|error| at("open", &path, &error))?;
        let deadline = Instant::now() + FREEZE_WITHIN;
        while Instant::now() < deadline {
            let mut text = String::new();
            events.rewind()?;
            events.read_to_string(&mut text).map_err(|error| at("read", &path, &error))?;
            if count_in(&text, "frozen") == Some(1) {
                return Ok(());
            }
            // The kernel says when something has happened since it was read.
            let left = deadline.saturating_duration_since(Instant::now());
            let mut polled = [PollFd::new(events.as_fd(), PollFlags::POLLPRI)];
            match poll(&mut polled, PollTimeout::try_from(left).unwrap_or(PollTimeout::ZERO)) {
                Ok(_) | Err(Errno::EINTR) => {}
                Err(error) => return Err(error.into()),
            }
        }
        Err(io::Error::new(ErrorKind::TimedOut, "its processes do not stop"))
    }

    /// Lets them go on.
    ///
    /// # Errors
    /// Those of writing.
    pub fn thaw(&self) -> io::Result<()> {
        match self.hierarchy {
            Hierarchy::V1 => self.set("freezer", "freezer.state", "THAWED"),
            Hierarchy::V2 => self.set("freezer", "cgroup.freeze", "0"),
        }
    }
}
