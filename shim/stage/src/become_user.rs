//! How a process becomes its user: limits, working directory, groups, user and capabilities.

use std::fs::File;
use std::io::{self, BufRead, BufReader, Read};
use std::path::Path;

use rustix::process::{Gid, Resource as Kernels, Rlimit, Uid, setrlimit};
use rustix::thread::{
    CapabilitySet, CapabilitySets, clear_ambient_capability_set, configure_capability_in_ambient_set,
    remove_capability_from_bounding_set, set_capabilities, set_keep_capabilities, set_thread_groups,
    set_thread_res_gid, set_thread_res_uid,
};
use skiff_protocol::launch::{Identity, Limit, Resource};

use crate::streams;

/// The most that is read of a container's list of users, in bytes.
const USERS_BYTES_MAX: u64 = 1 << 20;

/// Sets a limit.
pub(crate) fn limit(limit: Limit) -> io::Result<()> {
    let known = |value: u64| (value != u64::MAX).then_some(value);
    Ok(setrlimit(kernels(limit.resource), Rlimit { current: known(limit.soft), maximum: known(limit.hard) })?)
}

fn kernels(resource: Resource) -> Kernels {
    match resource {
        Resource::As => Kernels::As,
        Resource::Core => Kernels::Core,
        Resource::Cpu => Kernels::Cpu,
        Resource::Data => Kernels::Data,
        Resource::Fsize => Kernels::Fsize,
        Resource::Locks => Kernels::Locks,
        Resource::Memlock => Kernels::Memlock,
        Resource::Msgqueue => Kernels::Msgqueue,
        Resource::Nice => Kernels::Nice,
        Resource::Nofile => Kernels::Nofile,
        Resource::Nproc => Kernels::Nproc,
        Resource::Rss => Kernels::Rss,
        Resource::Rtprio => Kernels::Rtprio,
        Resource::Rttime => Kernels::Rttime,
        Resource::Sigpending => Kernels::Sigpending,
        Resource::Stack => Kernels::Stack,
    }
}

/// Becomes who `identity` describes.
pub(crate) fn become_user(identity: &Identity) -> io::Result<()> {
    let Identity { user, group, groups, capabilities, directory } = identity;
    streams::give_to(*user)?;
    // Root may enter directories that the user may not, and the other way round.
    let is_there = match nix::unistd::chdir(directory.as_path()) {
        Err(nix::errno::Errno::EACCES | nix::errno::Errno::EPERM) => false,
        entered => entered.map(|()| true)?,
    };
    drop_bounds(capabilities.bounding)?;
    set_keep_capabilities(true)?;
    let groups: Vec<Gid> = groups.iter().copied().map(Gid::from_raw).collect();
    set_thread_groups(&groups)?;
    let (group, user) = (Gid::from_raw(*group), Uid::from_raw(*user));
    set_thread_res_gid(group, group, group)?;
    set_thread_res_uid(user, user, user)?;
    if !is_there {
        nix::unistd::chdir(directory.as_path())?;
    }
    // The kernel has no path for a directory that is not below the root.
    if !std::env::current_dir()?.is_absolute() {
        return Err(io::Error::other("the working directory is outside of the container"));
    }
    set_keep_capabilities(false)?;
    let set = CapabilitySet::from_bits_retain;
    set_capabilities(
        None,
        CapabilitySets {
            effective: set(capabilities.effective),
            permitted: set(capabilities.permitted),
            inheritable: set(capabilities.inheritable),
        },
    )?;
    clear_ambient_capability_set()?;
    for bit in (0..u64::BITS).map(|number| 1 << number).filter(|bit| capabilities.ambient & bit != 0) {
        configure_capability_in_ambient_set(set(bit), true)?;
    }
    Ok(())
}

/// Drops every capability of this kernel that is not in `kept` from the bounding set.
fn drop_bounds(kept: u64) -> io::Result<()> {
    for bit in (0..u64::BITS).map(|number| 1 << number).filter(|bit| kept & bit == 0) {
        match remove_capability_from_bounding_set(CapabilitySet::from_bits_retain(bit)) {
            // The kernel does not know this one.
            Ok(()) | Err(rustix::io::Errno::INVAL) => {}
            Err(error) => return Err(error.into()),
        }
    }
    Ok(())
}

/// The variable `HOME` for `user`: the directory that the container's list of users names.
pub(crate) fn home_of(user: u32, users: &Path) -> String {
    let home = find_home(user, users).ok().flatten();
    format!("HOME={}", home.unwrap_or_else(|| "/".into()))
}

fn find_home(user: u32, users: &Path) -> io::Result<Option<String>> {
    use std::os::unix::fs::OpenOptionsExt;
    // Whatever else an image has there is neither waited for nor read.
    let file = File::options().read(true).custom_flags(nix::libc::O_NONBLOCK).open(users)?;
    if !file.metadata()?.is_file() {
        return Ok(None);
    }
    for line in BufReader::new(file.take(USERS_BYTES_MAX)).lines() {
        let line = line?;
        let mut fields = line.split(':').skip(2);
        if fields.next().and_then(|number| number.parse().ok()) == Some(user) {
            return Ok(fields.nth(2).filter(|home| !home.is_empty()).map(str::to_owned));
        }
    }
    Ok(None)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_home_is_found_by_the_users_number() {
        let directory = tempfile::tempdir().unwrap();
        let users = directory.path().join("passwd");
        assert_eq!(home_of(0, &users), "HOME=/");
        std::fs::write(&users, "root:x:0:0:root:/root:/bin/sh\nshort:x:7\nempty:x:8:8:::\na:x:9:9::/home/a:\n")
            .unwrap();
        for (user, home) in [(0, "/root"), (7, "/"), (8, "/"), (9, "/home/a"), (10, "/")] {
            assert_eq!(home_of(user, &users), format!("HOME={home}"), "{user}");
        }
        assert_eq!(home_of(0, directory.path()), "HOME=/", "a directory");
    }
}
