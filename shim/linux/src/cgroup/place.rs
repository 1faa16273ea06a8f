//! Where a cgroup is: pure parsers of `/proc/PID/cgroup`, `/proc/self/mountinfo` and the spec's `cgroupsPath`.

use std::io::{self, ErrorKind};
use std::path::{Component, Path, PathBuf};

use super::hierarchy::Hierarchy;
use crate::mounts::unescape;

/// A line of `/proc/PID/cgroup`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Membership {
    /// Empty for the unified hierarchy.
    pub(super) controllers: Vec<String>,
    /// From the root of the hierarchy.
    pub(super) path: PathBuf,
}

/// A mounted hierarchy.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Mount {
    /// The part of the hierarchy that is mounted.
    pub(super) root: PathBuf,
    pub(super) point: PathBuf,
    /// The controllers, among other options; `None` for the unified hierarchy.
    options: Option<Vec<String>>,
}

/// The place that `cgroupsPath` names, relative to a mount point.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Place {
    /// From the root of each hierarchy.
    Absolute(PathBuf),
    /// From the cgroup of the process that makes the container.
    Relative(PathBuf),
}

impl Membership {
    /// Parses `/proc/PID/cgroup` (cgroups(7)). Lines of another form are ignored.
    pub(super) fn parse_all(text: &str) -> Vec<Self> {
        text.lines().filter_map(Self::parse).collect()
    }

    fn parse(line: &str) -> Option<Self> {
        let mut fields = line.splitn(3, ':').skip(1);
        let controllers = fields.next()?.split(',').filter(|name| !name.is_empty()).map(str::to_owned).collect();
        let path = fields.next()?;
        let path = path.strip_suffix(" (deleted)").unwrap_or(path);
        Some(Self { controllers, path: path.into() })
    }
}

impl Mount {
    /// Reads a line of `/proc/self/mountinfo` (proc_pid_mountinfo(5)). `None` if it is no mount of cgroups.
    pub(super) fn parse(line: &str) -> Option<Self> {
        let (mount, file_system) = line.split_once(" - ")?;
        let mut mount = mount.split(' ').skip(3);
        let (root, point) = (unescape(mount.next()?), unescape(mount.next()?));
        let mut file_system = file_system.split(' ');
        let options = match file_system.next()? {
            "cgroup2" => None,
            "cgroup" => Some(file_system.nth(1)?.split(',').map(str::to_owned).collect()),
            _ => return None,
        };
        Some(Self { root, point, options })
    }

    /// Whether this is the hierarchy of `membership`.
    pub(super) fn has(&self, membership: &Membership) -> bool {
        match &self.options {
            None => membership.controllers.is_empty(),
            Some(options) => {
                !membership.controllers.is_empty() && membership.controllers.iter().all(|name| options.contains(name))
            }
        }
    }
}

impl Place {
    /// Parses a `cgroupsPath` that is a path, as runc does.
    pub(super) fn of_cgroupfs(cgroups_path: &str, id: &str) -> Self {
        match cgroups_path {
            "" => Self::Relative(clean(id)),
            path if path.starts_with('/') => Self::Absolute(clean(path)),
            path => Self::Relative(clean(path)),
        }
    }

    /// Parses a `cgroupsPath` for systemd, `slice:prefix:name`, as runc does.
    pub(super) fn of_systemd(cgroups_path: &str, id: &str) -> io::Result<Self> {
        match cgroups_path.split(':').collect::<Vec<_>>()[..] {
            [""] => unit_in("system.slice", "runc", id),
            [slice, prefix, name] => unit_in(slice, prefix, name),
            _ => Err(invalid(format!("the cgroup path `{cgroups_path}` is not of the form `slice:prefix:name`"))),
        }
    }

    /// The path below the mount point of `mount`, given that this process is in `membership`.
    pub(super) fn below(&self, hierarchy: Hierarchy, membership: &Membership, mount: &Mount) -> PathBuf {
        let own = below_mount(&membership.path, &mount.root);
        match (self, hierarchy) {
            (Self::Absolute(inner), _) => inner.clone(),
            (Self::Relative(inner), Hierarchy::V1) => own.join(inner),
            // The children of a v2 group with processes cannot have controllers, so runc uses the parent group.
            (Self::Relative(inner), Hierarchy::V2) => own.parent().unwrap_or(&own).join(inner),
        }
    }
}

/// Turns a path from the hierarchy's root into a path below a mount of its subtree `root`.
pub(super) fn below_mount(path: &Path, root: &Path) -> PathBuf {
    clean(path.strip_prefix(root).unwrap_or(path))
}

fn unit_in(slice: &str, prefix: &str, name: &str) -> io::Result<Place> {
    let slice = if slice.is_empty() { "system.slice" } else { slice };
    let unit = if name.ends_with(".slice") { name.to_owned() } else { format!("{prefix}-{name}.scope") };
    if unit.contains('/') {
        return Err(invalid(format!("the systemd unit `{unit}` is not a file name")));
    }
    Ok(Place::Absolute(expand_slice(slice)?.join(unit)))
}

/// `a-b.slice` is in `a.slice` (systemd.slice(5)).
fn expand_slice(slice: &str) -> io::Result<PathBuf> {
    let invalid_slice = || invalid(format!("`{slice}` is not the name of a systemd slice"));
    let name = slice.strip_suffix(".slice").filter(|_| !slice.contains('/')).ok_or_else(invalid_slice)?;
    let mut path = PathBuf::new();
    if name == "-" {
        return Ok(path);
    }
    let mut prefix = String::new();
    for part in name.split('-') {
        if part.is_empty() {
            return Err(invalid_slice());
        }
        prefix.push_str(part);
        path.push(format!("{prefix}.slice"));
        prefix.push('-');
    }
    Ok(path)
}

/// The path as if the current directory were the root: relative, without `.` and `..`.
fn clean(path: impl AsRef<Path>) -> PathBuf {
    let mut clean = PathBuf::new();
    for component in path.as_ref().components() {
        match component {
            Component::Normal(name) => clean.push(name),
            Component::ParentDir => drop(clean.pop()),
            Component::RootDir | Component::CurDir | Component::Prefix(_) => {}
        }
    }
    clean
}

fn invalid(sentence: String) -> io::Error {
    io::Error::new(ErrorKind::InvalidInput, sentence)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn membership(controllers: &[&str], path: &str) -> Membership {
        Membership { controllers: controllers.iter().map(|&name| name.into()).collect(), path: path.into() }
    }

    #[test]
    fn memberships_are_read_in_every_form() {
        let check = |text: &str, expected: &[Membership]| assert_eq!(Membership::parse_all(text), expected, "{text}");
        check("", &[]);
        check("garbage\n1:\n", &[]);
        check("0::/\n", &[membership(&[], "/")]);
        check("0::/a.slice/b:c.scope\n", &[membership(&[], "/a.slice/b:c.scope")]);
        check("0::/gone (deleted)\n", &[membership(&[], "/gone")]);
        check(
            "9:name=systemd:/s\n4:memory:/m/1\n2:cpu,cpuacct:/c\n0::/u\n",
            &[
                membership(&["name=systemd"], "/s"),
                membership(&["memory"], "/m/1"),
                membership(&["cpu", "cpuacct"], "/c"),
                membership(&[], "/u"),
            ],
        );
    }

    #[test]
    fn mounts_are_read_and_matched_with_memberships() {
        let lines = [
            "23 1 254:0 / / rw,relatime shared:1 - ext4 /dev/vda rw",
            "31 23 0:28 / /sys/fs/cgroup rw - tmpfs tmpfs rw,mode=755",
            "32 31 0:29 / /sys/fs/cgroup/cpu,cpuacct rw,relatime shared:9 master:2 - cgroup cgroup rw,cpu,cpuacct",
            "35 31 0:32 /docker/a\\040b /sys/fs/cgroup/mem\\134x rw - cgroup none rw,memory",
            "40 31 0:37 / /sys/fs/cgroup/systemd rw - cgroup cgroup rw,xattr,name=systemd",
            "41 31 0:38 / /sys/fs/cgroup/unified rw - cgroup2 cgroup2 rw,nsdelegate",
        ];
        let mounts: Vec<_> = lines.iter().filter_map(|line| Mount::parse(line)).collect();
        let check = |membership: Membership, expected: Option<(&str, &str)>| {
            let found = mounts.iter().find(|mount| mount.has(&membership));
            let found = found.map(|mount| (mount.root.to_str().unwrap(), mount.point.to_str().unwrap()));
            assert_eq!(found, expected, "{membership:?}");
        };
        assert_eq!(mounts.len(), 4);
        check(membership(&["cpu", "cpuacct"], "/"), Some(("/", "/sys/fs/cgroup/cpu,cpuacct")));
        check(membership(&["memory"], "/"), Some(("/docker/a b", "/sys/fs/cgroup/mem\\x")));
        check(membership(&["name=systemd"], "/"), Some(("/", "/sys/fs/cgroup/systemd")));
        check(membership(&[], "/"), Some(("/", "/sys/fs/cgroup/unified")));
        check(membership(&["net_cls"], "/"), None);
    }

    #[test]
    fn cgroups_paths_are_read_as_runc_reads_them() {
        use Place::{Absolute, Relative};
        let cgroupfs = |path: &str, expected: Place| assert_eq!(Place::of_cgroupfs(path, "id"), expected, "`{path}`");
        let systemd = |path: &str, expected: &str| {
            assert_eq!(Place::of_systemd(path, "id").unwrap(), Absolute(expected.into()), "`{path}`");
        };
        cgroupfs("/default/a", Absolute("default/a".into()));
        cgroupfs("/kubepods/besteffort/pod1/c", Absolute("kubepods/besteffort/pod1/c".into()));
        cgroupfs("/../../etc/./a//b/..", Absolute("etc/a".into()));
        cgroupfs("/", Absolute("".into()));
        cgroupfs("a/../../b", Relative("b".into()));
        cgroupfs("", Relative("id".into()));
        cgroupfs("a.slice:p:n", Relative("a.slice:p:n".into()));
        systemd("", "system.slice/runc-id.scope");
        systemd(":cri:c", "system.slice/cri-c.scope");
        systemd("-.slice:cri:c", "cri-c.scope");
        systemd("user.slice:p:n.slice", "user.slice/n.slice");
        systemd(
            "kubepods-burstable-pod1_2.slice:cri-containerd:abc",
            "kubepods.slice/kubepods-burstable.slice/kubepods-burstable-pod1_2.slice/cri-containerd-abc.scope",
        );
        for refused in ["/a/b", "a:b", "a.slice:b:c:d", "a:p:n", ".slice:p:n", "a--b.slice:p:n", "-a.slice:p:n"] {
            assert!(Place::of_systemd(refused, "id").is_err(), "`{refused}`");
        }
        for refused in ["a/b.slice:p:n", "a.slice:p:../../n"] {
            assert!(Place::of_systemd(refused, "id").is_err(), "`{refused}`");
        }
    }

    #[test]
    fn a_relative_place_is_below_the_own_cgroup_on_v1_and_beside_it_on_v2() {
        let check = |path: &str, hierarchy: Hierarchy, own: &str, root: &str, expected: &str| {
            let place = Place::of_cgroupfs(path, "id");
            let mount = Mount { root: root.into(), point: "/cg".into(), options: None };
            assert_eq!(place.below(hierarchy, &membership(&[], own), &mount), Path::new(expected));
        };
        check("/a", Hierarchy::V1, "/own", "/", "a");
        check("", Hierarchy::V1, "/", "/", "id");
        check("", Hierarchy::V1, "/own", "/", "own/id");
        check("", Hierarchy::V1, "/outer/own", "/outer", "own/id");
        check("", Hierarchy::V2, "/s/own.service", "/", "s/id");
        check("", Hierarchy::V2, "/", "/", "id");
    }
}
