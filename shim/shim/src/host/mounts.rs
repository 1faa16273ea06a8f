//! The root file system of a container: mounted at `rootfs` in its bundle, and taken away again.

use std::io;
use std::path::{Path, PathBuf};

use containerd_shim::mount::{mount_rootfs, umount_recursive};
use containerd_shim::protos::types::mount::Mount;
use nix::mount::MntFlags;

use crate::error::{Context, Result};

/// A mounted root file system; dropping it takes the mounts away.
#[derive(Debug)]
pub(crate) struct Rootfs {
    path: PathBuf,
}

impl Rootfs {
    /// Mounts what containerd sent, in order, at `rootfs` in the bundle. Without mounts the directory is used as it is.
    ///
    /// Blocks; the thread's working directory may change: call it on a thread of its own.
    pub(crate) fn mount(bundle: &Path, mounts: &[Mount]) -> Result<Self> {
        let path = bundle.join("rootfs");
        if !mounts.is_empty() {
            std::fs::create_dir_all(&path).doing(|| format!("could not make `{}`", path.display()))?;
        }
        let rootfs = Self { path };
        for mount in mounts {
            mount_rootfs(Some(&mount.type_), Some(&mount.source), &mount.options, &rootfs.path)
                .doing(|| format!("could not mount the root file system of type `{}`", mount.type_))?;
        }
        Ok(rootfs)
    }

    pub(crate) fn path(&self) -> &Path {
        &self.path
    }
}

impl Drop for Rootfs {
    fn drop(&mut self) {
        if let Err(error) = unmount(&self.path) {
            log::error!("could not unmount `{}`: {error}", self.path.display());
        }
    }
}

/// Takes away every mount at or below `path`.
pub(crate) fn unmount(path: &Path) -> io::Result<()> {
    umount_recursive(path.to_str(), MntFlags::MNT_DETACH.bits()).map_err(io::Error::other)
}
