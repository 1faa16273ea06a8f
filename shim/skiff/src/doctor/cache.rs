//! Is the cache of compiled code safe, and is there room for it?

use std::fs::{self, Metadata};
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use nix::sys::statvfs::statvfs;

use super::Check;

/// Room below which a large module may not fit.
const FREE_BYTES_MIN: u64 = 1 << 30;

pub(super) fn check(directory: &Path) -> Vec<Check> {
    vec![check_owner(directory), check_room(directory)]
}

fn check_owner(directory: &Path) -> Check {
    const NAME: &str = "cache";
    let shown = directory.display();
    match fs::symlink_metadata(directory) {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
            Check::ok(NAME, format!("`{shown}` is made when the first module is compiled"))
        }
        Err(error) => Check::fail(NAME, format!("cannot look at `{shown}`: {error}"), "run the doctor as root"),
        Ok(metadata) => match fault(&metadata) {
            Some((found, advice)) => Check::fail(NAME, format!("`{shown}` {found}"), advice),
            None => Check::ok(NAME, format!("`{shown}` holds {}", size(directory))),
        },
    }
}

/// What makes a directory unfit to hold code that will be run.
fn fault(metadata: &Metadata) -> Option<(&'static str, &'static str)> {
    if !metadata.is_dir() {
        return Some(("is no directory", "move it away"));
    }
    if metadata.uid() != 0 {
        return Some(("does not belong to root", "empty it and give it to root: `chown root:root`"));
    }
    if metadata.mode() & 0o022 != 0 {
        return Some(("can be written by others than root", "empty it and close it: `chmod 0700`"));
    }
    None
}

fn size(directory: &Path) -> String {
    let files = fs::read_dir(directory).into_iter().flatten().flatten().filter_map(|entry| entry.metadata().ok());
    let (count, bytes) = files.fold((0_u64, 0_u64), |(count, bytes), file| (count + 1, bytes + file.len()));
    format!("{count} files, {} MiB", bytes >> 20)
}

fn check_room(directory: &Path) -> Check {
    const NAME: &str = "room";
    let there = directory.ancestors().find(|path| path.exists()).unwrap_or(directory);
    let Ok(room) = statvfs(there) else {
        return Check::warn(NAME, format!("cannot measure `{}`", there.display()), "run the doctor as root");
    };
    let free = room.blocks_available().saturating_mul(room.fragment_size());
    let found = format!("{} MiB free at `{}`", free >> 20, there.display());
    if free < FREE_BYTES_MIN {
        return Check::warn(NAME, found, "make room, or set the option `CacheDir` to a place that has it");
    }
    Check::ok(NAME, found)
}

#[cfg(test)]
mod tests {
    use std::fs::Permissions;
    use std::os::unix::fs::PermissionsExt;

    use super::*;
    use crate::doctor::Status;

    #[test]
    fn a_cache_that_others_can_write_fails() {
        let directory = tempfile::tempdir().unwrap();
        for (mode, status) in [(0o700, Status::Ok), (0o755, Status::Ok), (0o775, Status::Fail), (0o702, Status::Fail)] {
            fs::set_permissions(directory.path(), Permissions::from_mode(mode)).unwrap();
            assert_eq!(check_owner(directory.path()).status, status, "{mode:o}");
        }
        assert_eq!(check_owner(&directory.path().join("absent")).status, Status::Ok);
    }
}
