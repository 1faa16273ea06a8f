//! Which directories of the node show the kernel instead of files. Write access to `/proc/PID/mem`, for example, lets a
//! guest inject native code.

use std::collections::HashMap;
use std::fs::{File, OpenOptions};
use std::io;
use std::ops::ControlFlow;
use std::os::fd::AsRawFd;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use skiff_linux::mounts::{each_mount, unescape};

use crate::spec::wasm::{DEVICES, Shown, is_kernels};

/// What the shim needs to know about the mounts of the node.
#[derive(Debug, Default)]
pub(crate) struct KernelFiles {
    /// The kinds of the mounts of the kernel's own file systems, by their ids.
    kinds: HashMap<u64, String>,
    /// Where they are mounted.
    points: Vec<PathBuf>,
}

impl KernelFiles {
    /// Reads the mounts of the node.
    ///
    /// # Errors
    /// Those of reading `/proc/self/mountinfo`.
    pub(crate) fn of_the_node() -> io::Result<Self> {
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

    /// What a bind mount of `source`, with everything mounted below it, would show. Blocks as long as the file system there
    /// does.
    pub(crate) fn shown_by(&self, source: &Path) -> Shown {
        // A missing source cannot be bound, and the OCI runtime reports that.
        let Ok(file) = OpenOptions::new().read(true).custom_flags(libc::O_PATH | libc::O_CLOEXEC).open(source) else {
            return Shown::Files;
        };
        let kind = mount_id(&file).and_then(|id| self.kinds.get(&id));
        let is_directory = || file.metadata().is_ok_and(|meta| meta.is_dir());
        if let Some(kind) = kind.filter(|kind| *kind != DEVICES || is_directory()) {
            return Shown::Kernel(kind.clone());
        }
        let real =
            std::fs::read_link(format!("/proc/thread-self/fd/{}", file.as_raw_fd())).unwrap_or_else(|_| source.into());
        if self.points.iter().any(|point| point.starts_with(&real)) { Shown::KernelBelow } else { Shown::Files }
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
        let node = KernelFiles::of_the_node().unwrap();
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
            assert_eq!(node.shown_by(source), expected, "{}", source.display());
        }
        assert!(matches!(node.shown_by(Path::new("/sys")), Shown::Kernel(_)));
    }

    #[test]
    fn mounts_are_read_as_the_kernel_writes_them() {
        let mut read = KernelFiles::default();
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
