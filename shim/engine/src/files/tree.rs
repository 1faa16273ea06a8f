//! Paths of the guest. They are resolved as in any container: absolute links and `..` stay inside the guest's root, and
//! nothing leads out of it. The kernel resolves each path; only what it opened counts.

use std::ffi::OsString;
use std::fs::File;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::ffi::OsStringExt;
use std::path::PathBuf;
use std::sync::Arc;

use rustix::fs::{
    AtFlags, CWD, Mode, OFlags, ResolveFlags, Timestamps, linkat, mkdirat, openat2, readlinkat, renameat, symlinkat,
    unlinkat, utimensat,
};
use rustix::io::Errno;
use wasmtime_wasi::runtime::spawn_blocking;

use crate::role::Role;

/// How often a path is resolved again while somebody renames directories on the way.
const RACES_MAX: usize = 64;
/// What wasmtime gives new files, too.
const NEW_FILE: Mode = Mode::from_raw_mode(0o666);
const NEW_DIRECTORY: Mode = Mode::from_raw_mode(0o777);

/// The guest's files.
#[derive(Clone, Default)]
pub(crate) struct Tree {
    /// The directory that is `/` for the guest. Without one, links lead nowhere but below the directory that they are in.
    root: Option<Arc<File>>,
    may_block: bool,
}

/// Whether a symbolic link at the end of a path is followed.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Links {
    /// It is.
    Follow,
    /// The link itself is meant.
    Keep,
}

impl Tree {
    /// The files below `root`, for instances of this role.
    pub(super) fn new(root: Option<Arc<File>>, role: Role) -> Self {
        Self { root, may_block: role.may_block() }
    }

    /// The same files, for instances of another role.
    pub(super) fn of(self, role: Role) -> Self {
        Self { may_block: role.may_block(), ..self }
    }

    /// Runs something that may wait for a disk or a server.
    pub(crate) async fn run<T: Send + 'static>(&self, body: impl FnOnce() -> T + Send + 'static) -> T {
        if self.may_block { body() } else { spawn_blocking(body).await }
    }

    /// Whether files may be waited for on the calling thread.
    pub(crate) fn may_block(&self) -> bool {
        self.may_block
    }

    /// Opens a file or directory.
    pub(crate) fn open(&self, from: &File, path: &str, links: Links, flags: OFlags) -> Result<File, Errno> {
        let mode = if flags.contains(OFlags::CREATE) { NEW_FILE } else { Mode::empty() };
        self.resolve(from, path, flags | links.flag(), mode).map(File::from)
    }

    /// Opens whatever is there to look at it, and not to read or change it.
    pub(crate) fn look(&self, from: &File, path: &str, links: Links) -> Result<File, Errno> {
        self.open(from, path, links, OFlags::PATH)
    }

    /// Makes a directory.
    pub(crate) fn create_directory(&self, from: &File, path: &str) -> Result<(), Errno> {
        let (parent, name) = self.parent(from, path)?;
        mkdirat(parent, name, NEW_DIRECTORY)
    }

    /// Removes an empty directory.
    pub(crate) fn remove_directory(&self, from: &File, path: &str) -> Result<(), Errno> {
        let (parent, name) = self.parent(from, path)?;
        unlinkat(parent, name, AtFlags::REMOVEDIR)
    }

    /// Removes a file or a link.
    pub(crate) fn unlink(&self, from: &File, path: &str) -> Result<(), Errno> {
        let (parent, name) = self.parent(from, path)?;
        unlinkat(parent, name, AtFlags::empty())
    }

    /// Moves a file or directory.
    pub(crate) fn rename(&self, from: &File, path: &str, to: &File, new_path: &str) -> Result<(), Errno> {
        let (parent, name) = self.parent(from, path)?;
        let (new_parent, new_name) = self.parent(to, new_path)?;
        renameat(parent, name, new_parent, new_name)
    }

    /// Makes another name for a file.
    pub(crate) fn link(&self, from: &File, path: &str, to: &File, new_path: &str) -> Result<(), Errno> {
        let (parent, name) = self.parent(from, path)?;
        let (new_parent, new_name) = self.parent(to, new_path)?;
        // The kernel would follow a link whose name ends with a slash, which can only mean a directory.
        let name = if name.ends_with('/') { "." } else { name };
        linkat(parent, name, new_parent, new_name, AtFlags::empty())
    }

    /// Makes a symbolic link to `target`, which may be any text.
    pub(crate) fn symlink(&self, target: &str, from: &File, path: &str) -> Result<(), Errno> {
        let (parent, name) = self.parent(from, path)?;
        symlinkat(target, parent, name)
    }

    /// The text of a symbolic link.
    pub(crate) fn read_link(&self, from: &File, path: &str) -> Result<String, Errno> {
        let link = self.look(from, path, Links::Keep)?;
        // What is not a link has no text: `EINVAL`, which the kernel calls `ENOENT` for an open descriptor.
        let text = readlinkat(&link, "", Vec::new()).map_err(|error| match error {
            Errno::NOENT => Errno::INVAL,
            other => other,
        })?;
        text.into_string().map_err(|_| Errno::ILSEQ)
    }

    /// Sets the times of a file, directory or link.
    pub(crate) fn set_times(&self, from: &File, path: &str, links: Links, times: &Timestamps) -> Result<(), Errno> {
        set_times(&self.look(from, path, links)?, times)
    }

    /// Opens the directory that holds the last part of a path, and returns the two. The part is never `..`, and no call
    /// that is made with it follows it if it is a link.
    fn parent<'a>(&self, from: &File, path: &'a str) -> Result<(OwnedFd, &'a str), Errno> {
        let name_end = path.trim_end_matches('/').len();
        let name_begin = path.get(..name_end).and_then(|path| path.rfind('/')).map_or(0, |slash| slash + 1);
        let (parent, name) = path.split_at_checked(name_begin).ok_or(Errno::INVAL)?;
        let (parent, name) = match name.trim_end_matches('/') {
            "" if path.is_empty() => return Err(Errno::NOENT),
            "" | "." | ".." => (path, "."),
            _ if parent.is_empty() => (".", name),
            _ => (parent, name),
        };
        Ok((self.resolve(from, parent, OFlags::PATH | OFlags::DIRECTORY, Mode::empty())?, name))
    }

    fn resolve(&self, from: &File, path: &str, flags: OFlags, mode: Mode) -> Result<OwnedFd, Errno> {
        if path.starts_with('/') {
            // A path of WASI is relative to a directory.
            return Err(Errno::PERM);
        }
        let root = self.root.as_deref();
        if root.is_some_and(|root| std::ptr::eq(root, from)) {
            return open(from, path, flags, mode, ResolveFlags::IN_ROOT);
        }
        match (open(from, path, flags, mode, ResolveFlags::BENEATH), root) {
            // The way leads out of this directory, by an absolute link or by `..`: it is gone once more from the root. A
            // directory that is moved meanwhile makes this fail, or find what is at its former place.
            (Err(Errno::XDEV), Some(root)) => {
                let inside = path_of(from)?.strip_prefix(path_of(root)?).map_err(|_| Errno::PERM)?.join(path);
                open(root, &inside, flags, mode, ResolveFlags::IN_ROOT)
            }
            (Err(Errno::XDEV), None) => Err(Errno::PERM),
            (opened, _) => opened,
        }
    }
}

impl Links {
    fn flag(self) -> OFlags {
        match self {
            Self::Follow => OFlags::empty(),
            Self::Keep => OFlags::NOFOLLOW,
        }
    }
}

/// Sets the times of an open file or directory.
pub(crate) fn set_times(file: &File, times: &Timestamps) -> Result<(), Errno> {
    utimensat(file, "", times, AtFlags::EMPTY_PATH)
}

/// Where an open directory is now.
fn path_of(directory: &File) -> Result<PathBuf, Errno> {
    let link = format!("/proc/self/fd/{}", directory.as_raw_fd());
    let path = readlinkat(CWD, link, Vec::new())?;
    Ok(PathBuf::from(OsString::from_vec(path.into_bytes())))
}

fn open(
    from: impl AsFd,
    path: impl rustix::path::Arg + Copy,
    flags: OFlags,
    mode: Mode,
    way: ResolveFlags,
) -> Result<OwnedFd, Errno> {
    let once = || openat2(&from, path, flags | OFlags::CLOEXEC, mode, way | ResolveFlags::NO_MAGICLINKS);
    let mut opened = once();
    for _ in 0..RACES_MAX {
        if !matches!(opened, Err(Errno::AGAIN | Errno::INTR)) {
            break;
        }
        opened = once();
    }
    opened
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::symlink;
    use std::path::Path;
    use std::sync::atomic::{AtomicBool, Ordering};

    use rustix::fs::FileType;

    use super::*;

    const MARK: &str = "outside of the root";

    /// A guest's root in a folder that has more than the guest may see, and a directory in it.
    struct Place {
        folder: tempfile::TempDir,
        tree: Tree,
        root: Arc<File>,
        inner: File,
    }

    impl Place {
        fn new() -> Self {
            let folder = tempfile::tempdir().unwrap();
            let at = |name: &str| folder.path().join(name);
            fs::create_dir_all(at("root/inner/deep")).unwrap();
            fs::create_dir_all(at("root/etc")).unwrap();
            fs::write(at("root/etc/name"), "inside").unwrap();
            fs::write(at("secret"), MARK).unwrap();
            fs::create_dir(at("etc")).unwrap();
            fs::write(at("etc/name"), MARK).unwrap();
            for (link, target) in [
                ("absolute", "/etc/name"),
                ("up", "../etc/name"),
                ("high", "../../../../etc/name"),
                ("way", "/etc"),
                ("twice", "/inner/absolute"),
                ("dangling", "/etc/new"),
                ("circle", "/inner/circle"),
                ("out", folder.path().join("secret").to_str().unwrap()),
                ("kernel", "/proc/self/status"),
            ] {
                symlink(target, at("root/inner").join(link)).unwrap();
            }
            let root = Arc::new(File::open(at("root")).unwrap());
            let inner = File::open(at("root/inner")).unwrap();
            Self { folder, tree: Tree::new(Some(Arc::clone(&root)), Role::Module), root, inner }
        }

        fn read(&self, from: &File, path: &str) -> Result<String, Errno> {
            let file = self.tree.open(from, path, Links::Follow, OFlags::RDONLY)?;
            std::io::read_to_string(file).map_err(|error| Errno::from_io_error(&error).unwrap())
        }
    }

    #[test]
    fn links_and_dots_stay_in_the_root_from_every_directory() {
        let place = Place::new();
        for name in ["absolute", "up", "high", "way/name", "twice", "../etc/name", "../../../etc/name", "deep/../up"] {
            assert_eq!(place.read(&place.inner, name).as_deref(), Ok("inside"), "{name}");
            assert_eq!(place.read(&place.root, &format!("inner/{name}")).as_deref(), Ok("inside"), "inner/{name}");
        }
        for (name, error) in [
            ("out", Errno::NOENT),
            ("kernel", Errno::NOENT),
            ("circle", Errno::LOOP),
            ("dangling", Errno::NOENT),
            ("/etc/name", Errno::PERM),
            ("", Errno::NOENT),
            ("../../secret", Errno::NOENT),
        ] {
            assert_eq!(place.read(&place.inner, name), Err(error), "{name}");
        }
        let alone = Tree::new(None, Role::Module);
        assert!(alone.open(&place.inner, "deep", Links::Follow, OFlags::RDONLY).is_ok());
        for name in ["absolute", "up", ".."] {
            assert_eq!(
                alone.open(&place.inner, name, Links::Follow, OFlags::RDONLY).err(),
                Some(Errno::PERM),
                "{name}"
            );
        }
    }

    #[test]
    fn what_does_not_follow_a_link_means_the_link() {
        let Place { tree, inner, folder, .. } = &Place::new();
        assert_eq!(tree.read_link(inner, "absolute").as_deref(), Ok("/etc/name"));
        assert_eq!(tree.read_link(inner, "way/").err(), Some(Errno::INVAL));
        let seen = tree.look(inner, "absolute", Links::Keep).unwrap();
        assert_eq!(FileType::from_raw_mode(rustix::fs::fstat(seen).unwrap().st_mode), FileType::Symlink);
        tree.rename(inner, "absolute", inner, "way/moved").unwrap();
        assert_eq!(fs::read_link(folder.path().join("root/etc/moved")).unwrap(), Path::new("/etc/name"));
        tree.unlink(inner, "way/moved").unwrap();
        assert_eq!(fs::read_to_string(folder.path().join("root/etc/name")).unwrap(), "inside");
    }

    #[test]
    fn no_operation_ends_with_a_name_that_leads_up_or_follows_a_link() {
        let Place { tree, inner, folder, .. } = &Place::new();
        let now = Timestamps {
            last_access: rustix::fs::Timespec { tv_sec: 1, tv_nsec: 0 },
            last_modification: rustix::fs::Timespec { tv_sec: 1, tv_nsec: 0 },
        };
        let outer_time = || fs::metadata(folder.path()).unwrap().modified().unwrap();
        let before = outer_time();
        for path in ["..", "../..", "../../", "deep/../../.."] {
            tree.set_times(inner, path, Links::Keep, &now).unwrap();
            for (what, result) in [
                ("mkdir", tree.create_directory(inner, path)),
                ("rmdir", tree.remove_directory(inner, path)),
                ("unlink", tree.unlink(inner, path)),
                ("rename", tree.rename(inner, path, inner, "new")),
                ("rename", tree.rename(inner, "deep", inner, path)),
                ("link", tree.link(inner, path, inner, "new")),
                ("symlink", tree.symlink("x", inner, path)),
                ("read_link", tree.read_link(inner, path).map(drop)),
            ] {
                assert!(result.is_err(), "{what} {path}");
            }
        }
        assert_eq!(outer_time(), before);
        // A slash after a link follows it: inside the root, or not at all.
        for path in ["out/", "way/"] {
            assert!(tree.link(inner, path, inner, "new").is_err() && tree.unlink(inner, path).is_err(), "{path}");
        }
    }

    struct Over<'a>(&'a AtomicBool);

    impl Drop for Over<'_> {
        fn drop(&mut self) {
            self.0.store(true, Ordering::Relaxed);
        }
    }

    #[test]
    fn a_link_that_changes_all_the_time_never_leads_out() {
        let place = Place::new();
        let is_over = AtomicBool::new(false);
        std::thread::scope(|scope| {
            scope.spawn(|| {
                let inner = place.folder.path().join("root/inner");
                let targets =
                    ["/etc", "../../../../etc", "/inner/way", place.folder.path().to_str().unwrap(), "/proc/self"];
                for target in targets.iter().cycle() {
                    if is_over.load(Ordering::Relaxed) {
                        return;
                    }
                    symlink(target, inner.join("next")).unwrap();
                    fs::rename(inner.join("next"), inner.join("swapped")).unwrap();
                    // And the directory itself moves below another one, and back.
                    fs::rename(inner.join("deep"), inner.join("../etc/deep")).unwrap();
                    fs::rename(inner.join("../etc/deep"), inner.join("deep")).unwrap();
                }
            });
            // Also when an assertion fails, or the scope would wait for ever.
            let _over = Over(&is_over);
            let mut found = 0;
            for round in 0..20_000 {
                for (from, path) in [
                    (&place.inner, "swapped/name"),
                    (&*place.root, "inner/swapped/name"),
                    (&place.inner, "deep/../../etc/name"),
                ] {
                    if let Ok(text) = place.read(from, path) {
                        assert_eq!(text, "inside", "{path}");
                        found += 1;
                    }
                }
                if round > 2000 && found > 1000 {
                    break;
                }
            }
            assert!(found > 0, "the links lead somewhere at times");
        });
    }
}
