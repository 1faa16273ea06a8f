//! Does the kernel have what the three programs use?

use std::fs;
use std::path::Path;

use nix::errno::Errno;
use skiff_linux::probe::{error_of_call, landlock_version};

use super::check::Check;

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

/// The first version of Landlock with which files can be moved between directories (Linux 5.19). The engine does not use older
/// ones.
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
            Check::fail(NAME, format!("`{CGROUPS}` has none of {}", missing.join(", ")), "mount the control groups")
        }
        missing => {
            let advice = "boot with these controllers enabled: without them their limits are not enforced";
            Check::warn(NAME, format!("{version} without {}", missing.join(", ")), advice)
        }
    }
}

pub(super) fn check_system_calls() -> Check {
    const NAME: &str = "kernel";
    let missing = SYSTEM_CALLS.iter().filter(|(_, number, _)| error_of_call(*number) == Errno::ENOSYS);
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

/// How the engine uses this version of Landlock; 0 means that there is none.
fn landlock(version: i64) -> Check {
    const NAME: &str = "landlock";
    let lost = "until then only the container's mounts keep a guest that breaks out of the engine from the container's own \
                files; containers start without it";
    match version {
        LANDLOCK_MIN.. => {
            Check::ok(NAME, format!("version {version}: each engine can open its guest's files and no others"))
        }
        1.. => Check::warn(NAME, format!("version {version} is too old"), format!("run Linux 5.19 or newer: {lost}")),
        _ => Check::warn(NAME, "switched off", format!("boot with `lsm=landlock,...`: {lost}")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::doctor::check::Status;

    #[test]
    fn landlock_is_promised_only_where_the_engine_uses_it() {
        let check = |version, status, part: &str| {
            let check = landlock(version);
            assert_eq!(check.status, status, "{version}");
            assert!(format!("{check:?}").contains(part), "{check:?}");
        };
        check(0, Status::Warn, "boot with `lsm=landlock,...`: until then only the container's mounts");
        check(1, Status::Warn, "run Linux 5.19 or newer");
        check(2, Status::Ok, "version 2: each engine can open its guest's files and no others");
        assert_eq!(check_landlock(), landlock(landlock_version()));
    }

    #[test]
    fn a_system_call_that_is_not_there_is_told_from_one_that_fails() {
        assert_eq!(error_of_call(9999), Errno::ENOSYS);
        for (name, number, _) in SYSTEM_CALLS {
            let error = error_of_call(*number);
            assert!(![Errno::ENOSYS, Errno::UnknownErrno].contains(&error), "{name}: {error}");
        }
    }
}
