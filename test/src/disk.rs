//! A file system of its own, in memory.

use std::path::Path;

use nix::mount::{MntFlags, MsFlags, mount, umount2};

/// A small disk in memory. It is gone when this is dropped.
pub struct Disk {
    directory: tempfile::TempDir,
}

impl Disk {
    /// A disk of this size, as tmpfs(5) writes it, whose root has this mode.
    pub fn new(size: &str, mode: &str) -> Self {
        let directory = tempfile::tempdir().expect("there is room for a directory");
        let options = format!("size={size},mode={mode}");
        mount(Some("tmpfs"), directory.path(), Some("tmpfs"), MsFlags::empty(), Some(options.as_str()))
            .expect("root can mount");
        Self { directory }
    }

    /// Where it is mounted.
    pub fn path(&self) -> &Path {
        self.directory.path()
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        // It may be gone already, and a second panic would hide the first.
        let _unmounted = umount2(self.path(), MntFlags::MNT_DETACH);
    }
}
