//! Root file systems of pods with a user namespace: the owners of the image's files are mapped to the pod's range of
//! users, without changing the files.
//!
//! containerd asks for it by the options `uidmap=` and `gidmap=`, which no file system knows. An overlay is mounted over
//! mapped copies of the mounts of its lower directories; what is mounted otherwise is mapped where it stands.
//! Source: containerd's `core/mount/mount_linux.go`.

use std::ffi::{CStr, CString};
use std::fs::{self, File};
use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use containerd_shim::protos::types::mount::Mount;
use nix::errno::Errno;
use nix::mount::{MntFlags, umount2};
use nix::sched::{CloneFlags, clone};
use nix::sys::signal::{SigSet, SigmaskHow, Signal, kill};
use nix::sys::wait::{WaitPidFlag, waitpid};
use nix::unistd::{Pid, getpid, getppid, pause};

const LOWER: &str = "lowerdir=";
/// Of the child that holds the user namespace, in bytes.
const STACK_BYTES: usize = 64 << 10;
/// `AT_RECURSIVE` of `open_tree(2)`, which the libc crate lacks here.
const AT_RECURSIVE: libc::c_uint = 0x8000;
/// `MS_PRIVATE` as `mount_setattr(2)` takes it.
const PRIVATE: u64 = 1 << 18;

/// What a mount with mapped owners needs. Dropping it takes the copies of lower directories away, which an overlay that
/// is mounted does without.
#[derive(Debug)]
pub(crate) struct Idmapped {
    options: Vec<String>,
    /// Absent when the mount consists of mapped lower directories.
    rest: Option<Mapping>,
    _lower: Option<Lower>,
}

/// Prepares `mount` when it asks for mapped owners. `scratch`, which must not exist, is a directory for the meantime.
///
/// Blocks; call it on a thread that lives until it has returned.
///
/// # Errors
/// `InvalidInput` for options that say no mapping; the kernel's error where it or a file system cannot map owners.
pub(crate) fn prepare(mount: &Mount, scratch: &Path) -> io::Result<Option<Idmapped>> {
    let Some((mapping, mut options)) = split(&mount.options)? else { return Ok(None) };
    if mount.type_ != "overlay" {
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

    /// Does what remains once the file system is mounted at `target`. To be undone by unmounting `target` wholly.
    pub(crate) fn finish(self, target: &Path) -> io::Result<()> {
        let Some(mapping) = &self.rest else { return Ok(()) };
        // A snapshot without layers: containerd has given the empty directory to the pod's root, which no mapping knows.
        if mapping.root() == Some(fs::metadata(target)?.uid()) {
            return Ok(());
        }
        attach_mapped(target, target, &user_namespace(mapping)?, 0)
    }
}

/// Which users and groups of the host those of the container are.
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

/// The mapping that the options ask for, and the options without it.
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

/// Reads `container:host:size`, several of them separated by commas.
fn parse(ranges: &str) -> io::Result<Vec<Range>> {
    let wrong = || invalid(format!("`{ranges}` is not a mapping such as `0:100000:65536`"));
    let parse_one = |range: &str| {
        let numbers: Vec<u32> = range.split(':').map(str::parse).collect::<Result<_, _>>().ok()?;
        let [container, host, size] = numbers[..] else { return None };
        Some(Range { container, host, size })
    };
    ranges.split(',').map(|range| parse_one(range).ok_or_else(wrong)).collect()
}

/// Mapped copies of an overlay's lower directories, mounted at `0`, `1`, ... in a directory of their own.
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
                // The copy that failed was not mounted yet.
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

/// Mounts what is mounted at `source`, its owners mapped as in the user namespace, at `target`, which may be the same.
fn attach_mapped(source: &Path, target: &Path, users: &File, attributes: u64) -> io::Result<()> {
    let during = |what: &str, path: &Path| {
        let what = format!("cannot {what} `{}`", path.display());
        move |error: io::Error| io::Error::new(error.kind(), format!("{what}: {error}"))
    };
    let tree = clone_tree(&c_path(source)?).map_err(during("copy the mount of", source))?;
    map_owners(&tree, users, attributes).map_err(during("map the owners of files in", source))?;
    move_mount(&tree, &c_path(target)?).map_err(during("mount at", target))
}

fn c_path(path: &Path) -> io::Result<CString> {
    Ok(CString::new(path.as_os_str().as_encoded_bytes())?)
}

fn clone_tree(path: &CStr) -> io::Result<OwnedFd> {
    let flags = libc::OPEN_TREE_CLONE | libc::OPEN_TREE_CLOEXEC | AT_RECURSIVE;
    // SAFETY: the path is a C string that lives through the call; the result is a new descriptor or an error.
    let fd = unsafe { libc::syscall(libc::SYS_open_tree, libc::AT_FDCWD, path.as_ptr(), flags) };
    let fd = i32::try_from(Errno::result(fd)?).map_err(io::Error::other)?;
    // SAFETY: the kernel has just made this descriptor for us, and nobody else knows of it.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

fn map_owners(tree: &OwnedFd, users: &File, attributes: u64) -> io::Result<()> {
    let namespace = u64::try_from(users.as_raw_fd()).map_err(io::Error::other)?;
    let attributes = libc::mount_attr {
        attr_set: libc::MOUNT_ATTR_IDMAP | attributes,
        attr_clr: 0,
        propagation: PRIVATE,
        userns_fd: namespace,
    };
    // SAFETY: the empty path and the structure live through the call, and the size is the structure's.
    let set = unsafe {
        libc::syscall(
            libc::SYS_mount_setattr,
            tree.as_raw_fd(),
            c"".as_ptr(),
            libc::AT_EMPTY_PATH.cast_unsigned() | AT_RECURSIVE,
            &raw const attributes,
            size_of::<libc::mount_attr>(),
        )
    };
    Errno::result(set)?;
    Ok(())
}

fn move_mount(tree: &OwnedFd, target: &CStr) -> io::Result<()> {
    // SAFETY: the descriptor is open and both paths are C strings that live through the call.
    let moved = unsafe {
        libc::syscall(
            libc::SYS_move_mount,
            tree.as_raw_fd(),
            c"".as_ptr(),
            libc::AT_FDCWD,
            target.as_ptr(),
            libc::MOVE_MOUNT_F_EMPTY_PATH,
        )
    };
    Errno::result(moved)?;
    Ok(())
}

/// A user namespace with the mapping. It lasts as long as the file is open: no process stays in it.
fn user_namespace(mapping: &Mapping) -> io::Result<File> {
    let during = |what: &'static str| move |error: io::Error| io::Error::new(error.kind(), format!("{what}: {error}"));
    let child = Paused::start().map_err(during("cannot make a user namespace"))?;
    let proc = PathBuf::from(format!("/proc/{}", child.0));
    fs::write(proc.join("uid_map"), table(&mapping.users)).map_err(during("cannot map users"))?;
    fs::write(proc.join("gid_map"), table(&mapping.groups)).map_err(during("cannot map groups"))?;
    File::open(proc.join("ns/user")).map_err(during("cannot open the user namespace"))
}

/// The ranges as the kernel reads them: `user_namespaces(7)`.
fn table(ranges: &[Range]) -> String {
    ranges.iter().map(|Range { container, host, size }| format!("{container} {host} {size}\n")).collect()
}

/// A child in a new user namespace that does nothing; it ends when this is dropped, or with the calling thread.
struct Paused(Pid);

impl Paused {
    fn start() -> io::Result<Self> {
        let parent = getpid();
        let child = move || {
            // SAFETY: prctl with integers; async-signal-safe.
            unsafe { libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL) };
            // A parent that ended before that sends no signal.
            while getppid() == parent {
                pause();
            }
            0
        };
        let mut stack = vec![0_u8; STACK_BYTES];
        // Sharing the descriptors keeps the child from holding the other end of somebody's pipe open.
        let flags = CloneFlags::CLONE_NEWUSER | CloneFlags::CLONE_FILES;
        // No signal handler of the shim runs in the child. The one signal that ends it cannot be blocked.
        let mask = SigSet::all().thread_swap_mask(SigmaskHow::SIG_SETMASK)?;
        // SAFETY: the child has a copy of the memory, and of it the stack; it makes system calls only and allocates nothing.
        let started = unsafe { clone(Box::new(child), &mut stack, flags, None) }.map(Self);
        mask.thread_set_mask()?;
        Ok(started?)
    }
}

impl Drop for Paused {
    fn drop(&mut self) {
        if let Err(error) = kill(self.0, Signal::SIGKILL) {
            log::error!("cannot end the process `{}` in a user namespace: {error}", self.0);
            return;
        }
        // It ends without a signal, so that nobody else who waits for any child is given it.
        while waitpid(self.0, Some(WaitPidFlag::__WALL)) == Err(Errno::EINTR) {}
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::{chown, lchown, symlink};

    use containerd_shim::mount::{mount_rootfs, umount_recursive};

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

    fn mount_of(type_: &str, source: &Path, options: Vec<String>) -> Mount {
        Mount { type_: type_.into(), source: source.to_string_lossy().into(), options, ..Mount::default() }
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

    /// A directory with `rootfs` in it, whose mounts end with the test.
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

        fn overlay(&self, lower: &[PathBuf]) -> Mount {
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

        fn mount(&self, mount: &Mount) -> io::Result<()> {
            let idmapped = prepare(mount, &self.path("scratch"))?.unwrap();
            let rootfs = self.path("rootfs");
            // Mounting many layers changes the thread's directory.
            std::thread::scope(|scope| {
                let mounting = || {
                    mount_rootfs(Some(&mount.type_), Some(&mount.source), idmapped.options(), &rootfs).unwrap();
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
        let child = Paused::start().unwrap();
        let pid = child.0;
        drop(child);
        assert_eq!(kill(pid, None), Err(Errno::ESRCH));
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
