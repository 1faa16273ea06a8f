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
    match probe(libc::SYS_landlock_create_ruleset) {
        Errno::ENOSYS | Errno::EOPNOTSUPP => {
            let advice =
                "boot with `lsm=landlock,...`: the engine then locks itself out of the container's own files too";
            Check::warn("landlock", "switched off", advice)
        }
        _ => Check::ok("landlock", "switched on"),
    }
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

    #[test]
    fn a_system_call_that_is_not_there_is_told_from_one_that_fails() {
        assert_eq!(probe(9999), Errno::ENOSYS);
        for (name, number, _) in SYSTEM_CALLS {
            let error = probe(*number);
            assert!(![Errno::ENOSYS, Errno::UnknownErrno].contains(&error), "{name}: {error}");
        }
    }
}
