//! Files of a container, seen from the node before its process is there: nothing leaves the root file system.

use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom};
use std::os::fd::{AsFd, AsRawFd};
use std::path::{Path, PathBuf};

use nix::fcntl::{OFlag, OpenHow, ResolveFlag, openat2};
use nix::sys::stat::Mode;
use oci_spec::runtime::Mount;

/// What a file is by its first bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum FileKind {
    /// A WebAssembly module or component in the binary format.
    Wasm,
    /// Anything else; the kernel knows what to do with it, or says why not.
    Native,
}

/// Tells what `file` is by its magic number, and leaves its offset at the start.
pub(crate) fn kind_of(file: &mut File) -> io::Result<FileKind> {
    let mut magic = [0; 4];
    let mut filled = 0;
    while filled < magic.len() {
        match file.read(&mut magic[filled..])? {
            0 => break,
            count => filled += count,
        }
    }
    file.seek(SeekFrom::Start(0))?;
    Ok(if filled == magic.len() && &magic == b"\0asm" { FileKind::Wasm } else { FileKind::Native })
}

/// Opens `path` as the container will see it: in the last bind mount that covers it, else in the root file system.
/// Symbolic links are resolved as if the directory were the root. `None` when there is no such regular file.
pub(crate) fn open_file(rootfs: &Path, mounts: &[Mount], path: &Path) -> io::Result<Option<File>> {
    let (root, inside) = locate(rootfs, mounts, path);
    let file = match open_beneath(&root, &inside, OFlag::O_RDONLY | OFlag::O_NONBLOCK) {
        Ok(file) => file,
        Err(error) if is_absent(&error) => return Ok(None),
        Err(error) => return Err(error),
    };
    Ok(file.metadata()?.is_file().then_some(file))
}

/// The path that `path` has in the root file system once symbolic links in it are resolved. What does not exist yet is
/// taken as it stands.
pub(crate) fn resolve(rootfs: &Path, path: &Path) -> PathBuf {
    let mut existing = path;
    let mut rest = PathBuf::new();
    loop {
        if let Ok(file) = open_beneath(rootfs, existing, OFlag::O_PATH)
            && let Ok(real) = std::fs::read_link(format!("/proc/self/fd/{}", file.as_raw_fd()))
            && let Ok(root) = rootfs.canonicalize()
            && let Ok(inside) = real.strip_prefix(&root)
        {
            return Path::new("/").join(inside).join(rest).components().collect();
        }
        let (Some(parent), Some(name)) = (existing.parent(), existing.file_name()) else { return path.to_path_buf() };
        rest = Path::new(name).join(rest);
        existing = parent;
    }
}

fn locate(rootfs: &Path, mounts: &[Mount], path: &Path) -> (PathBuf, PathBuf) {
    let covering = mounts.iter().rev().find(|mount| path.starts_with(mount.destination()));
    match covering.and_then(|mount| Some((mount.source().as_ref()?, mount.destination()))) {
        Some((source, destination)) if source.is_absolute() => {
            (source.clone(), path.strip_prefix(destination).unwrap_or(path).to_path_buf())
        }
        _ => (rootfs.to_path_buf(), path.to_path_buf()),
    }
}

fn open_beneath(root: &Path, path: &Path, flags: OFlag) -> io::Result<File> {
    if path.as_os_str().is_empty() {
        return File::open(root);
    }
    let root = nix::fcntl::open(root, OFlag::O_PATH | OFlag::O_CLOEXEC, Mode::empty())?;
    let how = OpenHow::new()
        .flags(flags | OFlag::O_CLOEXEC)
        .resolve(ResolveFlag::RESOLVE_IN_ROOT | ResolveFlag::RESOLVE_NO_MAGICLINKS);
    Ok(File::from(openat2(root.as_fd(), path, how)?))
}

fn is_absent(error: &io::Error) -> bool {
    matches!(error.raw_os_error(), Some(libc::ENOENT | libc::ENOTDIR | libc::ELOOP | libc::ENXIO | libc::ENAMETOOLONG))
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use oci_spec::runtime::MountBuilder;

    use super::*;

    fn content(rootfs: &Path, mounts: &[Mount], path: &str) -> Option<String> {
        open_file(rootfs, mounts, Path::new(path)).unwrap().map(|mut file| {
            let mut text = String::new();
            file.read_to_string(&mut text).unwrap();
            text
        })
    }

    #[test]
    fn files_are_found_as_the_container_will_see_them() {
        let root = tempfile::tempdir().unwrap();
        let volume = tempfile::tempdir().unwrap();
        std::fs::create_dir_all(root.path().join("usr/bin")).unwrap();
        std::fs::write(root.path().join("usr/bin/app"), "inside").unwrap();
        symlink("/usr/bin", root.path().join("bin")).unwrap();
        symlink("/etc/passwd", root.path().join("escape")).unwrap();
        symlink("../../../../etc/passwd", root.path().join("climb")).unwrap();
        std::fs::write(volume.path().join("app"), "volume").unwrap();
        let mounts = [MountBuilder::default().destination("/data").source(volume.path()).typ("bind").build().unwrap()];
        for (path, expected) in [
            ("/bin/app", Some("inside")),
            ("/usr/../bin/app", Some("inside")),
            ("/data/app", Some("volume")),
            ("/data/none", None),
            ("/usr/bin", None),
            ("/escape", None),
            ("/climb", None),
        ] {
            assert_eq!(content(root.path(), &mounts, path).as_deref(), expected, "{path}");
        }
    }

    #[test]
    fn links_in_a_mount_point_are_resolved() {
        let root = tempfile::tempdir().unwrap();
        std::fs::create_dir_all(root.path().join("run")).unwrap();
        std::fs::create_dir_all(root.path().join("var")).unwrap();
        symlink("/run", root.path().join("var/run")).unwrap();
        for (path, expected) in [
            ("/var/run/secrets/token", "/run/secrets/token"),
            ("/run", "/run"),
            ("/new/place", "/new/place"),
            ("/", "/"),
        ] {
            assert_eq!(resolve(root.path(), Path::new(path)), Path::new(expected), "{path}");
        }
    }

    #[test]
    fn wasm_is_told_by_its_magic_number() {
        for (bytes, expected) in [
            (&b"\0asm\x01\0\0\0"[..], FileKind::Wasm),
            (b"\x7fELF", FileKind::Native),
            (b"\0as", FileKind::Native),
            (b"", FileKind::Native),
            (b"(module)", FileKind::Native),
        ] {
            let mut file = tempfile::tempfile().unwrap();
            std::io::Write::write_all(&mut file, bytes).unwrap();
            file.seek(SeekFrom::Start(0)).unwrap();
            assert_eq!(kind_of(&mut file).unwrap(), expected, "{bytes:?}");
        }
    }
}
