//! The container's root before it is the process's own. Its files are a stranger's: links in them lead nowhere but below it, however
//! they are changed meanwhile, because the kernel itself resolves each path there (`openat2(2)`, `RESOLVE_IN_ROOT`).

use std::fs::File;
use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::path::{Path, PathBuf};

use rustix::fs::{Mode, OFlags, ResolveFlags, mkdirat, open, openat, openat2, readlinkat};
use rustix::io::Errno;

/// How often a path is looked up again because its directories change.
const LOOKED_UP_MAX: usize = 100;
/// How many links that lead nowhere are followed; as many as the kernel follows.
const LINKS_MAX: usize = 40;

/// A container's root.
pub(crate) struct Root {
    directory: OwnedFd,
    path: PathBuf,
}

/// What is made where there is nothing.
#[derive(Clone, Copy)]
pub(crate) enum Missing {
    Directory,
    File,
}

impl Root {
    /// The root that is mounted at `path`.
    pub(crate) fn open(path: &Path) -> io::Result<Self> {
        let directory = open(path, OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())?;
        let path = std::fs::read_link(proc_path(&directory))?;
        Ok(Self { directory, path })
    }

    pub(crate) fn directory(&self) -> &OwnedFd {
        &self.directory
    }

    /// What is at `path`, mounts and links followed.
    pub(crate) fn find(&self, path: &Path) -> io::Result<OwnedFd> {
        for _ in 0..LOOKED_UP_MAX {
            let flags = OFlags::PATH | OFlags::CLOEXEC;
            match openat2(&self.directory, path, flags, Mode::empty(), ResolveFlags::IN_ROOT) {
                Err(Errno::AGAIN) => {}
                found => return Ok(found?),
            }
        }
        Err(Errno::AGAIN.into())
    }

    /// The same, but `None` where there is nothing.
    pub(crate) fn find_if_there(&self, path: &Path) -> io::Result<Option<OwnedFd>> {
        match self.find(path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            found => found.map(Some),
        }
    }

    /// What is at `path`, which is made if there is nothing, with the directories above it.
    pub(crate) fn find_or_make(&self, path: &Path, missing: Missing) -> io::Result<OwnedFd> {
        let mut path = path.to_owned();
        for _ in 0..LINKS_MAX {
            if let Some(found) = self.find_if_there(&path)? {
                return Ok(found);
            }
            let (above, name) = split(&path)?;
            let parent = self.find_or_make(above, Missing::Directory)?;
            let made = match missing {
                Missing::Directory => mkdirat(&parent, name, Mode::from_raw_mode(0o755)),
                Missing::File => {
                    let flags = OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC | OFlags::WRONLY;
                    openat(&parent, name, flags, Mode::from_raw_mode(0o644)).map(drop)
                }
            };
            match made {
                Ok(()) => {}
                // A link that leads nowhere, unless somebody has just made it.
                Err(Errno::EXIST) => match readlinkat(&parent, name, Vec::new()) {
                    Ok(link) => path = above.join(link.to_str().map_err(io::Error::other)?),
                    Err(Errno::INVAL) => {}
                    Err(error) => return Err(error.into()),
                },
                Err(error) => return Err(error.into()),
            }
        }
        Err(Errno::LOOP.into())
    }

    /// The directory that `path` is in, which is made if there is none, and the name in it.
    pub(crate) fn parent_of<'a>(&self, path: &'a Path) -> io::Result<(OwnedFd, &'a Path)> {
        let (above, name) = split(path)?;
        Ok((self.find_or_make(above, Missing::Directory)?, name))
    }

    /// Where `file`, which was found here, really is.
    pub(crate) fn place_of(&self, file: &impl AsFd) -> io::Result<PathBuf> {
        let path = std::fs::read_link(proc_path(file))?;
        let outside = || io::Error::other(format!("`{}` is not below the container's root", path.display()));
        Ok(Path::new("/").join(path.strip_prefix(&self.path).map_err(|_| outside())?))
    }

    /// The container's `/dev/null`, to be opened again by [`proc_path`].
    pub(crate) fn null(&self) -> io::Result<OwnedFd> {
        let found = self.find(Path::new("/dev/null"))?;
        let is_null = is_null(&found)?;
        if is_null { Ok(found) } else { Err(io::Error::other("the container's `/dev/null` is something else")) }
    }
}

/// Whether `file` is the device that swallows everything.
pub(crate) fn is_null(file: impl AsFd) -> io::Result<bool> {
    let status = rustix::fs::fstat(file)?;
    let is_device = rustix::fs::FileType::from_raw_mode(status.st_mode).is_char_device();
    Ok(is_device && status.st_rdev == rustix::fs::makedev(1, 3))
}

/// A path by which the kernel finds `file` again.
pub(crate) fn proc_path(file: &impl AsFd) -> PathBuf {
    Path::new("/proc/self/fd").join(file.as_fd().as_raw_fd().to_string())
}

/// Opens `file`, which was only found, for writing.
pub(crate) fn open_to_write(file: &impl AsFd) -> io::Result<File> {
    File::options().write(true).open(proc_path(file))
}

fn split(path: &Path) -> io::Result<(&Path, &Path)> {
    let parts = path.parent().zip(path.file_name());
    let (above, name) = parts.ok_or_else(|| io::Error::other(format!("`{}` has no name", path.display())))?;
    Ok((above, Path::new(name)))
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::symlink;

    use super::*;

    fn root() -> (tempfile::TempDir, Root) {
        let directory = tempfile::tempdir().unwrap();
        fs::create_dir(directory.path().join("root")).unwrap();
        let root = Root::open(&directory.path().join("root")).unwrap();
        (directory, root)
    }

    #[test]
    fn whatever_links_say_nothing_is_found_or_made_outside_of_the_root() {
        let (directory, root) = root();
        let inside = directory.path().join("root");
        for (link, target) in [("up", "../../../../.."), ("absolute", "/made"), ("chain", "up/x"), ("there", "/")] {
            symlink(target, inside.join(link)).unwrap();
        }
        for (path, place) in [
            ("/a/b", "/a/b"),
            ("/up/c", "/c"),
            ("/absolute/d", "/made/d"),
            ("/chain/e", "/x/e"),
            ("/there/f", "/f"),
            ("/../g", "/g"),
        ] {
            let made = root.find_or_make(Path::new(path), Missing::Directory).unwrap();
            assert_eq!(root.place_of(&made).unwrap(), Path::new(place), "{path}");
            let file = Path::new(path).join("file");
            let made = root.find_or_make(&file, Missing::File).unwrap();
            assert_eq!(root.place_of(&made).unwrap(), Path::new(place).join("file"), "{path}");
            assert!(inside.join(place.trim_start_matches('/')).join("file").is_file(), "{path}");
        }
        let outside: Vec<_> = fs::read_dir(directory.path()).unwrap().map(|entry| entry.unwrap().file_name()).collect();
        assert_eq!(outside, ["root"]);
    }

    #[test]
    fn a_link_that_leads_nowhere_is_made_where_it_leads() {
        let (directory, root) = root();
        symlink("/var/lib/file", directory.path().join("root/link")).unwrap();
        let made = root.find_or_make(Path::new("/link"), Missing::File).unwrap();
        assert_eq!(root.place_of(&made).unwrap(), Path::new("/var/lib/file"));
        symlink("circle", directory.path().join("root/circle")).unwrap();
        assert!(root.find_or_make(Path::new("/circle"), Missing::File).is_err());
        assert!(root.find_or_make(Path::new("/circle/a"), Missing::Directory).is_err());
    }

    #[test]
    fn what_is_not_the_null_device_is_not_taken_for_it() {
        let (directory, root) = root();
        assert_eq!(root.null().unwrap_err().kind(), io::ErrorKind::NotFound);
        fs::create_dir(directory.path().join("root/dev")).unwrap();
        fs::write(directory.path().join("root/dev/null"), "").unwrap();
        assert!(root.null().unwrap_err().to_string().contains("something else"));
    }
}
