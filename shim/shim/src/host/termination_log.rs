//! The kubelet's file for a container's last words, for an end that leaves nobody inside to write them.
//!
//! The shim writes as root into what the container may write to. So it opens the file before anything of the container runs, and only one
//! that everybody may write to anyway. The way to it leads through no link but root's.

use std::fs::{File, OpenOptions};
use std::io::{self, Write};
use std::os::fd::AsRawFd;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};

use nix::errno::Errno;
use nix::fcntl::{AT_FDCWD, OFlag, OpenHow, ResolveFlag, openat2};

/// Everybody may write.
const WRITABLE_FOR_ALL: u32 = 0o002;
/// Somebody but the owner may write.
const WRITABLE_FOR_OTHERS: u32 = 0o022;
const ROOT: u32 = 0;
/// How many links may be on the way: as many as the kernel follows.
const LINKS_MAX: u32 = 40;

/// The open file.
#[derive(Debug)]
pub(crate) struct TerminationLog(File);

impl TerminationLog {
    /// Opens the file at `path`; `None` if it is not a regular file that everybody may write to, or behind a link that is not only root's.
    pub(crate) fn open(path: &Path) -> Option<Self> {
        let how = OpenHow::new().flags(OFlag::O_PATH | OFlag::O_CLOEXEC).resolve(ResolveFlag::RESOLVE_NO_SYMLINKS);
        let found = match openat2(AT_FDCWD, path, how) {
            Err(Errno::ELOOP) => {
                let mut links_left = LINKS_MAX;
                let folder = without_links(path.parent()?, &mut links_left)?;
                openat2(AT_FDCWD, &folder.join(path.file_name()?), how)
            }
            found => found,
        };
        let found = File::from(found.ok()?);
        let metadata = found.metadata().ok()?;
        if !metadata.is_file() || metadata.permissions().mode() & WRITABLE_FOR_ALL == 0 {
            return None;
        }
        // Opens exactly the file that was checked.
        let again = format!("/proc/self/fd/{}", found.as_raw_fd());
        OpenOptions::new().append(true).open(again).ok().map(Self)
    }

    /// Writes the sentence into the file, if that is empty.
    ///
    /// # Errors
    /// Those of writing.
    pub(crate) fn leave(&self, sentence: &str) -> io::Result<()> {
        if self.0.metadata()?.len() > 0 {
            return Ok(());
        }
        (&self.0).write_all(sentence.as_bytes())
    }
}

/// Where the directory at `path` is, followed through links; `None` if anybody but root could have put one of them there, or could change
/// anything on the way.
fn without_links(path: &Path, links_left: &mut u32) -> Option<PathBuf> {
    let Some(parent) = path.parent() else { return path.has_root().then(|| path.to_owned()) };
    let parent = without_links(parent, links_left)?;
    let Some(name) = path.file_name() else { return parent.parent().map(Path::to_owned) };
    let path = parent.join(name);
    let metadata = path.symlink_metadata().ok()?;
    if metadata.uid() != ROOT {
        return None;
    }
    if metadata.is_symlink() {
        *links_left = links_left.checked_sub(1)?;
        return without_links(&parent.join(path.read_link().ok()?), links_left);
    }
    (metadata.mode() & WRITABLE_FOR_OTHERS == 0).then_some(path)
}

#[cfg(test)]
mod tests {
    use std::fs::{self, Permissions};
    use std::os::unix::fs::{lchown, symlink};

    use super::*;

    fn file(path: &Path, mode: u32, text: &str) {
        fs::write(path, text).unwrap();
        fs::set_permissions(path, Permissions::from_mode(mode)).unwrap();
    }

    #[test]
    fn only_a_regular_file_that_everybody_may_write_to_is_written() {
        let folder = tempfile::tempdir().unwrap();
        let at = |name: &str| folder.path().canonicalize().unwrap().join(name);
        file(&at("log"), 0o666, "");
        file(&at("private"), 0o644, "");
        fs::create_dir(at("folder")).unwrap();
        symlink("log", at("link")).unwrap();
        symlink(".", at("here")).unwrap();
        nix::unistd::mkfifo(&at("fifo"), nix::sys::stat::Mode::from_bits_truncate(0o666)).unwrap();
        for name in ["private", "folder", "link", "here/log", "fifo", "none", ""] {
            assert!(TerminationLog::open(&at(name)).is_none(), "{name}");
        }
        assert!(TerminationLog::open(Path::new("/dev/null")).is_none());
        let log = TerminationLog::open(&at("log")).unwrap();
        log.leave("first").unwrap();
        log.leave("second").unwrap();
        assert_eq!(fs::read_to_string(at("log")).unwrap(), "first");
    }

    #[test]
    fn links_are_followed_where_only_root_could_have_put_them() {
        // Everybody may write to `/tmp`.
        let folder = tempfile::tempdir_in("/run").unwrap();
        let at = |name: &str| folder.path().join(name);
        for (name, mode) in [("kubelet", 0o755), ("shared", 0o777)] {
            fs::create_dir(at(name)).unwrap();
            fs::set_permissions(at(name), Permissions::from_mode(mode)).unwrap();
            fs::create_dir(at(name).join("main")).unwrap();
            file(&at(name).join("main/log"), 0o666, "");
        }
        file(&at("kubelet/main/private"), 0o644, "");
        let links = [
            ("absolute", at("kubelet")),
            ("relative", "kubelet".into()),
            ("through", "relative/../absolute".into()),
            ("shared/link", at("kubelet")),
            ("to-shared", at("shared")),
            ("to-link", at("shared/link")),
            ("foreign", at("kubelet")),
            ("endless", at("endless")),
            ("kubelet/main/link", "log".into()),
        ];
        for (name, target) in links {
            symlink(target, at(name)).unwrap();
        }
        lchown(at("foreign"), Some(1000), None).unwrap();
        for (path, expected) in [
            ("absolute/main/log", true),
            ("relative/main/log", true),
            ("through/main/log", true),
            ("absolute/main/private", false),
            ("absolute/main/link", false),
            ("absolute/main/none", false),
            ("shared/link/main/log", false),
            ("to-shared/main/log", false),
            ("to-link/main/log", false),
            ("foreign/main/log", false),
            ("endless/main/log", false),
        ] {
            assert_eq!(TerminationLog::open(&at(path)).is_some(), expected, "{path}");
        }
    }

    #[test]
    fn what_takes_the_place_of_the_file_is_not_touched() {
        let folder = tempfile::tempdir().unwrap();
        let at = |name: &str| folder.path().canonicalize().unwrap().join(name);
        file(&at("log"), 0o666, "");
        file(&at("other"), 0o644, "");
        let log = TerminationLog::open(&at("log")).unwrap();
        fs::remove_file(at("log")).unwrap();
        symlink("other", at("log")).unwrap();
        log.leave("the end").unwrap();
        assert_eq!(fs::read_to_string(at("other")).unwrap(), "");
    }
}
