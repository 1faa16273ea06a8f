//! The mounts of a specification, as steps.

use std::path::{Path, PathBuf};

use skiff_protocol::launch::{BIND, Link, Mount, MountFlags, Step};

use super::reason::{CgroupDir, Cgroups, Reason, is_clear};
use super::strict;

/// What the options of a mount mean.
struct Options {
    set: MountFlags,
    /// Whether an option takes a flag away.
    clears: bool,
    propagation: Vec<MountFlags>,
    data: Vec<String>,
}

/// File systems that the kernel mounts once it is asked, with the options of their own that are understood.
const FILE_SYSTEMS: [(&str, &[&str]); 6] = [
    ("cgroup", &[]),
    ("devpts", &["newinstance", "ptmxmode", "mode", "gid"]),
    ("mqueue", &[]),
    ("proc", &[]),
    ("sysfs", &[]),
    (TMPFS, &["size", "mode", "uid", "gid", "nr_inodes"]),
];
const TMPFS: &str = "tmpfs";
const DEV: &str = "/dev";

/// The steps that make `mount`, and those that make it read-only once everything is in its place.
pub(super) fn steps(
    mount: strict::Mount,
    cgroups: &Cgroups,
    has_cgroup_namespace: HasCgroupNamespace,
) -> Result<(Vec<Step>, Option<Step>), Reason> {
    let target = mount.destination;
    let refused = |why: &str| Reason(format!("the mount at `{}`: {why}", target.display()));
    if !is_clear(&target) {
        return Err(refused("this is not a place below the root"));
    }
    let options = Options::parse(&mount.options).map_err(|option| refused(&format!("its option `{option}`")))?;
    let is_bind = options.set.contains(MountFlags::MS_BIND);
    // The OCI runtime takes a bind mount for one by its options alone.
    let kind = if is_bind { BIND } else { mount.kind.as_str() };
    let is_known = if is_bind {
        options.data.is_empty() && Path::new(&mount.source).is_absolute()
    } else {
        let known = FILE_SYSTEMS.iter().find(|(name, _)| *name == kind);
        let (_, known) = known.ok_or_else(|| refused(&format!("its type `{kind}`")))?;
        options.data.iter().all(|option| known.contains(&key(option)))
    };
    if !is_known {
        return Err(refused("its source or an option of its file system"));
    }
    if target.starts_with("/proc") && (kind != "proc" || target != Path::new("/proc")) {
        return Err(refused("only a `proc` belongs there"));
    }
    if kind == "cgroup" {
        let steps = match cgroups {
            Cgroups::V1(dirs) => cgroup_steps(&target, &options, dirs, has_cgroup_namespace)?,
            // What is seen there is below the root of the process's cgroup namespace.
            Cgroups::V2 => vec![Step::Mount(Mount {
                kind: "cgroup2".into(),
                source: mount.source,
                target,
                flags: options.set.bits(),
                ..Mount::default()
            })],
        };
        return Ok((steps, None));
    }
    let is_kept_writable = kind == TMPFS || target == Path::new(DEV);
    let at_first = if is_kept_writable { options.set - MountFlags::MS_RDONLY } else { options.set };
    let later = (is_kept_writable && options.set.contains(MountFlags::MS_RDONLY))
        .then(|| Step::Remount(target.clone(), (options.set | MountFlags::MS_REMOUNT | MountFlags::MS_BIND).bits()));
    let then = (is_bind && options.changes_a_bind()).then(|| options.after_bind());
    let made = Mount {
        kind: kind.into(),
        source: mount.source,
        target,
        flags: at_first.bits(),
        data: options.data.join(","),
        propagation: options.propagation(),
        then,
    };
    Ok((vec![Step::Mount(made)], later))
}

/// Whether the container gets a new cgroup namespace.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum HasCgroupNamespace {
    Yes,
    No,
}

/// The hierarchies of cgroup v1: all of each in a namespace of its own, otherwise the container's directory alone.
fn cgroup_steps(
    target: &Path,
    options: &Options,
    cgroups: &[CgroupDir],
    has_namespace: HasCgroupNamespace,
) -> Result<Vec<Step>, Reason> {
    let narrow = MountFlags::MS_NOEXEC | MountFlags::MS_NOSUID | MountFlags::MS_NODEV;
    let mut steps = vec![Step::Mount(Mount {
        kind: TMPFS.into(),
        source: TMPFS.into(),
        target: target.into(),
        flags: narrow.bits(),
        data: "mode=755".into(),
        propagation: options.propagation(),
        then: None,
    })];
    let mut links = Vec::new();
    for dir in cgroups {
        let name = dir.mountpoint.file_name().and_then(|name| name.to_str());
        let name = name.ok_or_else(|| Reason(format!("the hierarchy at `{}`", dir.mountpoint.display())))?;
        let target = target.join(name);
        steps.push(Step::Mount(match has_namespace {
            HasCgroupNamespace::Yes => Mount {
                kind: "cgroup".into(),
                source: if name == "systemd" { name.into() } else { "cgroup".into() },
                target,
                flags: (narrow | (options.set & MountFlags::MS_RDONLY)).bits(),
                data: if name == "systemd" { format!("name={name}") } else { name.into() },
                propagation: Vec::new(),
                then: None,
            },
            HasCgroupNamespace::No => Mount {
                kind: BIND.into(),
                source: dir.path.to_str().unwrap_or_default().into(),
                target,
                flags: (MountFlags::MS_BIND | MountFlags::MS_REC | options.set).bits(),
                data: String::new(),
                propagation: options.propagation(),
                then: options.changes_a_bind().then(|| options.after_bind()),
            },
        }));
        if name.contains(',') {
            links.extend(name.split(',').map(|part| (part.to_owned(), PathBuf::from(name))));
        }
    }
    let links = links.into_iter().map(|(name, to)| Link { path: target.join(name), target: to, replaces: false });
    steps.extend(links.map(Step::Link));
    Ok(steps)
}

impl Options {
    /// Parses options as runc does, in their order; the error is the first one that is not understood.
    fn parse(options: &[String]) -> Result<Self, &str> {
        let mut parsed = Self { set: MountFlags::empty(), clears: false, propagation: vec![], data: vec![] };
        for option in options {
            if let Some(flag) = flag(option) {
                parsed.set |= flag;
            } else if let Some(flag) = cleared(option) {
                parsed.set -= flag;
                parsed.clears = true;
            } else if let Some(flags) = propagation(option) {
                parsed.propagation.push(flags);
            } else if FILE_SYSTEMS.iter().any(|(_, known)| known.contains(&key(option))) {
                parsed.data.push(option.clone());
            } else {
                return Err(option);
            }
        }
        Ok(parsed)
    }

    /// Whether a bind mount gets other flags than its source has.
    fn changes_a_bind(&self) -> bool {
        self.clears || !(self.set - MountFlags::MS_BIND - MountFlags::MS_REC).is_empty()
    }

    fn after_bind(&self) -> u64 {
        (self.set | MountFlags::MS_BIND | MountFlags::MS_REMOUNT).bits()
    }

    fn propagation(&self) -> Vec<u64> {
        self.propagation.iter().map(|flags| flags.bits()).collect()
    }
}

fn key(option: &str) -> &str {
    option.split_once('=').map_or(option, |(key, _)| key)
}

fn flag(option: &str) -> Option<MountFlags> {
    Some(match option {
        "bind" => MountFlags::MS_BIND,
        "rbind" => MountFlags::MS_BIND | MountFlags::MS_REC,
        "ro" => MountFlags::MS_RDONLY,
        "nosuid" => MountFlags::MS_NOSUID,
        "nodev" => MountFlags::MS_NODEV,
        "noexec" => MountFlags::MS_NOEXEC,
        "noatime" => MountFlags::MS_NOATIME,
        "relatime" => MountFlags::MS_RELATIME,
        "strictatime" => MountFlags::MS_STRICTATIME,
        "nodiratime" => MountFlags::MS_NODIRATIME,
        _ => return None,
    })
}

fn cleared(option: &str) -> Option<MountFlags> {
    Some(match option {
        "rw" => MountFlags::MS_RDONLY,
        "suid" => MountFlags::MS_NOSUID,
        "dev" => MountFlags::MS_NODEV,
        "exec" => MountFlags::MS_NOEXEC,
        "atime" => MountFlags::MS_NOATIME,
        _ => return None,
    })
}

/// The flags of a propagation by its name; `None` for what is not one, or one that is not understood.
pub(super) fn propagation(option: &str) -> Option<MountFlags> {
    let flags = match option.strip_prefix('r').unwrap_or(option) {
        "private" => MountFlags::MS_PRIVATE,
        "slave" => MountFlags::MS_SLAVE,
        "shared" => MountFlags::MS_SHARED,
        _ => return None,
    };
    Some(if option.starts_with('r') { flags | MountFlags::MS_REC } else { flags })
}
