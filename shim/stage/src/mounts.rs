//! The mounts of a container, made below its root before it is the process's own, and the change to that root.

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};

use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::unistd::{chdir, fchdir, pivot_root};
use rustix::fs::{Mode, OFlags, fstat, fstatvfs, open};
use skiff_protocol::launch::{BIND, Mount};

use crate::root::{Missing, Root, proc_path};

const NONE: Option<&str> = None;
/// Where the kernel shows itself, and lets itself be changed.
const PROC: &str = "/proc";

/// Keeps the mounts of this namespace from propagating to the node, and makes the root that is mounted at `path` a mount of its
/// own.
pub(crate) fn begin(path: &Path, propagation: u64) -> io::Result<Root> {
    mount(NONE, "/", NONE, MsFlags::from_bits_retain(propagation), NONE)?;
    // Nothing propagates from a mount that is neither shared nor a slave's.
    make_private_above(path, propagation)?;
    mount(Some(path), path, Some(BIND), MsFlags::MS_BIND | MsFlags::MS_REC, NONE)?;
    Root::open(path)
}

/// Makes the mount that `path` is in private, or a slave if all are.
fn make_private_above(path: &Path, propagation: u64) -> io::Result<()> {
    let is_slave = MsFlags::from_bits_retain(propagation).contains(MsFlags::MS_SLAVE);
    let flags = if is_slave { MsFlags::MS_SLAVE } else { MsFlags::MS_PRIVATE };
    for above in path.ancestors() {
        match mount(NONE, above, NONE, flags, NONE) {
            Err(nix::errno::Errno::EINVAL) => {}
            done => return Ok(done?),
        }
    }
    Err(io::ErrorKind::NotFound.into())
}

/// Mounts `wanted`.
pub(crate) fn make(root: &Root, wanted: &Mount) -> io::Result<()> {
    let (target, data) = mount_point(root, wanted)?;
    let place = root.place_of(&target)?;
    check(wanted, &place)?;
    let data = (!data.is_empty()).then_some(data.as_str());
    let flags = MsFlags::from_bits_retain(wanted.flags);
    mount(Some(wanted.source.as_str()), &proc_path(&target), Some(wanted.kind.as_str()), flags, data)?;
    // What was found before is below the new mount.
    let mounted = again(root, &place)?;
    for flags in wanted.propagation.iter().copied().chain(wanted.then) {
        mount(NONE, &proc_path(&mounted), NONE, MsFlags::from_bits_retain(flags), NONE)?;
    }
    Ok(())
}

/// Where `wanted` is mounted, made if there is nothing, and the options of its file system.
fn mount_point(root: &Root, wanted: &Mount) -> io::Result<(OwnedFd, String)> {
    if let Some(there) = root.find_if_there(&wanted.target)? {
        // A file system in memory has the mode of the directory that it hides, unless it is said otherwise.
        let data = if wanted.kind == "tmpfs" {
            let mode = fstat(&there)?.st_mode & 0o7777;
            format!("mode={mode:04o},{}", wanted.data).trim_end_matches(',').to_owned()
        } else {
            wanted.data.clone()
        };
        return Ok((there, data));
    }
    let is_file = wanted.kind == BIND && !std::fs::metadata(&wanted.source)?.is_dir();
    let missing = if is_file { Missing::File } else { Missing::Directory };
    Ok((root.find_or_make(&wanted.target, missing)?, wanted.data.clone()))
}

/// Refuses a place where the mount would hide the kernel's own files, or where links have led the kernel's files astray.
fn check(wanted: &Mount, place: &Path) -> io::Result<()> {
    let is_kernels = wanted.kind == "proc" || wanted.kind == "sysfs";
    let is_refused = if is_kernels { place != wanted.target } else { place.starts_with(PROC) };
    if is_refused || place == Path::new("/") {
        return Err(io::Error::other(format!("`{}` is not a place for it", place.display())));
    }
    Ok(())
}

/// What is at `place` now.
fn again(root: &Root, place: &Path) -> io::Result<OwnedFd> {
    let found = root.find(place)?;
    if root.place_of(&found)? == place { Ok(found) } else { Err(io::Error::other("a mount point has moved")) }
}

/// Sets the flags of the mount at `path`.
pub(crate) fn set_flags(root: &Root, path: &Path, flags: u64) -> io::Result<()> {
    let found = root.find(path)?;
    Ok(mount(NONE, &proc_path(&found), NONE, MsFlags::from_bits_retain(flags), NONE)?)
}

/// Mounts what is at `path` over itself, to be read only.
pub(crate) fn make_read_only(root: &Root, path: &Path) -> io::Result<()> {
    let Some(found) = root.find_if_there(path)? else { return Ok(()) };
    let place = root.place_of(&found)?;
    bind(&proc_path(&found), &found, MsFlags::MS_REC)?;
    let mounted = again(root, &place)?;
    let kept = MsFlags::MS_NOSUID | MsFlags::MS_NODEV | MsFlags::MS_NOEXEC;
    let has = MsFlags::from_bits_retain(fstatvfs(&mounted)?.f_flag.bits()) & kept;
    let flags = has | MsFlags::MS_BIND | MsFlags::MS_REMOUNT | MsFlags::MS_RDONLY;
    Ok(mount(NONE, &proc_path(&mounted), NONE, flags, NONE)?)
}

fn bind(source: &Path, target: &impl AsFd, depth: MsFlags) -> io::Result<()> {
    Ok(mount(Some(source), &proc_path(target), NONE, MsFlags::MS_BIND | depth, NONE)?)
}

/// Hides what is at `paths`.
pub(crate) fn mask(root: &Root, paths: &[PathBuf]) -> io::Result<()> {
    if paths.is_empty() {
        return Ok(());
    }
    let null = root.null()?;
    let (mut masked, mut empty) = (Vec::new(), None);
    for path in paths {
        let Some(found) = root.find_if_there(path)? else { continue };
        if masked.contains(&path) {
            continue;
        }
        masked.push(path);
        if !rustix::fs::FileType::from_raw_mode(fstat(&found)?.st_mode).is_dir() {
            bind(&proc_path(&null), &found, MsFlags::empty())?;
        } else if let Some(empty) = &empty {
            bind(&proc_path(empty), &found, MsFlags::empty())?;
        } else {
            let place = root.place_of(&found)?;
            let one = Some("nr_blocks=1,nr_inodes=1");
            mount(Some("tmpfs"), &proc_path(&found), Some("tmpfs"), MsFlags::MS_RDONLY, one)?;
            empty = Some(again(root, &place)?);
        }
    }
    Ok(())
}

/// Makes the container's root the only one.
pub(crate) fn pivot(root: &Root) -> io::Result<()> {
    let old = open("/", OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())?;
    fchdir(root.directory())?;
    pivot_root(".", ".")?;
    fchdir(&old)?;
    // The end of a mount here must not be the end of one elsewhere.
    mount(NONE, ".", NONE, MsFlags::MS_SLAVE | MsFlags::MS_REC, NONE)?;
    umount2(".", MntFlags::MNT_DETACH)?;
    Ok(chdir("/")?)
}
