//! Mounts the root file system of a container at `rootfs` in its bundle, and unmounts it.

use std::io;
use std::path::{Path, PathBuf};

use containerd_shim::mount::{mount_rootfs, umount_recursive};
use nix::errno::Errno;
use nix::mount::{MntFlags, umount2};

use super::idmap::{self, Idmapped};
use crate::error::{Context, Error, Result};
use crate::request::RootfsMount;

/// A mounted root file system; dropping it unmounts it.
#[derive(Debug)]
pub(crate) struct Rootfs {
    path: PathBuf,
    /// Whether the shim mounted it. Somebody else's directory, with its mounts, is left alone.
    is_ours: bool,
}

impl Rootfs {
    /// Mounts containerd's `mounts` in order at `path`. Without mounts the directory is used as it is.
    ///
    /// Blocks, and may change the thread's working directory: call it on a separate thread.
    ///
    /// # Errors
    /// `Invalid` when there is neither a mount nor anything in the directory.
    pub(crate) fn mount(path: PathBuf, mounts: &[RootfsMount]) -> Result<Self> {
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

    fn add(&self, mount: &RootfsMount) -> io::Result<()> {
        let idmapped = idmap::prepare(mount, &scratch_of(&self.path))?;
        let options = idmapped.as_ref().map_or(&mount.options[..], Idmapped::options);
        mount_rootfs(Some(&mount.kind), Some(&mount.source), options, &self.path).map_err(reason)?;
        idmapped.map_or(Ok(()), |idmapped| idmapped.finish(&self.path))
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

/// The kernel's error, without the library's wording around it.
fn reason(error: containerd_shim::Error) -> io::Error {
    match error {
        containerd_shim::Error::MountError { err, .. } => err.into(),
        other => io::Error::other(other),
    }
}

/// The directory in which a root file system is prepared before it is mounted at `path`.
fn scratch_of(path: &Path) -> PathBuf {
    path.with_extension("idmapped")
}

/// Removes every mount at `path`, with what is mounted below it, and what a shim left beside it if it was killed while mounting.
pub(crate) fn unmount(path: &Path) -> io::Result<()> {
    let scratch = scratch_of(path);
    if scratch.exists() {
        umount_recursive(scratch.to_str(), MntFlags::MNT_DETACH.bits()).map_err(io::Error::other)?;
    }
    detach(path)
}

/// Removes every mount at `path`. What is mounted below a mount goes with it; where nothing is mounted, nothing is done.
pub(super) fn detach(path: &Path) -> io::Result<()> {
    loop {
        match umount2(path, MntFlags::MNT_DETACH | MntFlags::UMOUNT_NOFOLLOW) {
            Ok(()) => {}
            Err(Errno::EINVAL | Errno::ENOENT) => return Ok(()),
            Err(error) => return Err(error.into()),
        }
    }
}
