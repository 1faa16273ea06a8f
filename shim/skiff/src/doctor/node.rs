//! Does the kernel have what the three programs use?

use std::fs;
use std::path::Path;

use nix::errno::Errno;

use super::Check;

const CGROUPS: &str = "/sys/fs/cgroup";
const CONTROLLERS: [&str; 3] = ["cpu", "memory", "pids"];

/// The system calls that no container starts without, and the kernel that brought them.
const SYSTEM_CALLS: &[(&str, libc::c_long, &str)] = &[
    ("close_range", libc::SYS_close_range, "5.9"),
    ("memfd_create", libc::SYS_memfd_create, "3.17"),
    ("mount_setattr", libc::SYS_mount_setattr, "5.12"),
    ("move_mount", libc::SYS_move_mount, "5.2"),
    ("open_tree", libc::SYS_open_tree, "5.2"),
    ("openat2", libc::SYS_openat2, "5.6"),
    ("pidfd_open", libc::SYS_pidfd_open, "5.3"),
    ("seccomp", libc::SYS_seccomp, "3.17"),
];

/// The first version of Landlock with which files can be moved between directories (Linux 5.19); the engine uses no older one.
const LANDLOCK_MIN: i64 = 2;

pub(super) fn check_cgroups() -> Check {
    const NAME: &str = "cgroups";
    let mount = Path::new(CGROUPS);
    let unified = fs::read_to_string(mount.join("cgroup.controllers"));
    let version = if unified.is_ok() { "version 2" } else { "version 1" };
    let (present, missing): (Vec<_>, Vec<_>) = CONTROLLERS.into_iter().partition(|controller| match &unified {
        Ok(controllers) => controllers.split_whitespace().any(|word| word == *controller),
        Err(_) => mount.join(controller).join("cgroup.procs").exists(),
    });
    match missing.as_slice() {
        [] => Check::ok(NAME, format!("{version} with {}", present.join(", "))),
        missing if present.is_empty() => {
            Check::fail(NAME, format!("none of {} at `{CGROUPS}`", missing.join(", ")), "mount the control groups")
        }
        missing => {
            let advice = "boot with these controllers enabled: limits of their kind do not hold without";
            Check::warn(NAME, format!("{version} without {}", missing.join(", ")), advice)
        }
    }
}

pub(super) fn check_system_calls() -> Check {
    const NAME: &str = "kernel";
    let missing = SYSTEM_CALLS.iter().filter(|(_, number, _)| probe(*number) == Errno::ENOSYS);
    let missing: Vec<_> = missing.map(|(name, _, since)| format!("{name} (Linux {since})")).collect();
    if missing.is_empty() {
        let names: Vec<_> = SYSTEM_CALLS.iter().map(|(name, _, _)| *name).collect();
        return Check::ok(NAME, names.join(", "));
    }
    Check::fail(NAME, format!("without {}", missing.join(", ")), "run Linux 5.12 or newer")
}

pub(super) fn check_landlock() -> Check {
    landlock(landlock_version())
}

/// What the engine makes of this version of Landlock; 0 stands for none.
fn landlock(version: i64) -> Check {
    const NAME: &str = "landlock";
    let lost = "until then a guest that breaks out of the engine is kept from the container's own files by the container's mounts \
                alone; containers start without it";
    match version {
        LANDLOCK_MIN.. => {
            Check::ok(NAME, format!("version {version}: each engine can open its guest's files and no others"))
        }
        1.. => Check::warn(
            NAME,
            format!("version {version} is too old to be used"),
            format!("run Linux 5.19 or newer: {lost}"),
        ),
        _ => Check::warn(NAME, "switched off", format!("boot with `lsm=landlock,...`: {lost}")),
    }
}

/// The version of the kernel's Landlock; 0 where there is none.
fn landlock_version() -> i64 {
    /// `LANDLOCK_CREATE_RULESET_VERSION` of `linux/landlock.h`: nothing is made, the version is answered.
    const VERSION: libc::c_int = 1;
    // SAFETY: no attributes are passed, and nothing is made.
    let version = unsafe { libc::syscall(libc::SYS_landlock_create_ruleset, 0, 0, VERSION) };
    version.max(0)
}

/// The error of a system call with arguments that are always wrong.
fn probe(number: libc::c_long) -> Errno {
    // SAFETY: -1 is neither a descriptor nor an address nor a flag that any of these calls takes, so that they fail
    // before they do anything.
    match Errno::result(unsafe { libc::syscall(number, -1, 0, 0, 0, 0) }) {
        Ok(_) => Errno::UnknownErrno,
        Err(error) => error,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::doctor::Status;

    #[test]
    fn landlock_is_promised_only_where_the_engine_uses_it() {
        let check = |version, status, part: &str| {
            let check = landlock(version);
            assert_eq!(check.status, status, "{version}");
            assert!(format!("{check:?}").contains(part), "{check:?}");
        };
        check(0, Status::Warn, "boot with `lsm=landlock,...`: until then a guest that breaks out");
        check(1, Status::Warn, "run Linux 5.19 or newer");
        check(2, Status::Ok, "version 2: each engine can open its guest's files and no others");
        assert_eq!(check_landlock(), landlock(landlock_version()));
    }

    #[test]
    fn a_system_call_that_is_not_there_is_told_from_one_that_fails() {
        assert_eq!(probe(9999), Errno::ENOSYS);
        for (name, number, _) in SYSTEM_CALLS {
            let error = probe(*number);
            assert!(![Errno::ENOSYS, Errno::UnknownErrno].contains(&error), "{name}: {error}");
        }
    }
}
