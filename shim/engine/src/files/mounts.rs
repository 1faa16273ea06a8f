//! No kernel file system is in the guest's view. Whoever can write to `/proc/self/mem` writes native code, so a guest that
//! would see one is refused, whatever put it there: a `hostPath` of `/` or of `/proc`, for example. An open directory is
//! judged, never its path, which can lead to another directory a moment later.

use std::fs::File;
use std::io::{self, Read};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};
use std::path::{Path, PathBuf};

use nix::sys::statfs::{self, FsType, fstatfs};
use rustix::fs::{AtFlags, StatxFlags, statx};
use skiff_linux::mounts::unescape;
use skiff_protocol::{KERNEL_FILE_SYSTEMS, Refusal};

use super::opened::{Opened, cannot_open};

const MOUNTS: &str = "/proc/self/mountinfo";
/// A container's mount namespace has a few dozen mounts, of about 150 bytes each.
const BYTES_MAX: u64 = 16 << 20;

/// Its directories show all devices of the node. A single file of it is a device that somebody chose.
const DEVICES: &str = "devtmpfs";

/// What a file system itself reports, in case the mount table ever disagrees.
const MAGIC: [(FsType, &str); 12] = [
    (statfs::BPF_FS_MAGIC, "bpf"),
    (statfs::CGROUP_SUPER_MAGIC, "cgroup"),
    (statfs::CGROUP2_SUPER_MAGIC, "cgroup2"),
    (statfs::DEBUGFS_MAGIC, "debugfs"),
    (statfs::DEVPTS_SUPER_MAGIC, "devpts"),
    (statfs::NSFS_MAGIC, "nsfs"),
    (statfs::PROC_SUPER_MAGIC, "proc"),
    (statfs::RDTGROUP_SUPER_MAGIC, "resctrl"),
    (statfs::SECURITYFS_MAGIC, "securityfs"),
    (statfs::SELINUX_MAGIC, "selinuxfs"),
    (statfs::SYSFS_MAGIC, "sysfs"),
    (statfs::TRACEFS_MAGIC, "tracefs"),
];

/// One line of the mount table.
struct Mount {
    id: u64,
    parent: u64,
    point: PathBuf,
    kind: String,
}

/// Where an open directory is: on which mount, and at which path now.
#[derive(PartialEq, Eq)]
struct Place {
    mount: u64,
    path: PathBuf,
}

/// What the guest would see of the kernel's file systems.
#[derive(Debug, PartialEq, Eq)]
enum Seen {
    /// No kernel file system.
    Nothing,
    /// This one, at this place of the directory; the place is empty for the directory itself.
    Kernel { inside: PathBuf, kind: String },
    /// It cannot be known: the table does not show the directory as it was opened.
    Changed,
}

/// Makes sure that none of the directories shows a kernel file system, at itself or below.
///
/// # Errors
/// [`Refusal::Guest`] if one does, [`Refusal::Host`] if it cannot be found out.
pub(super) fn check(directories: &[Opened<'_>]) -> Result<(), Refusal> {
    if directories.is_empty() {
        return Ok(());
    }
    let failed = |guest: &str, error: io::Error| cannot_open(guest, &error.to_string());
    let find = |directory: &Opened<'_>| Place::of(directory.as_fd()).map_err(|error| failed(directory.guest, error));
    let places = directories.iter().map(find).collect::<Result<Vec<_>, _>>()?;
    let table = read().map_err(|error| Refusal::Host(format!("cannot read `{MOUNTS}`: {error}")))?;
    let mounts: Vec<Mount> = table.lines().filter_map(Mount::parse).collect();
    for (directory, place) in directories.iter().zip(places) {
        let guest = directory.guest;
        let kind = fstatfs(directory).map_err(|error| failed(guest, error.into()))?.filesystem_type();
        if let Some((_, kind)) = MAGIC.iter().find(|(magic, _)| *magic == kind) {
            return Err(refusal(Path::new(guest), kind));
        }
        // The mounts of a directory that is moved meanwhile are elsewhere in the table.
        let seen = if find(directory)? == place { find_kernel(&mounts, &place, is_directory) } else { Seen::Changed };
        match seen {
            Seen::Nothing => {}
            Seen::Kernel { inside, kind } => {
                return Err(refusal(
                    &Path::new(guest).components().chain(inside.components()).collect::<PathBuf>(),
                    &kind,
                ));
            }
            Seen::Changed => {
                return Err(cannot_open(guest, "it was moved or its mounts changed while the engine opened it"));
            }
        }
    }
    Ok(())
}

fn refusal(place: &Path, kind: &str) -> Refusal {
    Refusal::Guest(format!(
        "the guest would see the kernel's file system `{kind}` at `{}`, through which it could leave its sandbox: \
         mount a directory that does not contain such a file system, or do not mount this one recursively",
        place.display()
    ))
}

/// Whether a mount point is a directory, or may be one.
fn is_directory(point: &Path) -> bool {
    point.symlink_metadata().map_or(true, |metadata| metadata.is_dir() || metadata.is_symlink())
}

fn read() -> io::Result<String> {
    let mut bytes = Vec::with_capacity(16 << 10);
    File::open(MOUNTS)?.take(BYTES_MAX).read_to_end(&mut bytes)?;
    if bytes.len() as u64 == BYTES_MAX {
        return Err(io::Error::other("there are too many mounts"));
    }
    String::from_utf8(bytes).map_err(io::Error::other)
}

/// Which kernel file system is seen from a directory at `place`.
fn find_kernel(mounts: &[Mount], place: &Place, is_directory: fn(&Path) -> bool) -> Seen {
    let Place { mount, path } = place;
    let Some(own) = mounts.iter().find(|known| known.id == *mount) else { return Seen::Changed };
    if mounts.iter().any(|other| other.parent == own.id && other.id != own.id && other.point == *path) {
        // It is covered by something that was not there when it was opened.
        return Seen::Changed;
    }
    let is_kernel = |mount: &Mount| KERNEL_FILE_SYSTEMS.contains(&mount.kind.as_str());
    if is_kernel(own) || own.kind == DEVICES {
        return Seen::Kernel { inside: PathBuf::new(), kind: own.kind.clone() };
    }
    let below = mounts.iter().filter(|mount| mount.point.starts_with(path) && mount.id != own.id);
    let mut kernels = below.filter(|mount| is_kernel(mount) || (mount.kind == DEVICES && is_directory(&mount.point)));
    // What is covered by another cannot be seen.
    match kernels.find(|mount| top(mounts, own, place, &mount.point).id == mount.id) {
        Some(Mount { point, kind, .. }) => {
            let inside = point.strip_prefix(path).unwrap_or(Path::new("")).to_owned();
            Seen::Kernel { inside, kind: kind.clone() }
        }
        None => Seen::Nothing,
    }
}

/// The mount that is seen at `path` from a directory of `own`: the last one that the way there leads into.
fn top<'a>(mounts: &'a [Mount], own: &'a Mount, from: &Place, path: &Path) -> &'a Mount {
    let mut seen = own;
    // Each step goes down. A table in which one does not ends the search as well.
    for _ in 0..mounts.len() {
        let on_the_way = |mount: &&Mount| {
            mount.parent == seen.id
                && mount.id != seen.id
                && path.starts_with(&mount.point)
                && mount.point.starts_with(&from.path)
        };
        match mounts.iter().filter(on_the_way).min_by_key(|mount| mount.point.as_os_str().len()) {
            Some(next) => seen = next,
            None => break,
        }
    }
    seen
}

impl Place {
    fn of(directory: BorrowedFd<'_>) -> io::Result<Self> {
        let status = statx(directory, "", AtFlags::EMPTY_PATH, StatxFlags::MNT_ID)?;
        if status.stx_mask & StatxFlags::MNT_ID.bits() == 0 {
            return Err(io::Error::other("the kernel does not report which mount it is on"));
        }
        let path = std::fs::read_link(format!("/proc/self/fd/{}", directory.as_raw_fd()))?;
        Ok(Self { mount: status.stx_mnt_id, path })
    }
}

impl Mount {
    /// Reads a line of [proc_pid_mountinfo(5)](https://man7.org/linux/man-pages/man5/proc_pid_mountinfo.5.html).
    fn parse(line: &str) -> Option<Self> {
        let (mount, file_system) = line.split_once(" - ")?;
        let mut words = mount.split(' ');
        let id = words.next()?.parse().ok()?;
        let parent = words.next()?.parse().ok()?;
        let point = unescape(words.nth(2)?);
        Some(Self { id, parent, point, kind: file_system.split(' ').next()?.to_owned() })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ROOT: &str = "20 1 0:30 / / rw - overlay overlay rw\n21 20 0:31 / /proc rw - proc proc rw\n\
                        22 20 0:32 / /sys ro - sysfs sysfs ro\n23 20 0:33 / /dev rw - tmpfs tmpfs rw\n\
                        24 23 0:30 / /dev/.skiff/root rw - overlay overlay rw\n\
                        25 23 0:34 / /dev/.skiff/dev rw - tmpfs tmpfs rw\n\
                        26 25 0:6 /null /dev/.skiff/dev/null rw - devtmpfs udev rw\n";

    fn look(table: &str, mount: u64, path: &str) -> Seen {
        let mounts: Vec<Mount> = table.lines().filter_map(Mount::parse).collect();
        find_kernel(&mounts, &Place { mount, path: PathBuf::from(path) }, |point| !point.ends_with("null"))
    }

    fn kernel(inside: &str, kind: &str) -> Seen {
        Seen::Kernel { inside: PathBuf::from(inside), kind: kind.to_owned() }
    }

    /// Looks from the root of the guest's view, and from its devices.
    fn check(more: &str, expected: Option<(&str, &str)>) {
        let table = format!("{ROOT}{more}");
        let seen = [look(&table, 24, "/dev/.skiff/root"), look(&table, 25, "/dev/.skiff/dev")];
        let found = seen.into_iter().find(|seen| *seen != Seen::Nothing).unwrap_or(Seen::Nothing);
        assert_eq!(found, expected.map_or(Seen::Nothing, |(inside, kind)| kernel(inside, kind)), "{more}");
    }

    #[test]
    fn a_kernel_file_system_in_the_view_is_found() {
        check("", None);
        check("30 24 0:31 / /dev/.skiff/root/proc rw - proc proc rw", Some(("proc", "proc")));
        check(
            "30 24 0:40 / /dev/.skiff/root/a rw - ext4 d rw\n31 30 0:31 /sys /dev/.skiff/root/a/b rw shared:1 master:2 - proc proc rw",
            Some(("a/b", "proc")),
        );
        check("30 24 0:6 / /dev/.skiff/root/d rw - devtmpfs udev rw", Some(("d", "devtmpfs")));
        check("30 25 0:35 / /dev/.skiff/dev/pts rw - devpts devpts rw", Some(("pts", "devpts")));
        check(r"30 24 0:31 / /dev/.skiff/root/a\040b\134 rw - cgroup2 c rw", Some((r"a b\", "cgroup2")));
        for allowed in ["tmpfs", "hugetlbfs", "nfs4", "fuse", "overlay", "ext4", "procfs-like"] {
            check(&format!("30 24 0:40 / /dev/.skiff/root/data rw - {allowed} x rw"), None);
        }
        // Beside the view, whatever its name begins with.
        check("30 23 0:31 / /dev/.skiff/rootless rw - proc proc rw", None);
    }

    #[test]
    fn what_is_covered_cannot_be_seen() {
        let proc = "30 24 0:31 / /dev/.skiff/root/proc rw - proc proc rw\n";
        check(&format!("{proc}31 30 0:40 / /dev/.skiff/root/proc ro - tmpfs tmpfs ro"), None);
        let deep = "30 24 0:31 / /dev/.skiff/root/h/proc rw - proc proc rw\n";
        check(&format!("{deep}31 24 0:40 / /dev/.skiff/root/h ro - tmpfs tmpfs ro"), None);
        check(&format!("{deep}31 24 0:40 / /dev/.skiff/root/x ro - tmpfs tmpfs ro"), Some(("h/proc", "proc")));
    }

    #[test]
    fn a_directory_within_a_kernel_file_system_is_found() {
        assert_eq!(look(ROOT, 21, "/proc/self"), kernel("", "proc"));
        assert_eq!(look(ROOT, 20, "/data"), Seen::Nothing);
        assert_eq!(look(ROOT, 20, "/"), kernel("proc", "proc"));
        let devices = format!("{ROOT}30 24 0:6 / /dev/.skiff/root/null rw - devtmpfs udev rw");
        assert_eq!(look(&devices, 30, "/dev/.skiff/root/null"), kernel("", "devtmpfs"));
    }

    #[test]
    fn the_mount_is_judged_and_not_the_path() {
        // A link was put in its place, or a mount over it.
        assert_eq!(look(ROOT, 21, "/dev/.skiff/root"), kernel("", "proc"));
        assert_eq!(look(ROOT, 22, "/data"), kernel("", "sysfs"));
        for over in ["proc", "tmpfs"] {
            let covered = format!("{ROOT}30 24 0:31 / /dev/.skiff/root rw - {over} x rw");
            assert_eq!(look(&covered, 24, "/dev/.skiff/root"), Seen::Changed, "{over}");
        }
        for unknown in [0, 99] {
            assert_eq!(look(ROOT, unknown, "/dev/.skiff/root"), Seen::Changed);
        }
        // The same path on another mount shows what is on that one.
        let proc = format!("{ROOT}30 24 0:31 / /dev/.skiff/root/a/proc rw - proc proc rw");
        assert_eq!(look(&proc, 24, "/dev/.skiff/root/a"), kernel("proc", "proc"));
        assert_eq!(look(&proc, 24, "/dev/.skiff/root/b"), Seen::Nothing);
    }

    #[test]
    fn a_table_without_sense_is_no_danger() {
        for table in [
            "",
            "x",
            "1 1 0:1 / / rw - proc",
            "1 2 0:1 / / rw - a b c\n2 1 0:1 / / rw - a b c",
            "1 2 0:1 / /x rw - a b c\n2 1 0:1 / /x/y rw - proc b c\n3 3 0:1 / /x/y/z rw - proc b c",
            " -  - \n\\\n1 0 0:0 / \\0",
        ] {
            look(table, 1, "/");
        }
    }
}
