//! What skiff's own launcher understands of a specification, as what it does: the settings of the cgroups, and the steps of the
//! process's first stage. Whatever it does not understand completely, it leaves to the OCI runtime, with a reason.
//!
//! The order of the steps and what they do are runc's, which the differential test compares.

mod mounts;
mod process;
mod profile;
mod reason;
mod resources;
mod strict;
#[cfg(test)]
mod tests;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use oci_spec::runtime::Process as ProcessSpec;
use serde_json::Value;
use skiff_linux::cgroup::{Devices, Hierarchy};
use skiff_protocol::launch::{Device, FilterFlags, Link, MountFlags, Namespace, Stage, Step};

use self::mounts::HasCgroupNamespace;
use self::process::Inherited;
pub(crate) use self::profile::Profile;
use self::reason::is_clear;
pub(crate) use self::reason::{CgroupDir, Cgroups, Reason};
pub(crate) use self::resources::{Limits, Setting, Tolerated, update};
use self::strict::{section, without_empty};
use crate::spec::config::Config;
use crate::spec::debug::Debug;

/// What has to be known besides the specification.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Given<'a> {
    pub(crate) id: &'a str,
    pub(crate) cgroups: &'a Cgroups,
    /// systemd makes the container's cgroup.
    pub(crate) has_scope: bool,
    /// The container gets a session keyring of its own.
    pub(crate) has_keyring: bool,
    /// The node shows its memory as `/proc/kcore`.
    pub(crate) has_kcore: bool,
    /// The node's kernel applies AppArmor profiles.
    pub(crate) has_apparmor: bool,
}

/// How a container is made.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Plan {
    /// In this order.
    pub(crate) settings: Vec<Setting>,
    /// Those that a program in the kernel allows; on v1 there are settings for them.
    pub(crate) devices: Option<Devices>,
    /// What updates change.
    pub(crate) limits: Limits,
    pub(crate) stage: Stage,
    pub(crate) further: Further,
    /// Whose filter [`Plan::install`] adds.
    pub(crate) profile: Option<Profile>,
}

/// What further processes of a container have in common.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Further {
    /// What a process does among those of the node.
    first: Vec<Step>,
    /// How it joins the first one.
    join: Step,
    /// The cgroups that it joins last.
    last: Option<Step>,
    inherited: Inherited,
    has_apparmor: bool,
    flags: Option<FilterFlags>,
    filter: Vec<u64>,
}

impl Plan {
    /// Adds the instructions of the profile's filter.
    pub(crate) fn install(&mut self, filter: &[u64]) {
        self.stage.filter = filter.to_vec();
        self.further.filter = filter.to_vec();
    }
}

/// The sysctls of an IPC namespace besides those of `fs.mqueue`.
const IPC_SYSCTLS: [&str; 8] = ["msgmax", "msgmnb", "msgmni", "sem", "shm_rmid_forced", "shmall", "shmmax", "shmmni"];
const DEV: &str = "/dev";

/// Understands the specification of a container whose program is the engine.
///
/// # Errors
/// The first reason why it does not.
pub(crate) fn understand(config: &Config, given: Given<'_>) -> Result<Plan, Reason> {
    let debug = Debug::from_annotations(&config.annotations).map_err(|error| Reason(error.to_string()))?;
    if debug.is_for_the_runtime {
        return Err(Reason("the annotation `debug.skiff.dev/launcher` says so".into()));
    }
    let text = serde_json::to_value(config).map_err(|error| Reason(error.to_string()))?;
    let written = text["linux"]["seccomp"].clone();
    let spec: strict::Spec = section("the specification", without_empty(text))?;
    if !spec.oci_version.starts_with("1.") {
        return Err(Reason(format!("`ociVersion`: `{}`", spec.oci_version)));
    }
    let root: strict::Root = section("root", spec.root)?;
    let linux: strict::Linux = section("linux", spec.linux)?;
    let process = process::understand(spec.process, None, given.has_apparmor)?;
    if process.has_terminal {
        return Err(Reason("`process.terminal`".into()));
    }
    if !process::is_engine(&process.args) {
        return Err(Reason("`process.args`: the program is not the engine".into()));
    }
    let is_named = given.has_scope || linux.cgroups_path.starts_with('/');
    if !is_named || matches!(given.cgroups, Cgroups::V1(dirs) if dirs.is_empty()) {
        return Err(Reason(format!("`linux.cgroupsPath`: `{}` is not a path of a cgroup", linux.cgroups_path)));
    }
    let namespaces = Namespaces::of(linux.namespaces)?;
    // The first stage of a further process is among the container's before it has the container's mounts and rights.
    if !namespaces.is_new(Namespace::Pid) || process::reads_others(&process.inherited.capabilities) {
        return Err(Reason("`linux.namespaces`, `process.capabilities`: others could read a first stage".into()));
    }
    if spec.mounts.iter().any(is_dev_of_others) {
        return Err(Reason("`mounts`: `/dev` is not a file system of the container's own".into()));
    }
    let profile = linux.seccomp.map(|seccomp| profile::understand(seccomp, &written)).transpose()?;
    let flags = profile.as_ref().map(|profile| profile.flags);
    let nodes = nodes(linux.devices)?;
    let paths: Vec<_> = config.linux.devices.iter().filter_map(|device| device.path.to_str()).collect();
    let (limits, devices) = resources::understand(linux.resources, &paths)?;
    let hierarchy = given.cgroups.hierarchy();
    let (mut settings, devices) = match hierarchy {
        Hierarchy::V1 => (resources::settings_on_v1(&devices), None),
        Hierarchy::V2 => (Vec::new(), Some(devices)),
    };
    settings.extend(resources::settings(&limits, hierarchy, None)?);

    let (now, later) = match given.cgroups {
        Cgroups::V1(dirs) => in_two_parts(dirs, namespaces.has_new_cgroup()),
        Cgroups::V2 => (None, None),
    };
    let mut first: Vec<Step> =
        given.has_keyring.then(|| Step::Keyring(format!("_ses.{}", given.id))).into_iter().collect();
    // The score before anything in the container's cgroups can run out of memory.
    first.extend([Step::OomScore(process.oom_score), Step::Session]);
    first.extend(now);
    let mut steps = first.clone();
    steps.extend(process.confinement());
    steps.extend(namespaces.steps());
    steps.push(Step::Root { path: root.path, propagation: propagation(&linux.rootfs_propagation)? });
    let mut read_only = Vec::new();
    for mount in spec.mounts {
        let mount = section("mounts", mount)?;
        let (mounted, later) = mounts::steps(mount, given.cgroups, namespaces.has_new_cgroup())?;
        steps.extend(mounted);
        read_only.extend(later);
    }
    steps.extend(device_steps(nodes, given.has_kcore));
    steps.extend([Step::NullStreams, Step::Directory(process.identity.directory.clone())]);
    steps.extend(read_only);
    let whole = MountFlags::MS_BIND | MountFlags::MS_REMOUNT | MountFlags::MS_RDONLY;
    steps.extend(root.readonly.then(|| Step::Remount("/".into(), whole.bits())));
    steps.extend(sysctls(&config.linux.sysctl, &namespaces)?);
    steps.extend(linux.readonly_paths.into_iter().map(Step::ReadOnly));
    steps.extend([Step::Mask(linux.masked_paths), Step::Pivot]);
    steps.extend(names(spec.hostname, spec.domainname, &namespaces)?);
    steps.push(Step::Umask(process.inherited.umask.unwrap_or(0o022)));

    let further = Further {
        first,
        join: namespaces.join_process(),
        last: later.clone(),
        inherited: process.inherited.clone(),
        has_apparmor: given.has_apparmor,
        flags,
        filter: Vec::new(),
    };
    let stage = process.stage(steps, later, flags);
    Ok(Plan { settings, devices, limits, stage, further, profile })
}

impl Further {
    /// The first stage of a further process.
    ///
    /// # Errors
    /// The reason why `spec` is not understood.
    pub(crate) fn stage(&self, spec: &ProcessSpec) -> Result<Stage, Reason> {
        let text = serde_json::to_value(spec).map_err(|error| Reason(error.to_string()))?;
        let process = process::understand(text, Some(&self.inherited), self.has_apparmor)?;
        if process::reads_others(&process.inherited.capabilities) {
            return Err(Reason("`process.capabilities`: it could read the next first stage".into()));
        }
        let mut steps = self.first.clone();
        steps.extend(process.confinement());
        steps.push(self.join.clone());
        steps.extend(process.has_terminal.then_some(Step::Terminal));
        steps.push(Step::Umask(self.inherited.umask.unwrap_or(0o022)));
        let stage = process.stage(steps, self.last.clone(), self.flags);
        Ok(Stage { filter: self.filter.clone(), ..stage })
    }
}

/// Whether a mount at `/dev` is not a file system of the container's own.
fn is_dev_of_others(mount: &Value) -> bool {
    let is_dev = mount["destination"].as_str().is_some_and(|place| Path::new(place) == Path::new(DEV));
    let is_bound = |option: &Value| option == "bind" || option == "rbind";
    let options = mount["options"].as_array().map(Vec::as_slice).unwrap_or_default();
    is_dev && (mount["type"] != "tmpfs" || options.iter().any(is_bound))
}

/// The namespaces of a container, of each kind one.
struct Namespaces(Vec<(Namespace, Option<PathBuf>)>);

impl Namespaces {
    fn of(described: Vec<Value>) -> Result<Self, Reason> {
        let mut namespaces: Vec<(Namespace, Option<PathBuf>)> = Vec::new();
        for value in described {
            let strict::Namespace { kind, path } = section("linux.namespaces", value)?;
            let refused = || Reason(format!("`linux.namespaces`: `{kind}`"));
            let known = match (kind.as_str(), &path) {
                ("cgroup", None) => Namespace::Cgroup,
                ("ipc", _) => Namespace::Ipc,
                ("mount", None) => Namespace::Mount,
                ("network", _) => Namespace::Network,
                ("pid", _) => Namespace::Pid,
                ("uts", _) => Namespace::Uts,
                _ => return Err(refused()),
            };
            if namespaces.iter().any(|(kind, _)| *kind == known) {
                return Err(refused());
            }
            namespaces.push((known, path));
        }
        if !namespaces.contains(&(Namespace::Mount, None)) {
            return Err(Reason("`linux.namespaces`: no `mount`".into()));
        }
        Ok(Self(namespaces))
    }

    fn is_new(&self, kind: Namespace) -> bool {
        self.0.contains(&(kind, None))
    }

    fn has_new_cgroup(&self) -> HasCgroupNamespace {
        if self.is_new(Namespace::Cgroup) { HasCgroupNamespace::Yes } else { HasCgroupNamespace::No }
    }

    /// How the first process gets into them; it is made in those of mounts and of process ids.
    fn steps(&self) -> Vec<Step> {
        let order = [Namespace::Ipc, Namespace::Uts, Namespace::Network, Namespace::Cgroup];
        let found = order.iter().filter_map(|wanted| self.0.iter().find(|(kind, _)| kind == wanted));
        let joined = found.clone().filter_map(|(kind, path)| Some(Step::Join(*kind, path.clone()?)));
        let new = found.filter(|(_, path)| path.is_none()).map(|(kind, _)| Step::New(*kind));
        let loopback = self.is_new(Namespace::Network).then_some(Step::Loopback);
        joined.chain(new).chain(loopback).collect()
    }

    /// How a further process gets into them; it is made in that of process ids.
    fn join_process(&self) -> Step {
        Step::JoinProcess(self.0.iter().map(|(kind, _)| *kind).filter(|kind| *kind != Namespace::Pid).collect())
    }
}

/// The cgroups that a process joins at once, and those that it joins last: from then on it competes with its container's weight. A
/// new cgroup namespace keeps those of the moment.
fn in_two_parts(cgroups: &[CgroupDir], has_namespace: HasCgroupNamespace) -> (Option<Step>, Option<Step>) {
    let is_later = |dir: &CgroupDir| {
        has_namespace == HasCgroupNamespace::No
            && dir.controllers.iter().any(|controller| controller == "cpu" || controller == "cpuacct")
    };
    let tasks = |dir: &CgroupDir| dir.path.join("tasks");
    let (later, now): (Vec<&CgroupDir>, Vec<&CgroupDir>) = cgroups.iter().partition(|dir| is_later(dir));
    let step = |dirs: Vec<&CgroupDir>| Some(Step::Cgroups(dirs.into_iter().map(tasks).collect()));
    (step(now), step(later))
}

fn propagation(name: &str) -> Result<u64, Reason> {
    let name = if name.is_empty() { "rslave" } else { name };
    let refused = || Reason(format!("`linux.rootfsPropagation`: `{name}`"));
    let flags = mounts::propagation(name).filter(|flags| !flags.contains(MountFlags::MS_SHARED));
    flags.map(|flags| flags.bits()).ok_or_else(refused)
}

/// The device nodes: those that every container has, and those that are described.
fn nodes(described: Vec<Value>) -> Result<Vec<Device>, Reason> {
    let mut nodes = Vec::new();
    for value in described {
        let device: strict::Device = section("linux.devices", value)?;
        let is_block = match device.kind.as_str() {
            "c" | "u" => false,
            "b" => true,
            other => return Err(Reason(format!("`linux.devices`: the type `{other}`"))),
        };
        if !is_clear(&device.path) {
            return Err(Reason(format!("`linux.devices`: the path `{}`", device.path.display())));
        }
        nodes.push(Device {
            path: device.path,
            is_block,
            number: (device.major, device.minor),
            mode: device.file_mode.unwrap_or(0o666) & 0o7777,
            owner: (device.uid, device.gid),
        });
    }
    let defaults = resources::default_nodes().filter(|(path, _)| nodes.iter().all(|node| node.path != Path::new(path)));
    let mut all: Vec<Device> = defaults
        .map(|(path, number)| Device { path: path.into(), is_block: false, number, mode: 0o666, owner: (0, 0) })
        .collect();
    all.append(&mut nodes);
    Ok(all)
}

/// The steps that fill `/dev`.
fn device_steps(nodes: Vec<Device>, has_kcore: bool) -> Vec<Step> {
    let ptmx = Path::new("/dev/ptmx");
    let nodes = nodes.into_iter().filter(|node| node.path != ptmx).map(Step::Device);
    let link =
        |path: &str, target: &str, replaces| Step::Link(Link { path: path.into(), target: target.into(), replaces });
    let links = [
        link("/dev/ptmx", "pts/ptmx", true),
        link("/dev/fd", "/proc/self/fd", false),
        link("/dev/stdin", "/proc/self/fd/0", false),
        link("/dev/stdout", "/proc/self/fd/1", false),
        link("/dev/stderr", "/proc/self/fd/2", false),
    ];
    nodes.chain(links).chain(has_kcore.then(|| link("/dev/core", "/proc/kcore", false))).collect()
}

/// The sysctls of namespaces that are the container's own.
fn sysctls(sysctls: &BTreeMap<String, String>, namespaces: &Namespaces) -> Result<Vec<Step>, Reason> {
    let step = |(name, value): (&String, &String)| {
        let (domain, rest) = name.split_once('.').unwrap_or((name, ""));
        let namespace = match domain {
            "kernel" if IPC_SYSCTLS.contains(&rest) => Some(Namespace::Ipc),
            "kernel" if rest == "domainname" => Some(Namespace::Uts),
            "fs" if rest.starts_with("mqueue.") => Some(Namespace::Ipc),
            "net" => Some(Namespace::Network),
            _ => None,
        };
        // A name with a slash has dots that are not those between directories.
        match namespace.filter(|kind| namespaces.is_new(*kind) && !name.contains('/') && !name.contains("..")) {
            Some(_) => Ok(Step::Sysctl(name.replace('.', "/"), value.clone())),
            None => Err(Reason(format!("`linux.sysctl`: `{name}`"))),
        }
    };
    sysctls.iter().map(step).collect()
}

fn names(host: Option<String>, domain: Option<String>, namespaces: &Namespaces) -> Result<Vec<Step>, Reason> {
    let names: Vec<_> = host.map(Step::HostName).into_iter().chain(domain.map(Step::DomainName)).collect();
    if names.is_empty() || namespaces.is_new(Namespace::Uts) {
        Ok(names)
    } else {
        Err(Reason("`hostname`: there is no new `uts` namespace".into()))
    }
}
