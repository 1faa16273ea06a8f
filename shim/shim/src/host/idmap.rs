//! Root file systems of pods with a user namespace: the owners of the image's files are mapped to the pod's range of users,
//! without changing the files.
//!
//! containerd requests this with the mount options `uidmap=` and `gidmap=`, which no file system knows. An overlay is
//! mounted over mapped copies of the mounts of its lower directories. Any other mount is mapped in place.
//! Source: containerd's `core/mount/mount_linux.go`.

use std::fs::{self, File};
use std::io;
use std::os::fd::AsFd;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use nix::errno::Errno;
use nix::mount::{MntFlags, umount2};
use skiff_linux::mounts::{self, Attributes, Depth};
use skiff_linux::namespaces::UserNamespaceChild;

use crate::request::RootfsMount;

const LOWER: &str = "lowerdir=";
/// `MS_PRIVATE` as `mount_setattr(2)` takes it.
const PRIVATE: u64 = 1 << 18;

/// What a mount with mapped owners needs. Dropping it removes the copies of lower directories, which an overlay no longer
/// needs once it is mounted.
#[derive(Debug)]
pub(crate) struct Idmapped {
    options: Vec<String>,
    /// `None` when the lower directories are mapped instead.
    rest: Option<Mapping>,
    _lower: Option<Lower>,
}

/// Prepares `mount` if it asks for mapped owners. `scratch` is a temporary directory, which must not exist yet.
///
/// Blocks; call it on a thread that lives until it has returned.
///
/// # Errors
/// `InvalidInput` for options that are not a mapping; the kernel's error if it or a file system cannot map owners.
pub(crate) fn prepare(mount: &RootfsMount, scratch: &Path) -> io::Result<Option<Idmapped>> {
    let Some((mapping, mut options)) = split(&mount.options)? else { return Ok(None) };
    if mount.kind != "overlay" {
        return Ok(Some(Idmapped { options, rest: Some(mapping), _lower: None }));
    }
    let place = options.iter().position(|option| option.starts_with(LOWER));
    let place = place.ok_or_else(|| invalid("the overlay has no option `lowerdir`".into()))?;
    let lower = Lower::attach(&options[place][LOWER.len()..], &user_namespace(&mapping)?, scratch)?;
    options[place] = lower.option();
    Ok(Some(Idmapped { options, rest: None, _lower: Some(lower) }))
}

impl Idmapped {
    /// The options to mount with.
    pub(crate) fn options(&self) -> &[String] {
        &self.options
    }

    /// Does the rest once the file system is mounted at `target`. Unmounting everything at `target` undoes it.
    pub(crate) fn finish(self, target: &Path) -> io::Result<()> {
        let Some(mapping) = &self.rest else { return Ok(()) };
        // A snapshot without layers: containerd has given the empty directory to the pod's root, which the mapping does not
        // know.
        if mapping.root() == Some(fs::metadata(target)?.uid()) {
            return Ok(());
        }
        attach_mapped(target, target, &user_namespace(mapping)?, 0)
    }
}

/// How the users and groups of the container map to those of the host.
#[derive(Debug, PartialEq, Eq)]
struct Mapping {
    users: Vec<Range>,
    groups: Vec<Range>,
}

impl Mapping {
    /// The host's user that is the container's root.
    fn root(&self) -> Option<u32> {
        self.users.iter().find(|range| range.container == 0).map(|range| range.host)
    }
}

#[derive(Debug, PartialEq, Eq)]
struct Range {
    container: u32,
    host: u32,
    size: u32,
}

fn invalid(what: String) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidInput, what)
}

/// The mapping that the options ask for, and the remaining options.
fn split(options: &[String]) -> io::Result<Option<(Mapping, Vec<String>)>> {
    let (mut users, mut groups, mut rest) = (None, None, Vec::new());
    for option in options {
        if let Some(ranges) = option.strip_prefix("uidmap=") {
            users = Some(parse(ranges)?);
        } else if let Some(ranges) = option.strip_prefix("gidmap=") {
            groups = Some(parse(ranges)?);
        } else {
            rest.push(option.clone());
        }
    }
    match (users, groups) {
        (Some(users), Some(groups)) => Ok(Some((Mapping { users, groups }, rest))),
        (None, None) => Ok(None),
        (Some(_), None) | (None, Some(_)) => Err(invalid("the options `uidmap` and `gidmap` go together".into())),
    }
}

/// Parses a list of `container:host:size`, separated by commas.
fn parse(ranges: &str) -> io::Result<Vec<Range>> {
    let wrong = || invalid(format!("`{ranges}` is not a mapping such as `0:100000:65536`"));
    let parse_one = |range: &str| {
        let numbers: Vec<u32> = range.split(':').map(str::parse).collect::<Result<_, _>>().ok()?;
        let [container, host, size] = numbers[..] else { return None };
        Some(Range { container, host, size })
    };
    ranges.split(',').map(|range| parse_one(range).ok_or_else(wrong)).collect()
}

/// Mapped copies of an overlay's lower directories, mounted at `0`, `1`, ... in a separate directory.
#[derive(Debug)]
struct Lower {
    scratch: PathBuf,
    mounted: Vec<PathBuf>,
}

impl Lower {
    fn attach(lower: &str, users: &File, scratch: &Path) -> io::Result<Self> {
        make_directory(scratch)?;
        let mut copies = Self { scratch: scratch.to_path_buf(), mounted: Vec::new() };
        for (number, directory) in lower.split(':').enumerate() {
            let target = scratch.join(number.to_string());
            make_directory(&target)?;
            copies.mounted.push(target.clone());
            attach_mapped(Path::new(directory), &target, users, libc::MOUNT_ATTR_RDONLY)?;
        }
        Ok(copies)
    }

    fn option(&self) -> String {
        let paths: Vec<_> = self.mounted.iter().map(|path| path.to_string_lossy()).collect();
        format!("{LOWER}{}", paths.join(":"))
    }
}

impl Drop for Lower {
    fn drop(&mut self) {
        for path in &self.mounted {
            match umount2(path, MntFlags::MNT_DETACH | MntFlags::UMOUNT_NOFOLLOW) {
                // The copy that failed was not mounted.
                Ok(()) | Err(Errno::EINVAL) => {}
                Err(error) => log::error!("cannot unmount `{}`: {error}", path.display()),
            }
        }
        for path in self.mounted.iter().chain([&self.scratch]) {
            if let Err(error) = fs::remove_dir(path) {
                log::error!("cannot remove `{}`: {error}", path.display());
            }
        }
    }
}

fn make_directory(path: &Path) -> io::Result<()> {
    fs::create_dir(path)
        .map_err(|error| io::Error::new(error.kind(), format!("cannot make `{}`: {error}", path.display())))
}

/// Mounts a copy of the mount at `source`, with owners mapped as in the user namespace `users`, at `target`, which may be
/// the same.
fn attach_mapped(source: &Path, target: &Path, users: &File, attributes: u64) -> io::Result<()> {
    let during = |what: &str, path: &Path| {
        let what = format!("cannot {what} `{}`", path.display());
        move |error: io::Error| io::Error::new(error.kind(), format!("{what}: {error}"))
    };
    let tree = mounts::clone_tree(source).map_err(during("copy the mount of", source))?;
    let attributes = Attributes { set: attributes, propagation: PRIVATE, user_namespace: Some(users.as_fd()) };
    let mapped = mounts::set_attributes(&tree, Depth::WithSubmounts, attributes);
    mapped.map_err(during("map the owners of files in", source))?;
    mounts::attach(&tree, target).map_err(during("mount at", target))
}

/// Makes a user namespace with the mapping. No process stays in it, so it exists as long as the file is open.
fn user_namespace(mapping: &Mapping) -> io::Result<File> {
    let during = |what: &'static str| move |error: io::Error| io::Error::new(error.kind(), format!("{what}: {error}"));
    let child = UserNamespaceChild::start().map_err(during("cannot make a user namespace"))?;
    let proc = PathBuf::from(format!("/proc/{}", child.pid()));
    fs::write(proc.join("uid_map"), table(&mapping.users)).map_err(during("cannot map users"))?;
    fs::write(proc.join("gid_map"), table(&mapping.groups)).map_err(during("cannot map groups"))?;
    File::open(proc.join("ns/user")).map_err(during("cannot open the user namespace"))
}

/// Formats the ranges for the kernel: `user_namespaces(7)`.
fn table(ranges: &[Range]) -> String {
    ranges.iter().map(|Range { container, host, size }| format!("{container} {host} {size}\n")).collect()
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::{chown, lchown, symlink};

    use containerd_shim::mount::{mount_rootfs, umount_recursive};
    use nix::sys::signal::{SigSet, Signal};

    use super::*;

    const HOST: u32 = 300_000;

    fn options(text: &[&str]) -> Vec<String> {
        text.iter().map(|option| (*option).to_owned()).collect()
    }

    fn mapped(rest: &[&str]) -> Vec<String> {
        let mut all = options(&["uidmap=0:300000:65536", "gidmap=0:400000:65536"]);
        all.extend(options(rest));
        all
    }

    fn mount_of(kind: &str, source: &Path, options: Vec<String>) -> RootfsMount {
        RootfsMount { kind: kind.into(), source: source.to_string_lossy().into(), options, ..RootfsMount::default() }
    }

    fn owner(path: &Path) -> (u32, u32) {
        let metadata = fs::symlink_metadata(path).unwrap();
        (metadata.uid(), metadata.gid())
    }

    fn mounts_below(path: &Path) -> Vec<String> {
        let table = fs::read_to_string("/proc/self/mountinfo").unwrap();
        let points = table.lines().filter_map(|line| line.split(' ').nth(4));
        points.filter(|point| Path::new(point).starts_with(path)).map(str::to_owned).collect()
    }

    /// A directory that contains `rootfs`; its mounts end with the test.
    struct Node(tempfile::TempDir);

    impl Node {
        fn new() -> Self {
            let node = Self(tempfile::tempdir().unwrap());
            fs::create_dir(node.path("rootfs")).unwrap();
            node
        }

        fn path(&self, name: &str) -> PathBuf {
            self.0.path().join(name)
        }

        fn layer(&self, name: &str) -> PathBuf {
            let layer = self.path(name);
            fs::create_dir_all(&layer).unwrap();
            fs::write(layer.join(name), name).unwrap();
            layer
        }

        fn overlay(&self, lower: &[PathBuf]) -> RootfsMount {
            for name in ["upper", "work"] {
                fs::create_dir(self.path(name)).unwrap();
            }
            chown(self.path("upper"), Some(HOST), Some(HOST)).unwrap();
            let paths: Vec<_> = lower.iter().map(|path| path.to_str().unwrap()).collect();
            let upper = format!("upperdir={}", self.path("upper").display());
            let work = format!("workdir={}", self.path("work").display());
            let lower = format!("lowerdir={}", paths.join(":"));
            mount_of("overlay", Path::new("overlay"), mapped(&[&work, &upper, &lower, "index=off"]))
        }

        fn mount(&self, mount: &RootfsMount) -> io::Result<()> {
            let idmapped = prepare(mount, &self.path("scratch"))?.unwrap();
            let rootfs = self.path("rootfs");
            // Mounting many layers changes the thread's directory.
            std::thread::scope(|scope| {
                let mounting = || {
                    mount_rootfs(Some(&mount.kind), Some(&mount.source), idmapped.options(), &rootfs).unwrap();
                };
                scope.spawn(mounting).join().unwrap();
            });
            idmapped.finish(&rootfs)
        }
    }

    impl Drop for Node {
        fn drop(&mut self) {
            umount_recursive(self.0.path().to_str(), MntFlags::MNT_DETACH.bits()).unwrap();
        }
    }

    #[test]
    fn owners_in_an_overlay_are_those_of_the_pods_range() {
        let node = Node::new();
        let (low, high) = (node.layer("low"), node.layer("high"));
        lchown(low.join("low"), Some(33), Some(34)).unwrap();
        symlink("low", high.join("link")).unwrap();
        node.mount(&node.overlay(&[high, low.clone()])).unwrap();
        let rootfs = node.path("rootfs");
        assert_eq!(owner(&rootfs), (HOST, HOST));
        assert_eq!(owner(&rootfs.join("low")), (300_033, 400_034));
        assert_eq!(owner(&rootfs.join("high")), (300_000, 400_000));
        assert_eq!(owner(&rootfs.join("link")), (300_000, 400_000));
        assert_eq!(owner(&low.join("low")), (33, 34), "the layer is as it was");
        fs::write(rootfs.join("low"), "changed").unwrap();
        assert_eq!(owner(&node.path("upper/low")), (300_033, 400_034), "what is copied up keeps its owner");
        assert_eq!(fs::read_to_string(low.join("low")).unwrap(), "low");
        assert!(!node.path("scratch").exists());
        assert_eq!(mounts_below(&node.path("scratch")), [""; 0]);
    }

    #[test]
    fn an_overlay_may_have_many_layers() {
        let node = Node::new();
        let lower: Vec<_> = (0..100).map(|number| node.layer(&format!("layer{number}"))).collect();
        node.mount(&node.overlay(&lower)).unwrap();
        for number in 0..100 {
            assert_eq!(owner(&node.path("rootfs").join(format!("layer{number}"))), (300_000, 400_000), "{number}");
        }
        assert!(!node.path("scratch").exists());
    }

    #[test]
    fn a_read_only_bind_mount_of_a_layer_is_mapped() {
        let node = Node::new();
        let layer = node.layer("layer");
        node.mount(&mount_of("bind", &layer, mapped(&["ro", "rbind"]))).unwrap();
        assert_eq!(owner(&node.path("rootfs/layer")), (300_000, 400_000));
        let error = fs::write(node.path("rootfs/layer"), "").unwrap_err();
        assert_eq!(error.raw_os_error(), Some(libc::EROFS));
    }

    #[test]
    fn a_snapshot_without_layers_is_the_pods_already() {
        let node = Node::new();
        let empty = node.layer("empty");
        chown(&empty, Some(HOST), Some(HOST)).unwrap();
        node.mount(&mount_of("bind", &empty, mapped(&["rw", "rbind"]))).unwrap();
        assert_eq!(owner(&node.path("rootfs")), (HOST, HOST));
    }

    #[test]
    fn what_fails_leaves_nothing_mounted() {
        let node = Node::new();
        let mount = node.overlay(&[node.layer("layer"), node.path("absent")]);
        let error = prepare(&mount, &node.path("scratch")).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::NotFound);
        assert!(error.to_string().contains("/absent`"), "{error}");
        assert!(!node.path("scratch").exists());
        assert_eq!(mounts_below(&node.path("")), [""; 0]);
    }

    #[test]
    fn no_process_stays_in_the_user_namespace() {
        let (mapping, _) = split(&mapped(&[])).unwrap().unwrap();
        let child = UserNamespaceChild::start().unwrap();
        let pid = nix::unistd::Pid::from_raw(child.pid());
        drop(child);
        assert_eq!(nix::sys::signal::kill(pid, None), Err(Errno::ESRCH));
        let namespace = user_namespace(&mapping).unwrap();
        assert_ne!(namespace.metadata().unwrap().ino(), fs::metadata("/proc/self/ns/user").unwrap().ino());
        assert!(!SigSet::thread_get_mask().unwrap().contains(Signal::SIGTERM), "signals are blocked no longer");
    }

    #[test]
    fn mappings_are_taken_out_of_the_options() {
        let range = |container, host, size| Range { container, host, size };
        let given = options(&["uidmap=0:1000:10,10:5000:1", "ro", "gidmap=0:2000:4294967295", "lowerdir=/a:/b"]);
        let (mapping, rest) = split(&given).unwrap().unwrap();
        assert_eq!(mapping.users, [range(0, 1000, 10), range(10, 5000, 1)]);
        assert_eq!(mapping.groups, [range(0, 2000, u32::MAX)]);
        assert_eq!(mapping.root(), Some(1000));
        assert_eq!(table(&mapping.users), "0 1000 10\n10 5000 1\n");
        assert_eq!(rest, ["ro", "lowerdir=/a:/b"]);
        assert_eq!(split(&rest).unwrap(), None);
    }

    #[test]
    fn options_that_say_no_mapping_are_refused() {
        for (given, expected) in [
            (&["uidmap=0:1:2"][..], "the options `uidmap` and `gidmap` go together"),
            (&["gidmap=0:1:2"], "the options `uidmap` and `gidmap` go together"),
            (&["uidmap=0:1", "gidmap=0:1:2"], "`0:1` is not a mapping such as `0:100000:65536`"),
            (&["uidmap=", "gidmap=0:1:2"], "`` is not a mapping such as `0:100000:65536`"),
            (&["uidmap=0:1:2,", "gidmap=0:1:2"], "`0:1:2,` is not a mapping such as `0:100000:65536`"),
            (&["uidmap=0:-1:2", "gidmap=0:1:2"], "`0:-1:2` is not a mapping such as `0:100000:65536`"),
        ] {
            assert_eq!(split(&options(given)).unwrap_err().to_string(), expected);
        }
        let overlay = mount_of("overlay", Path::new("overlay"), mapped(&["ro"]));
        let error = prepare(&overlay, Path::new("/nowhere")).unwrap_err();
        assert_eq!(error.to_string(), "the overlay has no option `lowerdir`");
    }
}
