//! Processes of this node that are what their names say: any user can give a process any name, and any environment.

use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::Path;

use libc::S_ISUID;

/// Whether `process`, a directory of `proc`, was started by root or by this user. A set-user-ID program belongs to root, but has the
/// arguments and the environment of whoever started it.
pub(crate) fn is_trusted(proc: &Path, process: &Path) -> bool {
    let owner = |path: &Path| fs::metadata(path).map(|metadata| metadata.uid()).ok();
    let has_other_owner = || fs::metadata(process.join("exe")).is_ok_and(|exe| exe.permissions().mode() & S_ISUID != 0);
    owner(process).is_some_and(|uid| uid == 0 || Some(uid) == owner(&proc.join("self"))) && !has_other_owner()
}

#[cfg(test)]
mod tests {
    use std::fs::Permissions;
    use std::os::unix::fs::chown;

    use nix::unistd::Uid;

    use super::*;

    #[test]
    fn processes_of_other_users_are_not_trusted() {
        if !Uid::effective().is_root() {
            println!("not run: only root gives files to others");
            return;
        }
        let proc = tempfile::tempdir().unwrap();
        let process = proc.path().join("7");
        let own = proc.path().join("self");
        fs::create_dir(&process).unwrap();
        fs::create_dir(&own).unwrap();
        fs::write(process.join("exe"), "").unwrap();
        let check = |of_process: u32, of_caller: u32, mode: u32, expected: bool| {
            chown(&process, Some(of_process), None).unwrap();
            chown(&own, Some(of_caller), None).unwrap();
            fs::set_permissions(process.join("exe"), Permissions::from_mode(mode)).unwrap();
            assert_eq!(is_trusted(proc.path(), &process), expected, "{of_process} {of_caller} {mode:o}");
        };
        check(0, 0, 0o755, true);
        check(0, 1000, 0o755, true);
        check(1000, 1000, 0o755, true);
        check(1000, 0, 0o755, false);
        check(1000, 1001, 0o755, false);
        check(0, 0, 0o4755, false);
        assert!(!is_trusted(proc.path(), &proc.path().join("8")), "it has ended");
    }
}
