//! Whether only root and this user control a directory and every step of the path to it.

use std::fs::{self, Metadata};
use std::io::{self, ErrorKind};
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use nix::unistd::Uid;
use skiff_linux::trust::{self, Distrust, Step};

/// The kernel's own limit on symbolic links in a path.
const LINKS_MAX: u32 = 40;

/// Checks that nobody but root and this user can replace the directory `path` or write to it.
///
/// # Errors
/// `PermissionDenied` with a sentence that names the step that somebody else controls; those of `lstat(2)`.
pub(super) fn check_directory(path: &Path) -> io::Result<()> {
    check_way(path, LINKS_MAX)?;
    let meta = fs::metadata(path).map_err(|error| io::Error::new(error.kind(), sentence(path, &error.to_string())))?;
    if !meta.is_dir() {
        return Err(io::Error::new(ErrorKind::NotADirectory, sentence(path, "it is not a directory")));
    }
    // The sticky bit keeps others from replacing files here, but not from adding some.
    if meta.mode() & 0o022 != 0 {
        return Err(denied(path, "others can write to it"));
    }
    Ok(())
}

fn check_way(path: &Path, links_left: u32) -> io::Result<()> {
    let mut steps: Vec<&Path> = path.ancestors().collect();
    steps.reverse();
    for step in steps {
        let meta = fs::symlink_metadata(step)
            .map_err(|error| io::Error::new(error.kind(), sentence(step, &error.to_string())))?;
        check_step(step, &meta)?;
        if meta.is_symlink() {
            if links_left == 0 {
                return Err(denied(step, "its path has too many symbolic links"));
            }
            let target = fs::read_link(step)?;
            check_way(&step.parent().unwrap_or(step).join(target), links_left - 1)?;
        }
    }
    Ok(())
}

fn check_step(step: &Path, meta: &Metadata) -> io::Result<()> {
    match trust::distrust(meta, Step::Way, &[0, Uid::effective().as_raw()]) {
        Some(Distrust::Owner(_)) if meta.is_symlink() => {
            Err(denied(step, "it is a symbolic link that belongs to another user"))
        }
        Some(Distrust::Owner(_)) => Err(denied(step, "it belongs to another user")),
        Some(Distrust::Writable(_)) => Err(denied(step, "others can write to it")),
        None => Ok(()),
    }
}

fn denied(step: &Path, reason: &str) -> io::Error {
    io::Error::new(ErrorKind::PermissionDenied, sentence(step, reason))
}

fn sentence(step: &Path, reason: &str) -> String {
    format!("`{}` is not a safe place for the cache of compiled code: {reason}", step.display())
}
