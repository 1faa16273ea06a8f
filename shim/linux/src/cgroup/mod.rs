//! The control groups of a container: finding, making, signalling and removing them as a whole.
//!
//! On cgroup v2 a container has one directory. On v1 it has one in each hierarchy, and on a hybrid node also one in the
//! unified tree. A [`Cgroup`] stands for all of them. Which limits it gets is decided elsewhere.
//!
//! The root of a hierarchy and the shim's own directory do not belong to a container: nothing is counted, killed or removed
//! there.

mod control;
mod counts;
mod devices;
mod files;
mod hierarchy;
mod limits;
mod place;
mod processes;
#[cfg(test)]
mod tests;

use std::collections::HashSet;
use std::fs;
use std::io::{self, ErrorKind};
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

pub use self::counts::{count_in, oom_kills_in};
pub use self::devices::{Access, DeviceRule, Devices};
use self::files::{at, read};
pub use self::hierarchy::Hierarchy;
pub use self::limits::{parse_limit, parse_shared_memory};
use self::place::{Membership, Mount, Place};
use crate::mounts::each_mount;

/// How long processes may take to die.
const REMOVE_WITHIN: Duration = Duration::from_secs(5);
/// How often a cgroup is searched for processes that have not been signalled yet.
const ROUNDS_MAX: usize = 20;
/// The v1 hierarchies in which to look for a container's processes, best first, in runc's order.
const PROCESS_CONTROLLERS: [&str; 5] = ["devices", "pids", "freezer", "memory", "cpu"];

/// The control groups of one container.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Cgroup {
    hierarchy: Hierarchy,
    nodes: Vec<Node>,
}

/// A container's directory in one hierarchy.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Node {
    /// `memory`, `name=systemd`, ...; empty for the unified hierarchy.
    controllers: Vec<String>,
    mountpoint: PathBuf,
    path: PathBuf,
    /// Whether only the container uses it: it is neither the root of the hierarchy nor the shim's own.
    is_own: bool,
}

impl Cgroup {
    /// The cgroup at `path` in the unified hierarchy that is mounted at `mountpoint`.
    pub fn unified(mountpoint: &Path, path: PathBuf) -> Self {
        let node = Node { controllers: Vec::new(), mountpoint: mountpoint.into(), is_own: path != mountpoint, path };
        Self { hierarchy: Hierarchy::V2, nodes: vec![node] }
    }

    /// The cgroups that the process `pid` is in.
    ///
    /// # Errors
    /// `NotFound` when there is no such process; those of reading `/proc`.
    pub fn of_pid(pid: i32) -> io::Result<Self> {
        let (theirs, ours) = (memberships_of(&pid.to_string())?, memberships_of("self")?);
        let path_of = |membership: &Membership, mount: &Mount| place::below_mount(&membership.path, &mount.root);
        let mut cgroup = Self::new(&theirs, path_of)?;
        let shims = Self::new(&ours, path_of)?;
        for node in &mut cgroup.nodes {
            node.is_own &= shims.nodes.iter().all(|shim| shim.path != node.path);
        }
        Ok(cgroup)
    }

    /// The cgroups that the OCI runtime makes for the container `id` with the `cgroups_path` of its spec (which may be
    /// empty): a path, or `slice:prefix:name` when the runtime runs with `systemd_cgroup`. They need not exist.
    ///
    /// # Errors
    /// `InvalidInput` for a path that the runtime would also refuse; those of reading `/proc`.
    pub fn from_spec(cgroups_path: &str, systemd_cgroup: bool, id: &str) -> io::Result<Self> {
        let place =
            if systemd_cgroup { Place::of_systemd(cgroups_path, id)? } else { Place::of_cgroupfs(cgroups_path, id) };
        let hierarchy = Hierarchy::detect()?;
        let memberships = memberships_of("self")?;
        Self::new(&memberships, |membership, mount| place.below(hierarchy, membership, mount))
    }

    fn new(memberships: &[Membership], path_of: impl Fn(&Membership, &Mount) -> PathBuf) -> io::Result<Self> {
        let hierarchy = Hierarchy::detect()?;
        let mut missing: Vec<_> = memberships.iter().collect();
        missing.retain(|membership| hierarchy == Hierarchy::V1 || membership.controllers.is_empty());
        let mut nodes = Vec::with_capacity(missing.len());
        // In the order of the mounts. Those of cgroups are older than those of pods, so not all are read.
        each_mount(|line| {
            if let Some(mount) = Mount::parse(line) {
                for membership in missing.extract_if(.., |membership| mount.has(membership)) {
                    let path = mount.point.join(path_of(membership, &mount));
                    let (controllers, mountpoint) = (membership.controllers.clone(), mount.point.clone());
                    nodes.push(Node { controllers, is_own: path != mountpoint, mountpoint, path });
                }
            }
            if missing.is_empty() { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
        })?;
        Ok(Self { hierarchy, nodes })
    }

    /// The version of these cgroups.
    pub fn hierarchy(&self) -> Hierarchy {
        self.hierarchy
    }

    /// The container's own directory with the files of `controller`.
    pub fn dir(&self, controller: &str) -> Option<&Path> {
        self.node(controller).filter(|node| node.is_own).map(|node| node.path.as_path())
    }

    /// Whether the container has a cgroup of its own right now.
    pub fn exists(&self) -> bool {
        self.own_nodes().any(|node| node.path.is_dir())
    }

    /// The cgroup above, which is the pod's for a container.
    pub fn parent(&self) -> Self {
        let above = |node: &Node| {
            let path = node.path.parent().unwrap_or(&node.path).to_path_buf();
            Node { is_own: node.is_own && path != node.mountpoint, path, ..node.clone() }
        };
        Self { hierarchy: self.hierarchy, nodes: self.nodes.iter().map(above).collect() }
    }

    /// Makes the cgroups, without processes and limits. Existing ones stay as they are.
    ///
    /// # Errors
    /// Those of making a directory; the directories made so far are then removed again. On v1 also those of copying the
    /// parent's processors and memory nodes, without which no process could join.
    pub fn create_empty(&self) -> io::Result<()> {
        let made = self.own_nodes().try_for_each(|node| self.make(node));
        if made.is_err() {
            // Whatever hinders this is the reason for the error that is returned.
            self.remove_until(Instant::now()).ok();
        }
        made
    }

    /// Moves the process `pid` into the cgroups that exist.
    ///
    /// # Errors
    /// `NotFound` when none exists; those of writing to `cgroup.procs`.
    pub fn join(&self, pid: u32) -> io::Result<()> {
        let mut there = self.nodes.iter().filter(|node| node.path.is_dir()).peekable();
        if there.peek().is_none() {
            let path = self.nodes.first().map_or(Path::new("/"), |node| node.path.as_path());
            return Err(at("find", path, &ErrorKind::NotFound.into()));
        }
        there.try_for_each(|node| {
            let file = node.path.join("cgroup.procs");
            fs::write(&file, pid.to_string()).map_err(|error| at("write to", &file, &error))
        })
    }

    /// Removes the cgroups and everything below them. Waits some seconds while processes are still dying there.
    ///
    /// # Errors
    /// `ResourceBusy` when processes are still there; those of `rmdir(2)`. A cgroup that is already gone is not an error.
    pub fn remove(&self) -> io::Result<()> {
        self.remove_until(Instant::now() + REMOVE_WITHIN)
    }

    /// Removes the cgroups if nothing is in them any more, neither processes nor other cgroups, and says whether they are gone. It asks
    /// the kernel for nothing else, so it is quick.
    #[must_use]
    pub fn remove_if_empty(&self) -> bool {
        let is_gone = |path: &Path| match fs::remove_dir(path) {
            Ok(()) => true,
            Err(error) => error.kind() == ErrorKind::NotFound,
        };
        self.own_nodes().all(|node| is_gone(&node.path))
    }

    fn remove_until(&self, deadline: Instant) -> io::Result<()> {
        loop {
            // Every hierarchy is tried, even if another one fails.
            let failures: Vec<io::Error> = self.own_nodes().filter_map(|node| remove_tree(&node.path).err()).collect();
            match failures.into_iter().next() {
                None => return Ok(()),
                Some(error) if error.kind() == ErrorKind::ResourceBusy && Instant::now() < deadline => {
                    processes::wait_for_any_exit(&self.all_pids(), deadline)?;
                }
                Some(error) => return Err(error),
            }
        }
    }

    /// The processes in the container's cgroup and below it.
    ///
    /// # Errors
    /// `NotFound` when the cgroup does not exist; those of reading it.
    pub fn pids(&self) -> io::Result<Vec<i32>> {
        let dir = PROCESS_CONTROLLERS.iter().find_map(|controller| self.dir(controller));
        let dir = dir.ok_or_else(|| io::Error::new(ErrorKind::NotFound, "the container has no cgroup"))?;
        let mut pids = processes::of_dir(dir)?;
        for below in dirs_below(dir) {
            pids.extend(processes::of_dir(&below).unwrap_or_default());
        }
        Ok(pids)
    }

    /// Whether no process is in the cgroups or below them. Those that do not exist are empty.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.all_pids().is_empty()
    }

    /// Sends SIGKILL to every process in the cgroups and below them, even to frozen ones. Does not wait for them to end
    /// ([`Cgroup::remove`] does).
    ///
    /// # Errors
    /// `PermissionDenied` when the shim itself is among them; those of sending the signal.
    pub fn kill_all(&self) -> io::Result<()> {
        if self.others()?.is_empty() {
            return Ok(());
        }
        if let Some(switch) = self.kill_switch() {
            return fs::write(&switch, "1").map_err(|error| at("write to", &switch, &error));
        }
        // A frozen group cannot fork faster than it is killed; thawed, its processes die of the signal.
        self.set_freezer("FROZEN");
        let killed = self.signal_all(libc::SIGKILL);
        self.set_freezer("THAWED");
        killed
    }

    /// Sends `signal` once to every process in the cgroups and below them, including those that appear meanwhile. It gives
    /// up after some rounds, so that a container that forks all the time cannot hold it up for ever.
    ///
    /// # Errors
    /// `PermissionDenied` when the shim itself is among them; those of sending the signal.
    pub fn signal_all(&self, signal: i32) -> io::Result<()> {
        let mut signalled = HashSet::new();
        for _ in 0..ROUNDS_MAX {
            let new: Vec<i32> = self.others()?.difference(&signalled).copied().collect();
            if new.is_empty() {
                break;
            }
            processes::signal(&new, signal, || self.all_pids())?;
            signalled.extend(new);
        }
        Ok(())
    }

    /// How many processes of the container the kernel killed because memory ran out. `None` when the kernel does not count
    /// them or the cgroup is gone.
    pub fn oom_kills(&self) -> Option<u64> {
        self.oom_kills_of(self.dir("memory")?)
    }

    /// The same for the parent cgroup and everything below it. `None` on v1, where the kernel does not add them up.
    pub fn oom_kills_above(&self) -> Option<u64> {
        let above = self.dir("memory")?.parent().filter(|_| self.hierarchy == Hierarchy::V2)?;
        self.oom_kills_of(above)
    }

    fn oom_kills_of(&self, dir: &Path) -> Option<u64> {
        let name = match self.hierarchy {
            Hierarchy::V1 => "memory.oom_control",
            Hierarchy::V2 => "memory.events",
        };
        oom_kills_in(&fs::read_to_string(dir.join(name)).ok()?)
    }

    fn node(&self, controller: &str) -> Option<&Node> {
        self.nodes.iter().find(|node| match self.hierarchy {
            Hierarchy::V1 => node.controllers.iter().any(|name| name == controller),
            Hierarchy::V2 => true,
        })
    }

    fn own_nodes(&self) -> impl Iterator<Item = &Node> {
        self.nodes.iter().filter(|node| node.is_own)
    }

    /// The processes of all hierarchies; on v1 a process may be in a different place in each.
    fn all_pids(&self) -> HashSet<i32> {
        let dirs = self.own_nodes().flat_map(|node| [vec![node.path.clone()], dirs_below(&node.path)].concat());
        dirs.flat_map(|dir| processes::of_dir(&dir).unwrap_or_default()).collect()
    }

    /// All processes; fails if the shim is one of them.
    fn others(&self) -> io::Result<HashSet<i32>> {
        let pids = self.all_pids();
        if pids.contains(&nix::unistd::getpid().as_raw()) {
            return Err(io::Error::new(ErrorKind::PermissionDenied, "the shim itself is in the container's cgroup"));
        }
        Ok(pids)
    }

    /// v2's `cgroup.kill`, since Linux 5.14.
    fn kill_switch(&self) -> Option<PathBuf> {
        let switch = self.dir("").filter(|_| self.hierarchy == Hierarchy::V2)?.join("cgroup.kill");
        switch.exists().then_some(switch)
    }

    /// Freezes or thaws the processes, if there is a freezer.
    fn set_freezer(&self, state: &str) {
        let Some(dir) = self.dir("freezer").filter(|_| self.hierarchy == Hierarchy::V1) else { return };
        for dir in [vec![dir.to_owned()], dirs_below(dir)].concat() {
            // A group that cannot be frozen is killed anyway, possibly in more rounds.
            let _frozen = fs::write(dir.join("freezer.state"), state);
        }
    }

    fn make(&self, node: &Node) -> io::Result<()> {
        let mut missing: Vec<&Path> = node.path.ancestors().take_while(|dir| *dir != node.mountpoint).collect();
        missing.reverse();
        for dir in missing {
            if self.hierarchy == Hierarchy::V2 {
                enable_controllers(dir.parent().unwrap_or(dir));
            }
            match fs::create_dir(dir) {
                Err(error) if error.kind() != ErrorKind::AlreadyExists => return Err(at("make", dir, &error)),
                _ => {}
            }
            if node.controllers.iter().any(|name| name == "cpuset") {
                inherit(dir, "cpuset.cpus")?;
                inherit(dir, "cpuset.mems")?;
            }
        }
        Ok(())
    }
}

fn memberships_of(process: &str) -> io::Result<Vec<Membership>> {
    let path = Path::new("/proc").join(process).join("cgroup");
    let text = read(&path).map_err(|error| match error.raw_os_error() {
        Some(libc::ESRCH) => io::Error::new(ErrorKind::NotFound, format!("there is no process {process}")),
        _ => error,
    })?;
    Ok(Membership::parse_all(&text))
}

/// Enables the controllers of `dir` for its children, as runc does. A controller that cannot be enabled (because the group
/// has processes of its own, say) is missing in the child.
fn enable_controllers(dir: &Path) {
    let Ok(controllers) = fs::read_to_string(dir.join("cgroup.controllers")) else { return };
    let switch = dir.join("cgroup.subtree_control");
    let enabled = fs::read_to_string(&switch).unwrap_or_default();
    for name in controllers.split_whitespace().filter(|name| !enabled.split_whitespace().any(|on| on == *name)) {
        let _enabled = fs::write(&switch, format!("+{name}"));
    }
}

/// Copies the value of a v1 cpuset file from the parent if it is empty.
fn inherit(dir: &Path, file: &str) -> io::Result<()> {
    let own = dir.join(file);
    if !read(&own)?.trim().is_empty() {
        return Ok(());
    }
    let above = dir.parent().unwrap_or(dir).join(file);
    fs::write(&own, read(&above)?.trim()).map_err(|error| at("write to", &own, &error))
}

/// Removes a cgroup and those below it, deepest first.
fn remove_tree(dir: &Path) -> io::Result<()> {
    // Most have no children.
    if remove_dir(dir).is_ok() {
        return Ok(());
    }
    for below in dirs_below(dir) {
        remove_dir(&below)?;
    }
    remove_dir(dir)
}

fn remove_dir(dir: &Path) -> io::Result<()> {
    match fs::remove_dir(dir) {
        Err(error) if error.kind() != ErrorKind::NotFound => Err(at("remove", dir, &error)),
        _ => Ok(()),
    }
}

/// All directories below `dir`, deepest first, without those that vanish meanwhile.
fn dirs_below(dir: &Path) -> Vec<PathBuf> {
    let mut dirs = Vec::new();
    for below in fs::read_dir(dir).into_iter().flatten().flatten() {
        if below.file_type().is_ok_and(|kind| kind.is_dir()) {
            dirs.extend(dirs_below(&below.path()));
            dirs.push(below.path());
        }
    }
    dirs
}
