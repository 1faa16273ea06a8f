//! Which directories of the node show the kernel instead of files. Write access to `/proc/PID/mem`, for example, lets a
//! guest inject native code.

use std::cell::OnceCell;
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

/// What the shim needs to know about the mounts of the node. The list of all is read only if the kernel does not say enough of
/// one: it grows with every pod.
#[derive(Debug, Default)]
pub(crate) struct KernelFiles {
    list: OnceCell<List>,
}

/// The mounts of the kernel's own file systems.
#[derive(Debug, Default)]
struct List {
    /// Their kinds, by their ids.
    kinds: HashMap<u64, String>,
    /// Where they are mounted.
    points: Vec<PathBuf>,
}

impl KernelFiles {
    /// What a bind mount of `source`, with everything mounted below it, would show. Blocks as long as the file system there
    /// does.
    ///
    /// # Errors
    /// Those of looking at `source`, and of reading `/proc/self/mountinfo`.
    pub(crate) fn shown_by(&self, source: &Path) -> io::Result<Shown> {
        self.shown(source, |file| MountId::of(file).ok())
    }

    /// `mount_of` finds the mount of an open file if the kernel can be asked about it.
    fn shown(&self, source: &Path, mount_of: impl Fn(&File) -> Option<MountId>) -> io::Result<Shown> {
        let file = match OpenOptions::new().read(true).custom_flags(libc::O_PATH | libc::O_CLOEXEC).open(source) {
            Ok(file) => file,
            // It cannot be bound, and the OCI runtime reports that.
            Err(error) if error.kind() == ErrorKind::NotFound => return Ok(Shown::Files),
            Err(error) => return Err(error),
        };
        let mount = mount_of(&file);
        let kind = match mount.and_then(|mount| mount.file_system().ok()) {
            Some(kind) => Some(kind).filter(|kind| is_kernels(kind)),
            None => self.list()?.kinds.get(&listed_id(&file)?).cloned(),
        };
        // Below a file is nothing, and what is mounted on it is what was opened.
        let is_directory = file.metadata()?.is_dir();
        if let Some(kind) = kind.filter(|kind| *kind != DEVICES || is_directory) {
            return Ok(Shown::Kernel(kind));
        }
        if !is_directory || mount.is_some_and(|mount| mount.has_mounts_below().is_ok_and(|has| !has)) {
            return Ok(Shown::Files);
        }
        let real = std::fs::read_link(format!("/proc/thread-self/fd/{}", file.as_raw_fd()))?;
        let is_above = self.list()?.points.iter().any(|point| point.starts_with(&real));
        Ok(if is_above { Shown::KernelBelow } else { Shown::Files })
    }

    fn list(&self) -> io::Result<&List> {
        if let Some(list) = self.list.get() {
            return Ok(list);
        }
        let list = List::read()?;
        Ok(self.list.get_or_init(|| list))
    }
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

/// The id that `/proc/self/mountinfo` has for the mount through which `file` was opened (proc_pid_fdinfo(5)).
///
/// # Errors
/// Those of reading the thread's `fdinfo`; an error if it has no such id.
pub(crate) fn listed_id(file: &File) -> io::Result<u64> {
    let text = std::fs::read_to_string(format!("/proc/thread-self/fdinfo/{}", file.as_raw_fd()))?;
    let id = text.lines().find_map(|line| line.strip_prefix("mnt_id:")?.trim().parse().ok());
    id.ok_or_else(|| io::Error::other("the kernel does not report through which mount a file was opened"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_shows_the_kernel_is_known_also_through_a_link_or_a_bind() {
        let (asking, listing) = (KernelFiles::default(), KernelFiles::default());
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
            let name = source.display();
            assert_eq!(asking.shown_by(source).unwrap(), expected, "{name}");
            assert_eq!(listing.shown(source, |_| None).unwrap(), expected, "{name}, before Linux 6.8");
        }
        let sys = Path::new("/sys");
        for shown in [asking.shown_by(sys), listing.shown(sys, |_| None)] {
            assert!(matches!(shown.unwrap(), Shown::Kernel(_)));
        }
        assert!(asking.shown_by(Path::new("/dev/null/x")).is_err(), "what cannot be looked at is not shown");
    }

    #[test]
    fn the_list_is_read_only_for_a_directory_with_mounts_below_its_mount() {
        if MountId::of(File::open("/proc").unwrap()).is_err() {
            return println!("skipped: Linux is older than 6.8");
        }
        let node = KernelFiles::default();
        for path in ["/proc/self", "/dev/null", "/dev/shm", "/etc/passwd", "/no/such/place"] {
            node.shown_by(Path::new(path)).unwrap();
            assert!(node.list.get().is_none(), "{path}");
        }
        node.shown_by(Path::new("/")).unwrap();
        assert!(node.list.get().is_some());
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
