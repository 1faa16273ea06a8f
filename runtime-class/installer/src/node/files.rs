//! The node's file system, seen from a container that has it mounted. Everywhere else, paths are the node's own.
//!
//! Every write goes to a temporary file in the same directory, which is synced and renamed; then the directory is synced. The new
//! file gets the mode, the owner and the extended attributes of the one that it replaces.

use std::collections::VecDeque;
use std::ffi::{OsStr, OsString};
use std::fs::{self, DirBuilder, File, Metadata, OpenOptions, Permissions};
use std::io::{self, ErrorKind, Read, Write};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt, PermissionsExt, fchown, symlink};
use std::path::{Component, Path, PathBuf};

use nix::sys::statvfs::{FsFlags, statvfs};

use crate::error::{Context, Error, Result};
use crate::node::xattr;

/// The end of the name of a file that is being written. The pattern `*.toml` does not match it.
const TEMPORARY: &str = ".skiff-new";
/// More links than this are a loop (path_resolution(7)).
const LINKS_MAX: usize = 40;

/// The node's root directory, as this process sees it.
#[derive(Clone, Debug)]
pub(crate) struct Host {
    root: PathBuf,
}

impl Host {
    pub(crate) fn new(root: PathBuf) -> Self {
        Self { root }
    }

    pub(crate) fn root(&self) -> &Path {
        &self.root
    }

    /// Where this process finds the node's `path`, with links followed as on the node.
    pub(crate) fn place(&self, path: &Path) -> Result<PathBuf> {
        self.follow(path).or_host(format!("cannot follow `{}`", path.display()))
    }

    fn follow(&self, path: &Path) -> io::Result<PathBuf> {
        self.walk(path, |_| {})
    }

    /// Each existing directory and link on the node's way to `path`, with its metadata.
    pub(crate) fn steps(&self, path: &Path) -> io::Result<Vec<(PathBuf, Metadata)>> {
        let mut steps = Vec::new();
        let mut add = |step: &Path| {
            if let Ok(metadata) = fs::symlink_metadata(self.root.join(step)) {
                steps.push((Path::new("/").join(step), metadata));
            }
        };
        add(Path::new(""));
        self.walk(path, add)?;
        Ok(steps)
    }

    /// Follows `path`, and hands everything on the way, relative to the root, to `pass`.
    fn walk(&self, path: &Path, mut pass: impl FnMut(&Path)) -> io::Result<PathBuf> {
        let mut rest: VecDeque<OsString> = parts(path).collect();
        let mut done = PathBuf::new();
        let mut links = 0;
        while let Some(part) = rest.pop_front() {
            if part == ".." {
                done.pop();
                continue;
            }
            pass(&done.join(&part));
            match fs::read_link(self.root.join(&done).join(&part)) {
                Ok(target) => {
                    links += 1;
                    if links > LINKS_MAX {
                        return Err(io::Error::from_raw_os_error(libc::ELOOP));
                    }
                    if target.is_absolute() {
                        done = PathBuf::new();
                    }
                    for part in parts(&target).collect::<Vec<_>>().into_iter().rev() {
                        rest.push_front(part);
                    }
                }
                Err(_) => done.push(part),
            }
        }
        Ok(self.root.join(done))
    }

    /// Where this process finds the node's `path`; a link at its end is not followed.
    fn entry(&self, path: &Path) -> Result<PathBuf> {
        let (Some(parent), Some(name)) = (path.parent(), path.file_name()) else {
            return Err(Error::refused(format!("`{}` is not the path of a file", path.display())));
        };
        Ok(self.place(parent)?.join(name))
    }

    /// Whether `path` exists on the node.
    pub(crate) fn exists(&self, path: &Path) -> bool {
        self.follow(path).is_ok_and(|place| place.exists())
    }

    /// Where this process finds the node's processes.
    pub(crate) fn processes(&self) -> PathBuf {
        let processes = self.root.join("proc");
        if processes.join("self").exists() { processes } else { PathBuf::from("/proc") }
    }

    /// Whether `path` is a file that root may execute.
    pub(crate) fn is_program(&self, path: &Path) -> bool {
        let metadata = self.follow(path).and_then(fs::metadata);
        metadata.is_ok_and(|metadata| metadata.is_file() && metadata.mode() & 0o111 != 0)
    }

    /// The text of a file; `None` when it does not exist.
    pub(crate) fn read(&self, path: &Path) -> Result<Option<String>> {
        match fs::read(self.place(path)?) {
            Ok(bytes) => String::from_utf8(bytes).map(Some).or_refused(format!("`{}` is not UTF-8", path.display())),
            Err(error) if matches!(error.kind(), ErrorKind::NotFound | ErrorKind::NotADirectory) => Ok(None),
            Err(error) => Err(Error::host(format!("cannot read `{}`: {error}", path.display()))),
        }
    }

    /// Makes `text` the content of `path`, or removes the file. An existing file keeps its mode, owner and attributes.
    pub(crate) fn put(&self, path: &Path, text: Option<&str>) -> Result<()> {
        match text {
            Some(text) => self.write(path, &mut text.as_bytes(), 0o644),
            None => self.remove(path),
        }
    }

    /// Writes a file whole or not at all. A new file gets `mode`.
    pub(crate) fn write(&self, path: &Path, content: &mut dyn Read, mode: u32) -> Result<()> {
        let target = self.place(path)?;
        write_whole(&target, content, mode).or_host(format!("cannot write `{}`", path.display()))
    }

    /// Makes `path` a link to `target`, replacing an existing link.
    pub(crate) fn link(&self, path: &Path, target: &Path) -> Result<()> {
        let entry = self.entry(path)?;
        let temporary = temporary(&entry);
        let job = || -> io::Result<()> {
            remove_if_there(&temporary)?;
            symlink(target, &temporary)?;
            fs::rename(&temporary, &entry)?;
            sync_parent(&entry)
        };
        job().or_host(format!("cannot make the link `{}`", path.display()))
    }

    /// The target of the link `path`; `None` when it is not a link.
    pub(crate) fn link_target(&self, path: &Path) -> Option<PathBuf> {
        self.entry(path).ok().and_then(|entry| fs::read_link(entry).ok())
    }

    /// Removes a file or a link, if it exists, and what an interrupted write of it left.
    pub(crate) fn remove(&self, path: &Path) -> Result<()> {
        let entry = self.entry(path)?;
        let job = || -> io::Result<()> {
            if !entry.parent().is_some_and(Path::exists) {
                return Ok(());
            }
            remove_if_there(&temporary(&entry))?;
            if remove_if_there(&entry)? { sync_parent(&entry) } else { Ok(()) }
        };
        job().or_host(format!("cannot remove `{}`", path.display()))
    }

    /// Removes what an interrupted write of `path` left.
    pub(crate) fn remove_temporary(&self, path: &Path) -> Result<()> {
        let target = temporary(&self.place(path)?);
        if !target.parent().is_some_and(Path::exists) {
            return Ok(());
        }
        remove_if_there(&target).or_host(format!("cannot remove `{}`", target.display())).map(drop)
    }

    /// Removes a directory and everything below it, if it exists.
    pub(crate) fn remove_tree(&self, path: &Path) -> Result<()> {
        let entry = self.entry(path)?;
        match fs::remove_dir_all(&entry) {
            Err(error) if error.kind() == ErrorKind::NotFound => Ok(()),
            Err(error) => Err(Error::host(format!("cannot remove `{}`: {error}", path.display()))),
            Ok(()) => sync_parent(&entry).or_host(format!("cannot sync the parent of `{}`", path.display())),
        }
    }

    /// Removes a directory if it exists and is empty.
    pub(crate) fn remove_empty(&self, path: &Path) -> Result<()> {
        let entry = self.entry(path)?;
        match fs::remove_dir(&entry) {
            Ok(()) => sync_parent(&entry).or_host(format!("cannot sync the parent of `{}`", path.display())),
            Err(error) if matches!(error.kind(), ErrorKind::NotFound | ErrorKind::DirectoryNotEmpty) => Ok(()),
            Err(error) => Err(Error::host(format!("cannot remove `{}`: {error}", path.display()))),
        }
    }

    /// Those of `path` and the directories above it that do not exist, outermost first.
    pub(crate) fn missing_directories(&self, path: &Path) -> Vec<PathBuf> {
        let missing = path.ancestors().take_while(|ancestor| !self.exists(ancestor));
        let mut missing: Vec<_> = missing.map(Path::to_path_buf).collect();
        missing.reverse();
        missing
    }

    /// Makes a directory and those above it, and syncs the parent of each.
    pub(crate) fn make_directories(&self, path: &Path, mode: u32) -> Result<()> {
        for missing in self.missing_directories(path) {
            let place = self.place(&missing)?;
            let made = DirBuilder::new().mode(mode).create(&place).and_then(|()| sync_parent(&place));
            made.or_host(format!("cannot make the directory `{}`", missing.display()))?;
        }
        Ok(())
    }

    /// The names in a directory, sorted; empty when it does not exist.
    pub(crate) fn names(&self, path: &Path) -> Result<Vec<String>> {
        let entries = match fs::read_dir(self.place(path)?) {
            Err(error) if error.kind() == ErrorKind::NotFound => return Ok(Vec::new()),
            entries => entries.or_host(format!("cannot read the directory `{}`", path.display()))?,
        };
        let mut names: Vec<_> = entries.flatten().filter_map(|entry| entry.file_name().into_string().ok()).collect();
        names.sort();
        Ok(names)
    }

    /// Why programs cannot live below `path`; `None` when they can.
    pub(crate) fn unfit_for_programs(&self, path: &Path) -> Option<String> {
        let there = path.ancestors().find(|ancestor| self.exists(ancestor))?;
        let flags = self.follow(there).ok().and_then(|place| statvfs(&place).ok())?.flags();
        if flags.contains(FsFlags::ST_RDONLY) {
            return Some("is read-only".into());
        }
        flags.contains(FsFlags::ST_NOEXEC).then(|| "is mounted noexec".into())
    }
}

fn parts(path: &Path) -> impl Iterator<Item = OsString> + '_ {
    path.components().filter_map(|component| match component {
        Component::Normal(part) => Some(part.to_os_string()),
        Component::ParentDir => Some(OsString::from("..")),
        Component::Prefix(_) | Component::RootDir | Component::CurDir => None,
    })
}

/// `.NAME.skiff-new` beside `target`.
fn temporary(target: &Path) -> PathBuf {
    let name = target.file_name().unwrap_or_else(|| OsStr::new("root"));
    let mut hidden = OsString::from(".");
    hidden.push(OsStr::from_bytes(name.as_bytes()));
    hidden.push(TEMPORARY);
    target.with_file_name(hidden)
}

fn write_whole(target: &Path, content: &mut dyn Read, mode: u32) -> io::Result<()> {
    let temporary = temporary(target);
    let written = write_new(&temporary, target, content, mode).and_then(|()| fs::rename(&temporary, target));
    if written.is_err() {
        // The first error is the one to report.
        drop(remove_if_there(&temporary));
    }
    written.and_then(|()| sync_parent(target))
}

fn write_new(temporary: &Path, target: &Path, content: &mut dyn Read, mode: u32) -> io::Result<()> {
    remove_if_there(temporary)?;
    let mut file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(temporary)?;
    io::copy(content, &mut file)?;
    match fs::metadata(target) {
        Ok(old) => {
            // In this order CHOWN is the only capability that it needs.
            xattr::copy(&File::open(target)?, &file)?;
            file.set_permissions(Permissions::from_mode(old.mode() & 0o777))?;
            fchown(&file, Some(old.uid()), Some(old.gid()))?;
        }
        Err(_) => file.set_permissions(Permissions::from_mode(mode))?,
    }
    file.flush()?;
    file.sync_all()
}

fn remove_if_there(path: &Path) -> io::Result<bool> {
    match fs::remove_file(path) {
        Ok(()) => Ok(true),
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(false),
        Err(error) => Err(error),
    }
}

fn sync_parent(path: &Path) -> io::Result<()> {
    path.parent().map_or(Ok(()), |parent| File::open(parent)?.sync_all())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn host() -> (tempfile::TempDir, Host) {
        let directory = tempfile::tempdir().unwrap();
        let host = Host::new(directory.path().to_path_buf());
        (directory, host)
    }

    #[test]
    fn links_are_followed_inside_the_root() {
        let (directory, host) = host();
        fs::create_dir_all(directory.path().join("var/x1/args")).unwrap();
        symlink("/var/x1", directory.path().join("var/current")).unwrap();
        symlink("../../../../../var/x1/args", directory.path().join("var/x1/up")).unwrap();
        symlink("loop", directory.path().join("loop")).unwrap();
        for path in ["/var/current/args/file", "/var/current/up/file", "/var/x1/./args/../args/file"] {
            assert_eq!(host.place(Path::new(path)).unwrap(), directory.path().join("var/x1/args/file"), "{path}");
        }
        assert!(host.place(Path::new("/loop/x")).unwrap_err().to_string().contains("cannot follow `/loop/x`"));
    }

    #[test]
    fn a_written_file_keeps_its_mode_owner_and_attributes_and_leaves_nothing_beside_it() {
        let (directory, host) = host();
        let file = directory.path().join("config.toml");
        fs::write(&file, "old").unwrap();
        fs::set_permissions(&file, Permissions::from_mode(0o640)).unwrap();
        std::os::unix::fs::chown(&file, Some(0), Some(4242)).unwrap();
        let attribute = c"trusted.skiff";
        xattr::set(&File::open(&file).unwrap(), attribute, b"label").unwrap();
        let before = xattr::value(&File::open(&file).unwrap(), attribute).unwrap();
        fs::write(directory.path().join(".config.toml.skiff-new"), "of a run that was killed").unwrap();
        host.put(Path::new("/config.toml"), Some("new")).unwrap();
        assert_eq!(fs::read_to_string(&file).unwrap(), "new");
        let metadata = fs::metadata(&file).unwrap();
        assert_eq!((metadata.mode() & 0o7777, metadata.uid(), metadata.gid()), (0o640, 0, 4242));
        assert_eq!(xattr::value(&File::open(&file).unwrap(), attribute).unwrap(), before);
        assert_eq!(host.names(Path::new("/")).unwrap(), ["config.toml"]);
        host.put(Path::new("/config.toml"), None).unwrap();
        host.put(Path::new("/absent/config.toml"), None).unwrap();
        assert_eq!(host.names(Path::new("/")).unwrap(), [""; 0]);
    }

    #[test]
    fn directories_that_are_missing_are_named_from_the_outside() {
        let (_directory, host) = host();
        let path = Path::new("/opt/skiff/versions");
        let missing = host.missing_directories(path);
        assert_eq!(missing, ["/opt", "/opt/skiff", "/opt/skiff/versions"].map(PathBuf::from));
        host.make_directories(path, 0o755).unwrap();
        assert!(host.missing_directories(path).is_empty());
    }
}
