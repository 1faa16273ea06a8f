//! Files that the engine itself reads for a guest, by the guest's paths. Each path is followed below the guest's own
//! directories, whatever links it leads through, and only regular files are opened.

use std::ffi::OsString;
use std::fs::File;
use std::io::{self, ErrorKind};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};

use nix::fcntl::{OFlag, OpenHow, ResolveFlag, open, openat2};
use nix::sys::stat::Mode;

pub(crate) use super::tree::Links;

/// Follows paths of a guest. By default it finds nothing.
#[derive(Default)]
pub(crate) struct Reader {
    roots: Vec<(PathBuf, OwnedFd)>,
}

/// What is at a path. It is not open for reading.
pub(crate) struct Place(File);

impl Reader {
    /// Follows paths below `directory` alone, which the guest sees at `path`.
    #[cfg(test)]
    pub(crate) fn of(path: &str, directory: &Path) -> Self {
        Self { roots: vec![(PathBuf::from(path), File::open(directory).unwrap().into())] }
    }

    /// Adds a directory that the guest sees at `path`.
    pub(super) fn add(&mut self, path: &str, directory: OwnedFd) {
        self.roots.push((PathBuf::from(path), directory));
    }

    /// Finds what the guest has at the absolute `path`.
    ///
    /// # Errors
    /// Those of `openat2(2)`; `NotFound` if the guest has no such directory.
    pub(crate) fn find(&self, path: &Path, links: Links) -> io::Result<Place> {
        let inside = self.roots.iter().filter_map(|(root, directory)| {
            let rest = path.strip_prefix(root).ok()?;
            Some((root.as_os_str().len(), directory, rest))
        });
        let (_, directory, rest) = inside.max_by_key(|(length, ..)| *length).ok_or(ErrorKind::NotFound)?;
        let rest = if rest.as_os_str().is_empty() { Path::new(".") } else { rest };
        let end = if links == Links::Keep { OFlag::O_NOFOLLOW } else { OFlag::empty() };
        let how = OpenHow::new()
            .flags(OFlag::O_PATH | OFlag::O_CLOEXEC | end)
            .resolve(ResolveFlag::RESOLVE_IN_ROOT | ResolveFlag::RESOLVE_NO_MAGICLINKS);
        Ok(Place(File::from(openat2(directory.as_fd(), rest, how)?)))
    }

    /// Finds the directory that holds the last part of the absolute `path`, and that part.
    ///
    /// # Errors
    /// `InvalidInput` if it cannot be the path of a file, and those of [`Reader::find`].
    pub(super) fn find_parent(&self, path: &Path) -> io::Result<(Place, OsString)> {
        match (path.parent(), path.file_name()) {
            (Some(parent), Some(name)) => Ok((self.find(parent, Links::Follow)?, name.to_owned())),
            _ => Err(io::Error::new(ErrorKind::InvalidInput, "not the path of a file")),
        }
    }
}

impl Place {
    /// What the kernel says about it.
    ///
    /// # Errors
    /// Those of `statx(2)`.
    pub(crate) fn metadata(&self) -> io::Result<std::fs::Metadata> {
        self.0.metadata()
    }

    /// Opens a regular file.
    ///
    /// # Errors
    /// `InvalidInput` for everything else, and those of `open(2)`.
    pub(crate) fn open_file(&self) -> io::Result<File> {
        if !self.metadata()?.is_file() {
            return Err(io::Error::new(ErrorKind::InvalidInput, "not a regular file"));
        }
        self.open(OFlag::O_RDONLY | OFlag::O_NONBLOCK)
    }

    /// Opens a regular file to write at its end.
    ///
    /// # Errors
    /// Those of [`Place::open_file`].
    pub(crate) fn open_file_to_append(&self) -> io::Result<File> {
        if !self.metadata()?.is_file() {
            return Err(io::Error::new(ErrorKind::InvalidInput, "not a regular file"));
        }
        self.open(OFlag::O_WRONLY | OFlag::O_APPEND | OFlag::O_NONBLOCK)
    }

    /// Opens a directory.
    ///
    /// # Errors
    /// Those of `open(2)`: `NotADirectory` for everything else.
    pub(crate) fn open_directory(&self) -> io::Result<File> {
        self.open(OFlag::O_RDONLY | OFlag::O_DIRECTORY)
    }

    fn open(&self, flags: OFlag) -> io::Result<File> {
        // The kernel opens what was found, wherever it is by now.
        let again = format!("/proc/self/fd/{}", self.0.as_raw_fd());
        Ok(File::from(open(again.as_str(), OFlag::O_CLOEXEC | flags, Mode::empty())?))
    }
}

impl AsFd for Place {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

#[cfg(test)]
mod tests {
    use std::io::Read;
    use std::os::unix::fs::symlink;

    use super::*;

    #[test]
    fn a_path_is_followed_below_the_guests_directories() {
        let folder = tempfile::tempdir().unwrap();
        let at = |name: &str| folder.path().join(name);
        std::fs::create_dir_all(at("root/etc")).unwrap();
        std::fs::create_dir_all(at("volume/..data")).unwrap();
        std::fs::write(at("root/etc/ca"), "image").unwrap();
        std::fs::write(at("volume/..data/ca"), "volume").unwrap();
        std::fs::write(at("secret"), "secret").unwrap();
        for (link, target) in [
            ("root/absolute", "/etc/ca"),
            ("root/up", "../../../../etc/ca"),
            ("root/out", "../secret"),
            ("root/process", "/proc/self/environ"),
            ("root/circle", "circle"),
            ("volume/ca", "..data/ca"),
        ] {
            symlink(target, at(link)).unwrap();
        }
        nix::unistd::mkfifo(&at("root/fifo"), Mode::S_IRWXU).unwrap();
        let mut reader = Reader::default();
        for (guest, host) in [("/", "root"), ("/var/run/secrets", "volume")] {
            reader.add(guest, File::open(at(host)).unwrap().into());
        }
        let read = |path: &str| {
            let mut text = String::new();
            reader.find(Path::new(path), Links::Follow)?.open_file()?.read_to_string(&mut text)?;
            io::Result::Ok(text)
        };
        for (path, expected) in [
            ("/etc/ca", Some("image")),
            ("/absolute", Some("image")),
            ("/up", Some("image")),
            ("/etc/../../../etc/ca", Some("image")),
            ("/var/run/secrets/ca", Some("volume")),
            ("/out", None),
            ("/process", None),
            ("/circle", None),
            ("/fifo", None),
            ("/etc", None),
            ("/proc/self/environ", None),
            ("etc/ca", None),
            ("", None),
        ] {
            assert_eq!(read(path).ok().as_deref(), expected, "{path}");
        }
        assert!(Reader::default().find(Path::new("/etc/passwd"), Links::Follow).is_err());
        let link = |links| reader.find(Path::new("/absolute"), links).unwrap().metadata().unwrap().is_symlink();
        assert_eq!([Links::Keep, Links::Follow].map(link), [true, false]);
        let folder = reader.find(Path::new("/etc"), Links::Follow).unwrap().open_directory().unwrap();
        assert!(folder.metadata().unwrap().is_dir());
    }
}
