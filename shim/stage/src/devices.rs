//! What fills a container's `/dev`, and the kernel's parameters of its namespaces.

use std::io::{self, Write};
use std::path::Path;

use rustix::fs::{
    AtFlags, FileType, Gid, Mode, OFlags, PROC_SUPER_MAGIC, Uid, chownat, fstat, fstatfs, makedev, mknodat, openat,
    symlinkat, unlinkat,
};
use rustix::io::Errno;
use skiff_protocol::launch::{Device, Link};

use crate::root::{Root, open_to_write, proc_path};

/// Makes a device node; one that is there already stays as it is.
pub(crate) fn make(root: &Root, device: &Device) -> io::Result<()> {
    let (parent, name) = root.parent_of(&device.path)?;
    let kind = if device.is_block { FileType::BlockDevice } else { FileType::CharacterDevice };
    let (major, minor) = device.number;
    match mknodat(&parent, name, kind, Mode::empty(), makedev(major, minor)) {
        Err(Errno::EXIST) => return Ok(()),
        made => made?,
    }
    let made = openat(&parent, name, OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC, Mode::empty())?;
    let status = fstat(&made)?;
    if FileType::from_raw_mode(status.st_mode) != kind || status.st_rdev != makedev(major, minor) {
        return Err(io::Error::other("somebody has put something else in its place"));
    }
    let (user, group) = (Uid::from_raw(device.owner.0), Gid::from_raw(device.owner.1));
    chownat(&made, c"", Some(user), Some(group), AtFlags::EMPTY_PATH)?;
    let mode = std::os::unix::fs::PermissionsExt::from_mode(device.mode);
    std::fs::set_permissions(proc_path(&made), mode)
}

/// Makes a symbolic link.
pub(crate) fn link(root: &Root, link: &Link) -> io::Result<()> {
    let (parent, name) = root.parent_of(&link.path)?;
    if link.replaces {
        match unlinkat(&parent, name, AtFlags::empty()) {
            Err(Errno::NOENT) => {}
            done => done?,
        }
    }
    match symlinkat(&link.target, &parent, name) {
        Err(Errno::EXIST) if !link.replaces => Ok(()),
        made => Ok(made?),
    }
}

/// Sets the parameter `name` of the kernel, through the container's own view of it.
pub(crate) fn set_sysctl(root: &Root, name: &str, value: &str) -> io::Result<()> {
    let found = root.find(&Path::new("/proc/sys").join(name))?;
    if fstatfs(&found)?.f_type != PROC_SUPER_MAGIC {
        return Err(io::Error::other("the container's `/proc/sys` is not the kernel's"));
    }
    open_to_write(&found)?.write_all(value.as_bytes())
}
