//! Which directories of the node show the kernel instead of files. Write access to `/proc/PID/mem`, for example, lets a
//! guest inject native code.

use std::cell::RefCell;
use std::collections::HashMap;
use std::fs::{File, OpenOptions};
use std::io::{self, ErrorKind};
use std::ops::ControlFlow;
use std::os::fd::AsRawFd;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use skiff_linux::mount_ids::MountId;
use skiff_linux::mounts::{each_mount, unescape};

use crate::spec::wasm::{DEVICES, Shown, is_kernels};

/// What the shim needs to know about the mounts of the node.
#[derive(Debug)]
pub(crate) enum KernelFiles {
    /// The kernel is asked about each mount, and what it said of those below it is kept.
    Asked(RefCell<HashMap<MountId, Vec<PathBuf>>>),
    /// Before Linux 6.8: all mounts of the node were read.
    Listed(List),
}

/// The mounts of the kernel's own file systems.
#[derive(Debug, Default)]
pub(crate) struct List {
    /// Their kinds, by their ids.
    kinds: HashMap<u64, String>,
    /// Where they are mounted.
    points: Vec<PathBuf>,
}

impl KernelFiles {
    /// Those of the node.
    ///
    /// # Errors
    /// Those of asking about the root, and of reading `/proc/self/mountinfo`.
    pub(crate) fn of_the_node() -> io::Result<Self> {
        match MountId::of(File::open("/")?).and_then(MountId::file_system) {
            Ok(_) => Ok(Self::Asked(RefCell::default())),
            Err(_) => List::read().map(Self::Listed),
        }
    }

    /// What a bind mount of `source`, with everything mounted below it, would show. Blocks as long as the file system there
    /// does.
    ///
    /// # Errors
    /// Those of `stat(2)`, `statmount(2)` and `listmount(2)`.
    pub(crate) fn shown_by(&self, source: &Path) -> io::Result<Shown> {
        // A missing source cannot be bound, and the OCI runtime reports that.
        let Ok(file) = OpenOptions::new().read(true).custom_flags(libc::O_PATH | libc::O_CLOEXEC).open(source) else {
            return Ok(Shown::Files);
        };
        let is_directory = file.metadata()?.is_dir();
        if let Some(kind) = self.kind_of(&file)?.filter(|kind| *kind != DEVICES || is_directory) {
            return Ok(Shown::Kernel(kind));
        }
        // Below a file is nothing, and what is mounted on it is what was opened.
        let is_above = || {
            let link = std::fs::read_link(format!("/proc/thread-self/fd/{}", file.as_raw_fd()));
            let real = link.unwrap_or_else(|_| source.into());
            self.is_above(&file, &real)
        };
        Ok(if is_directory && is_above()? { Shown::KernelBelow } else { Shown::Files })
    }

    /// The kind of the file system of an open file, if it is one of the kernel's own.
    fn kind_of(&self, file: &File) -> io::Result<Option<String>> {
        match self {
            Self::Asked(_) => Ok(Some(MountId::of(file)?.file_system()?).filter(|kind| is_kernels(kind))),
            Self::Listed(list) => Ok(mount_id(file).and_then(|id| list.kinds.get(&id)).cloned()),
        }
    }

    /// Whether a file system of the kernel is mounted below an open directory, whose path is `real`.
    fn is_above(&self, directory: &File, real: &Path) -> io::Result<bool> {
        let is_above = |points: &[PathBuf]| points.iter().any(|point| point.starts_with(real));
        match self {
            Self::Asked(known) => {
                let mount = MountId::of(directory)?;
                if let Some(points) = known.borrow().get(&mount) {
                    return Ok(is_above(points));
                }
                let points = points_below(mount)?;
                let found = is_above(&points);
                known.borrow_mut().insert(mount, points);
                Ok(found)
            }
            Self::Listed(list) => Ok(is_above(&list.points)),
        }
    }
}

/// Where file systems of the kernel are mounted below a mount.
fn points_below(mount: MountId) -> io::Result<Vec<PathBuf>> {
    let point = |below: MountId| match below.file_system() {
        Ok(kind) if is_kernels(&kind) => below.point().map(Some),
        other => other.map(|_| None),
    };
    let mut points = Vec::new();
    for below in mount.below()? {
        match point(below) {
            Ok(point) => points.extend(point),
            // It has been unmounted meanwhile.
            Err(error) if error.kind() == ErrorKind::NotFound => {}
            Err(error) => return Err(error),
        }
    }
    Ok(points)
}

impl List {
    fn read() -> io::Result<Self> {
        let mut found = Self::default();
        each_mount(|line| {
            found.add(line);
            ControlFlow::Continue(())
        })?;
        Ok(found)
    }

    fn add(&mut self, line: &str) {
        let Some((mount, file_system)) = line.split_once(" - ") else { return };
        let mut fields = mount.split(' ');
        let id = fields.next().and_then(|id| id.parse().ok());
        if let (Some(id), Some(point), Some(kind)) = (id, fields.nth(3), file_system.split(' ').next())
            && is_kernels(kind)
        {
            self.points.push(unescape(point));
            self.kinds.insert(id, kind.to_owned());
        }
    }
}

/// The id of the mount that an open file is on (proc_pid_fdinfo(5)).
fn mount_id(file: &File) -> Option<u64> {
    let text = std::fs::read_to_string(format!("/proc/thread-self/fdinfo/{}", file.as_raw_fd())).ok()?;
    text.lines().find_map(|line| line.strip_prefix("mnt_id:"))?.trim().parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_shows_the_kernel_is_known_also_through_a_link_or_a_bind() {
        let asked = KernelFiles::of_the_node().unwrap();
        let listed = KernelFiles::Listed(List::read().unwrap());
        let directory = tempfile::tempdir().unwrap();
        let link = directory.path().join("link");
        std::os::unix::fs::symlink("/proc/self", &link).unwrap();
        for (source, expected) in [
            (Path::new("/proc"), Shown::Kernel("proc".into())),
            (Path::new("/proc/1/mem"), Shown::Kernel("proc".into())),
            (&link, Shown::Kernel("proc".into())),
            (Path::new("/"), Shown::KernelBelow),
            (directory.path(), Shown::Files),
            (Path::new("/dev/null"), Shown::Files),
            (Path::new("/no/such/place"), Shown::Files),
        ] {
            for node in [&asked, &listed] {
                assert_eq!(node.shown_by(source).unwrap(), expected, "{} {node:?}", source.display());
            }
        }
        for node in [asked, listed] {
            assert!(matches!(node.shown_by(Path::new("/sys")).unwrap(), Shown::Kernel(_)));
        }
    }

    #[test]
    fn mounts_are_read_as_the_kernel_writes_them() {
        let mut read = List::default();
        for line in [
            "23 1 254:0 / / rw - ext4 /dev/vda rw",
            "31 23 0:28 / /odd\\040name/proc rw shared:1 master:2 - proc proc rw",
            "garbage",
            "x y z - proc",
            "1 2 - proc",
        ] {
            read.add(line);
        }
        assert_eq!(read.points, [PathBuf::from("/odd name/proc")]);
        assert_eq!(read.kinds, HashMap::from([(31, "proc".to_owned())]));
    }
}
