//! The root file system of a container: mounted at `rootfs` in its bundle, and taken away again.

use std::io;
use std::path::{Path, PathBuf};

use containerd_shim::mount::{mount_rootfs, umount_recursive};
use containerd_shim::protos::types::mount::Mount;
use nix::mount::MntFlags;

use super::idmap::{self, Idmapped};
use crate::error::{Context, Error, Result};

/// A mounted root file system; dropping it takes the mounts away.
#[derive(Debug)]
pub(crate) struct Rootfs {
    path: PathBuf,
    /// Somebody else's directory, with whatever is mounted in it, is left as it is.
    is_ours: bool,
}

impl Rootfs {
    /// Mounts what containerd sent, in order, at `path`. Without mounts the directory is used as it is.
    ///
    /// Blocks; the thread's working directory may change: call it on a thread of its own.
    ///
    /// # Errors
    /// `Invalid` when there is neither a mount nor anything in the directory.
    pub(crate) fn mount(path: PathBuf, mounts: &[Mount]) -> Result<Self> {
        if mounts.is_empty() && std::fs::read_dir(&path).map_or(true, |mut entries| entries.next().is_none()) {
            return Err(Error::invalid(format!(
                "the container has no root file system: `{}` is empty",
                path.display()
            )));
        }
        if !mounts.is_empty() {
            std::fs::create_dir_all(&path).doing(|| format!("cannot make `{}`", path.display()))?;
        }
        let rootfs = Self { path, is_ours: !mounts.is_empty() };
        for mount in mounts {
            rootfs.add(mount).doing(|| format!("cannot mount `{}` as the root file system", mount.source))?;
        }
        Ok(rootfs)
    }

    fn add(&self, mount: &Mount) -> io::Result<()> {
        let idmapped = idmap::prepare(mount, &scratch_of(&self.path))?;
        let options = idmapped.as_ref().map_or(&mount.options[..], Idmapped::options);
        mount_rootfs(Some(&mount.type_), Some(&mount.source), options, &self.path).map_err(reason)?;
        idmapped.map_or(Ok(()), |idmapped| idmapped.finish(&self.path))
    }

    pub(crate) fn path(&self) -> &Path {
        &self.path
    }
}

impl Drop for Rootfs {
    fn drop(&mut self) {
        if self.is_ours
            && let Err(error) = unmount(&self.path)
        {
            log::error!("cannot unmount `{}`: {error}", self.path.display());
        }
    }
}

/// The kernel's reason, without the library's words around it.
fn reason(error: containerd_shim::Error) -> io::Error {
    match error {
        containerd_shim::Error::MountError { err, .. } => err.into(),
        other => io::Error::other(other),
    }
}

/// Where a root file system is prepared before it is mounted at `path`.
fn scratch_of(path: &Path) -> PathBuf {
    path.with_extension("idmapped")
}

/// Takes away every mount at or below `path`, and what a shim that was killed while it mounted left beside it.
pub(crate) fn unmount(path: &Path) -> io::Result<()> {
    let scratch = scratch_of(path);
    if scratch.exists() {
        umount_recursive(scratch.to_str(), MntFlags::MNT_DETACH.bits()).map_err(io::Error::other)?;
    }
    umount_recursive(path.to_str(), MntFlags::MNT_DETACH.bits()).map_err(io::Error::other)
}
