//! Steps by which a process permanently gives up what it does not need.

use std::io;

use nix::errno::Errno;
use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::unistd::{Gid, Uid, chdir, chroot, pivot_root, setgroups, setresgid, setresuid};
use rustix::thread::{
    CapabilitySet, CapabilitySets, remove_capability_from_bounding_set, set_capabilities, set_no_new_privs,
};

/// The user and group `nobody`, which own nothing.
const NOBODY: u32 = 65534;
const NONE: Option<&str> = None;

/// Makes an empty read-only file system the root, and leaves nothing else in the calling process's mount namespace, which
/// must be its own. Lists of mounts show it as `name`.
///
/// # Errors
/// Those of the mount calls.
pub fn enter_empty_root(name: &str) -> io::Result<()> {
    make_mounts_private()?;
    // Every node has the directory `/proc`; what was mounted there is hidden from here on.
    let flags = MsFlags::MS_RDONLY | MsFlags::MS_NOSUID | MsFlags::MS_NODEV | MsFlags::MS_NOEXEC;
    mount(Some(name), "/proc", Some("tmpfs"), flags, Some("size=4k,nr_inodes=1,mode=0555"))?;
    make_root("/proc")
}

/// Keeps later mounts in this mount namespace from propagating to any other.
///
/// # Errors
/// Those of `mount(2)`.
pub fn make_mounts_private() -> io::Result<()> {
    Ok(mount(NONE, "/", NONE, MsFlags::MS_REC | MsFlags::MS_PRIVATE, NONE)?)
}

/// Makes the file system mounted at `place` the root, and removes everything else from this mount namespace.
///
/// # Errors
/// Those of the mount calls.
pub fn make_root(place: &str) -> io::Result<()> {
    chdir(place)?;
    match pivot_root(".", ".") {
        Ok(()) => umount2(".", MntFlags::MNT_DETACH)?,
        // `pivot_root` does not work on a node that runs from its initial RAM file system.
        Err(Errno::EINVAL) => {
            mount(Some("."), "/", NONE, MsFlags::MS_MOVE, NONE)?;
            chroot(".")?;
        }
        Err(error) => return Err(error.into()),
    }
    Ok(chdir("/")?)
}

/// Becomes `nobody`, without capabilities or a way to gain one.
///
/// # Errors
/// Those of the system calls, which need the capabilities that they give up.
pub fn become_nobody() -> io::Result<()> {
    drop_capability_bounds()?;
    set_no_new_privs(true)?;
    setgroups(&[])?;
    let (user, group) = (Uid::from_raw(NOBODY), Gid::from_raw(NOBODY));
    setresgid(group, group, group)?;
    // Leaving user 0 for good also clears the permitted, effective and ambient capabilities.
    Ok(setresuid(user, user, user)?)
}

/// Gives up every capability but stays the same user; root gets none back without an `execve(2)`.
///
/// # Errors
/// Those of the system calls.
pub fn drop_capabilities() -> io::Result<()> {
    drop_capability_bounds()?;
    let none = CapabilitySet::empty();
    Ok(set_capabilities(None, CapabilitySets { effective: none, permitted: none, inheritable: none })?)
}

/// Drops every capability that this kernel knows from the bounding set.
fn drop_capability_bounds() -> io::Result<()> {
    for number in 0..64 {
        match remove_capability_from_bounding_set(CapabilitySet::from_bits_retain(1 << number)) {
            Ok(()) => {}
            // The kernel does not know this capability or any after it.
            Err(rustix::io::Errno::INVAL) => break,
            Err(error) => return Err(error.into()),
        }
    }
    Ok(())
}
