//! Kernel file systems in the guest's view: there are none. Whoever can write to `/proc/self/mem` writes native code, so a
//! guest that would see one is refused, whatever way it came there: a `hostPath` of `/` or of `/proc` among them.

use std::fs::File;
use std::io::{self, Read};
use std::path::{Path, PathBuf};

use skiff_plan::{KERNEL_FILE_SYSTEMS, Preopen, Refusal, unescape_mount};

const MOUNTS: &str = "/proc/self/mountinfo";
/// A container's mount namespace has some dozens of mounts, of about 150 bytes each.
const BYTES_MAX: u64 = 16 << 20;

/// Its directories show all of the node's devices; a single file of it is a device that somebody chose.
const DEVICES: &str = "devtmpfs";

/// One line of the mount table.
struct Mount {
    id: u64,
    parent: u64,
    point: PathBuf,
    kind: String,
}

/// Makes sure that none of the directories shows a kernel file system, at itself or below.
///
/// # Errors
/// [`Refusal::Guest`] when one does, [`Refusal::Host`] when the table cannot be read.
pub(crate) fn check(preopens: &[Preopen]) -> Result<(), Refusal> {
    if preopens.is_empty() {
        return Ok(());
    }
    let table = read().map_err(|error| Refusal::Host(format!("cannot read `{MOUNTS}`: {error}")))?;
    match find_kernel(&table, preopens, Path::is_dir) {
        None => Ok(()),
        Some((place, kind)) => Err(Refusal::Guest(format!(
            "the guest would see the kernel's file system `{kind}` at `{place}`, through which it could leave its sandbox: \
             mount a directory that has no such file system in it, or do not mount this one recursively"
        ))),
    }
}

fn read() -> io::Result<String> {
    let mut bytes = Vec::with_capacity(16 << 10);
    File::open(MOUNTS)?.take(BYTES_MAX).read_to_end(&mut bytes)?;
    if bytes.len() as u64 == BYTES_MAX {
        return Err(io::Error::other("there are too many mounts"));
    }
    String::from_utf8(bytes).map_err(io::Error::other)
}

/// Where the guest would see which kernel file system; `None` when it sees none.
fn find_kernel(table: &str, preopens: &[Preopen], is_directory: fn(&Path) -> bool) -> Option<(String, String)> {
    let mounts: Vec<Mount> = table.lines().filter_map(Mount::parse).collect();
    let is_kernel = |mount: &Mount| {
        KERNEL_FILE_SYSTEMS.contains(&mount.kind.as_str()) || (mount.kind == DEVICES && is_directory(&mount.point))
    };
    for preopen in preopens {
        let host = Path::new(&preopen.host);
        // The directory may lie deep in a mount, and further ones below it. What is covered by another cannot be seen.
        let own = top(&mounts, host).filter(|mount| is_kernel(mount)).map(|mount| (host, mount));
        let below = mounts.iter().filter(|mount| mount.point.starts_with(host) && is_kernel(mount));
        let mut visible = below.filter(|mount| top(&mounts, &mount.point).is_some_and(|seen| seen.id == mount.id));
        if let Some((point, mount)) = own.or_else(|| visible.next().map(|mount| (mount.point.as_path(), mount))) {
            let rest = point.strip_prefix(host).unwrap_or(Path::new(""));
            let place = Path::new(&preopen.guest).components().chain(rest.components()).collect::<PathBuf>();
            return Some((place.to_string_lossy().into_owned(), mount.kind.clone()));
        }
    }
    None
}

/// The mount that is seen at `path`: from the root on, whatever is mounted first on the way there.
fn top<'a>(mounts: &'a [Mount], path: &Path) -> Option<&'a Mount> {
    let mut seen = mounts.iter().find(|mount| {
        mount.point == Path::new("/") && !mounts.iter().any(|other| other.id == mount.parent && other.id != mount.id)
    })?;
    // Each step goes down; a table that says otherwise ends the search, too.
    for _ in 0..mounts.len() {
        let on_the_way =
            |mount: &&Mount| mount.parent == seen.id && mount.id != seen.id && path.starts_with(&mount.point);
        match mounts.iter().filter(on_the_way).min_by_key(|mount| mount.point.as_os_str().len()) {
            Some(next) => seen = next,
            None => return Some(seen),
        }
    }
    None
}

impl Mount {
    /// Reads a line of [proc_pid_mountinfo(5)](https://man7.org/linux/man-pages/man5/proc_pid_mountinfo.5.html).
    fn parse(line: &str) -> Option<Self> {
        let (mount, file_system) = line.split_once(" - ")?;
        let mut words = mount.split(' ');
        let id = words.next()?.parse().ok()?;
        let parent = words.next()?.parse().ok()?;
        let point = unescape_mount(words.nth(2)?);
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

    fn preopen(host: &str, guest: &str) -> Preopen {
        Preopen { host: host.to_owned(), guest: guest.to_owned(), read_only: false }
    }

    fn check(more: &str, expected: Option<(&str, &str)>) {
        let preopens = [preopen("/dev/.skiff/root", "/"), preopen("/dev/.skiff/dev", "/dev")];
        let is_directory = |path: &Path| !path.ends_with("null");
        let found = find_kernel(&format!("{ROOT}{more}"), &preopens, is_directory);
        let found = found.as_ref().map(|(place, kind)| (place.as_str(), kind.as_str()));
        assert_eq!(found, expected, "{more}");
    }

    #[test]
    fn a_kernel_file_system_in_the_view_is_found() {
        check("", None);
        check("30 24 0:31 / /dev/.skiff/root/proc rw - proc proc rw", Some(("/proc", "proc")));
        check(
            "30 24 0:40 / /dev/.skiff/root/a rw - ext4 d rw\n31 30 0:31 /sys /dev/.skiff/root/a/b rw shared:1 master:2 - proc proc rw",
            Some(("/a/b", "proc")),
        );
        check("30 24 0:6 / /dev/.skiff/root/d rw - devtmpfs udev rw", Some(("/d", "devtmpfs")));
        check("30 25 0:35 / /dev/.skiff/dev/pts rw - devpts devpts rw", Some(("/dev/pts", "devpts")));
        check(r"30 24 0:31 / /dev/.skiff/root/a\040b\134 rw - cgroup2 c rw", Some((r"/a b\", "cgroup2")));
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
        check(&format!("{deep}31 24 0:40 / /dev/.skiff/root/x ro - tmpfs tmpfs ro"), Some(("/h/proc", "proc")));
    }

    #[test]
    fn a_directory_within_a_kernel_file_system_is_found() {
        let found = find_kernel(ROOT, &[preopen("/proc/self", "/me")], Path::is_dir);
        assert_eq!(found, Some(("/me".to_owned(), "proc".to_owned())));
        assert_eq!(find_kernel(ROOT, &[preopen("/data", "/data")], Path::is_dir), None);
    }

    #[test]
    fn a_table_without_sense_is_no_danger() {
        for table in [
            "",
            "x",
            "1 1 0:1 / / rw - proc",
            "1 2 0:1 / / rw - a b c\n2 1 0:1 / / rw - a b c",
            " -  - \n\\\n1 0 0:0 / \\0",
        ] {
            find_kernel(table, &[preopen("/", "/")], Path::is_dir);
        }
    }

    #[test]
    fn the_check_costs_microseconds() {
        let preopens = [preopen("/etc", "/"), preopen("/usr", "/dev")];
        let once = || {
            let begun = std::time::Instant::now();
            super::check(&preopens).unwrap();
            begun.elapsed()
        };
        let least = (0..100).map(|_| once()).min().unwrap();
        println!("looking through the mounts takes {least:?}");
        assert!(least < std::time::Duration::from_millis(1), "{least:?}");
    }
}
