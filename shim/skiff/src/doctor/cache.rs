//! Is the cache of compiled code safe, and is there room for it?

use std::fs;
use std::io::ErrorKind;
use std::path::Path;

use nix::sys::statvfs::statvfs;
use skiff_linux::trust::{self, Distrust, Step};
use skiff_protocol::names::CODE_EXTENSION;

use super::check::Check;

/// The number of symbolic links that the kernel follows.
const LINKS_MAX: u32 = 40;
const OWN: &str = "empty the cache, and give the directory to root: `chown root:root`";
const CLOSE: &str = "empty the cache, and close the directory: `chmod go-w`";
/// Room below which a large module may not fit.
const FREE_BYTES_MIN: u64 = 1 << 30;

pub(super) fn check(directory: &Path) -> Vec<Check> {
    vec![check_owner(directory), check_room(directory)]
}

fn check_owner(directory: &Path) -> Check {
    const NAME: &str = "cache";
    let shown = directory.display();
    if let Some((found, advice)) = fault(directory, LINKS_MAX) {
        return Check::fail(NAME, found, advice);
    }
    match fs::symlink_metadata(directory) {
        Err(error) if error.kind() == ErrorKind::NotFound => {
            Check::ok(NAME, format!("`{shown}` is created when the first module is compiled"))
        }
        Err(error) => Check::fail(NAME, format!("cannot look at `{shown}`: {error}"), "run the doctor as root"),
        Ok(_) if !directory.is_dir() => Check::fail(NAME, format!("`{shown}` is not a directory"), "move it away"),
        Ok(_) => Check::ok(NAME, format!("`{shown}` holds {}", size(directory))),
    }
}

/// Why a directory, or a step on the way to it, must not hold code that will be run. The shim refuses such a cache.
fn fault(directory: &Path, links_left: u32) -> Option<(String, &'static str)> {
    let mut steps: Vec<&Path> = directory.ancestors().collect();
    steps.reverse();
    steps.into_iter().find_map(|step| {
        // A step that does not exist yet will be root's.
        let metadata = fs::symlink_metadata(step).ok()?;
        let shown = step.display();
        let place = if step == directory { Step::Last } else { Step::Way };
        match trust::distrust(&metadata, place, &[0]) {
            Some(Distrust::Owner(_)) => Some((format!("`{shown}` does not belong to root"), OWN)),
            Some(Distrust::Writable(_)) => Some((format!("`{shown}` can be written by users other than root"), CLOSE)),
            None if metadata.is_symlink() => {
                let target = step.parent().unwrap_or(step).join(fs::read_link(step).ok()?);
                fault(&target, links_left.checked_sub(1)?)
            }
            None => None,
        }
    })
}

fn size(directory: &Path) -> String {
    let entries = |directory: &Path| fs::read_dir(directory).into_iter().flatten().flatten();
    let files = entries(directory).flat_map(|engine| entries(&engine.path()));
    let code = files.filter(|file| file.path().extension().is_some_and(|extension| extension == CODE_EXTENSION));
    let bytes: Vec<_> = code.filter_map(|file| file.metadata().ok()).map(|metadata| metadata.len()).collect();
    format!("the code of {} modules, {} MiB", bytes.len(), bytes.iter().sum::<u64>() >> 20)
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
        return Check::warn(NAME, found, "free some space, or set the option `CacheDir` to a place with more");
    }
    Check::ok(NAME, found)
}

#[cfg(test)]
mod tests {
    use std::fs::Permissions;
    use std::os::unix::fs::{PermissionsExt, lchown, symlink};

    use super::*;
    use crate::doctor::check::Status;

    #[test]
    fn a_cache_that_others_can_write_or_replace_fails() {
        if !nix::unistd::Uid::effective().is_root() {
            println!("not run: the cache is root's");
            return;
        }
        let parent = tempfile::tempdir().unwrap();
        let directory = parent.path().join("cache");
        fs::create_dir(&directory).unwrap();
        for (mode, status) in [
            (0o700, Status::Ok),
            (0o755, Status::Ok),
            (0o775, Status::Fail),
            (0o702, Status::Fail),
            (0o1777, Status::Fail),
        ] {
            fs::set_permissions(&directory, Permissions::from_mode(mode)).unwrap();
            assert_eq!(check_owner(&directory).status, status, "{mode:o}");
        }
        fs::set_permissions(&directory, Permissions::from_mode(0o700)).unwrap();
        assert_eq!(check_owner(&directory.join("absent")).status, Status::Ok);
        let link = parent.path().join("link");
        symlink("cache", &link).unwrap();
        assert_eq!(check_owner(&link).status, Status::Ok);
        fs::set_permissions(parent.path(), Permissions::from_mode(0o770)).unwrap();
        for path in [&directory, &link] {
            let sentence = format!("`{}` can be written by users other than root", parent.path().display());
            assert_eq!(check_owner(path).found, sentence);
        }
        fs::set_permissions(parent.path(), Permissions::from_mode(0o700)).unwrap();
        lchown(&link, Some(1000), None).unwrap();
        assert_eq!(check_owner(&link).found, format!("`{}` does not belong to root", link.display()));
    }

    #[test]
    fn the_code_of_every_engine_is_counted() {
        let directory = tempfile::tempdir().unwrap();
        for (engine, file) in [("a", "1.cwasm"), ("a", "2.tmp"), ("b", "3.cwasm")] {
            fs::create_dir_all(directory.path().join(engine)).unwrap();
            fs::write(directory.path().join(engine).join(file), vec![0; 1 << 20]).unwrap();
        }
        assert_eq!(size(directory.path()), "the code of 2 modules, 2 MiB");
    }
}
