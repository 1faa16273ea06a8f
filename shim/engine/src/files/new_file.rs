//! A file of the container that the engine itself writes. It has no name until it is whole, so whatever ends this process leaves no part
//! of it, unless the file system has no files without a name.

use std::ffi::{OsStr, OsString};
use std::fs::File;
use std::io::{self, Write};
use std::os::fd::AsRawFd;
use std::path::Path;

use nix::errno::Errno;
use nix::fcntl::{AT_FDCWD, AtFlags, OFlag, openat};
use nix::sys::stat::{Mode, fstatat};
use nix::unistd::{UnlinkatFlags, linkat, unlinkat};

use super::reader::{Place, Reader};

/// A new file of the container. It is kept once it is flushed, if there is something in it.
pub(crate) struct NewFile {
    file: File,
    parent: Place,
    name: OsString,
    stage: Stage,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Stage {
    /// It has no name yet.
    Nameless,
    /// It has its name, which is removed unless the file is kept. A kill leaves it.
    Named,
    /// It is kept.
    Kept,
}

impl NewFile {
    /// Makes the file that the guest will see at the absolute `path`.
    ///
    /// # Errors
    /// `AlreadyExists` whatever is there, and those of `openat(2)`.
    pub(crate) fn create(path: &Path, reader: &Reader) -> io::Result<Self> {
        let (parent, name) = reader.find_parent(path)?;
        let (file, stage) = make(&parent, &name)?;
        Ok(Self { file, parent, name, stage })
    }
}

/// Makes a file without a name, or with this one if the file system has none without.
fn make(parent: &Place, name: &OsStr) -> Result<(File, Stage), Errno> {
    match fstatat(parent, name, AtFlags::AT_SYMLINK_NOFOLLOW) {
        Ok(_) => return Err(Errno::EEXIST),
        Err(Errno::ENOENT) => {}
        Err(error) => return Err(error),
    }
    let flags = OFlag::O_WRONLY | OFlag::O_CLOEXEC;
    let mode = Mode::S_IRUSR | Mode::S_IWUSR;
    match openat(parent, ".", flags | OFlag::O_TMPFILE, mode) {
        Err(Errno::EOPNOTSUPP | Errno::EISDIR) => {
            let flags = flags | OFlag::O_CREAT | OFlag::O_EXCL | OFlag::O_NOFOLLOW;
            Ok((File::from(openat(parent, name, flags, mode)?), Stage::Named))
        }
        nameless => Ok((File::from(nameless?), Stage::Nameless)),
    }
}

impl Write for NewFile {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.file.write(bytes)
    }

    /// Gives it its name, unless there is nothing in it.
    fn flush(&mut self) -> io::Result<()> {
        if self.file.metadata()?.len() == 0 {
            return Ok(());
        }
        if self.stage == Stage::Nameless {
            // The way that needs no capability. It fails if there is something of this name by now.
            let nameless = format!("/proc/self/fd/{}", self.file.as_raw_fd());
            linkat(AT_FDCWD, nameless.as_str(), &self.parent, self.name.as_os_str(), AtFlags::AT_SYMLINK_FOLLOW)?;
        }
        self.stage = Stage::Kept;
        Ok(())
    }
}

impl Drop for NewFile {
    fn drop(&mut self) {
        if self.stage == Stage::Named {
            // What cannot be removed stays, as the rest of a file that was reported to have failed.
            let _removed = unlinkat(&self.parent, self.name.as_os_str(), UnlinkatFlags::NoRemoveDir);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::io::ErrorKind;

    use nix::mount::{MntFlags, MsFlags, mount, umount2};

    use super::*;

    /// How many names there are in a directory while a file is written, and after `end` has had the file.
    fn names(folder: &Path, end: impl FnOnce(NewFile)) -> [usize; 2] {
        let count = || fs::read_dir(folder).unwrap().count();
        let mut file = NewFile::create(Path::new("/new"), &Reader::of("/", folder)).unwrap();
        // Not every file system lets its files be written to.
        let _written = file.write_all(b"part");
        let before = count();
        end(file);
        [before, count()]
    }

    #[test]
    fn a_file_has_its_name_once_it_is_whole() {
        let folder = tempfile::tempdir().unwrap();
        assert_eq!(names(folder.path(), drop), [0, 0]);
        let reader = Reader::of("/", folder.path());
        let create = || NewFile::create(Path::new("/new"), &reader);
        create().unwrap().flush().unwrap();
        assert!(!folder.path().join("new").exists(), "nothing is in it");
        let mut late = create().unwrap();
        assert_eq!(names(folder.path(), |mut file| file.flush().unwrap()), [0, 1]);
        late.write_all(b"late").unwrap();
        for error in [late.flush().err(), create().err()] {
            assert_eq!(error.map(|error| error.kind()), Some(ErrorKind::AlreadyExists));
        }
        assert_eq!(fs::read(folder.path().join("new")).unwrap(), b"part");
    }

    #[test]
    fn a_part_is_removed_where_each_file_has_a_name() {
        let folder = tempfile::tempdir().unwrap();
        // A file system without nameless files.
        mount(Some("none"), folder.path(), Some("mqueue"), MsFlags::empty(), None::<&str>).unwrap();
        let parts = names(folder.path(), drop);
        umount2(folder.path(), MntFlags::MNT_DETACH).unwrap();
        assert_eq!(parts[0] - parts[1], 1);
    }
}
