//! Finds files of a container from the node, before its process exists, without leaving the root file system.

use std::fs::{File, FileType};
use std::io;
use std::os::fd::{AsFd, AsRawFd};
use std::os::unix::fs::{FileExt, FileTypeExt};
use std::path::{Component, Path, PathBuf};

use nix::errno::Errno;
use nix::fcntl::{OFlag, OpenHow, ResolveFlag, openat2};
use nix::sys::stat::Mode;
use skiff_protocol::{Content, HEAD_BYTES};

use crate::spec::config::Mount;

/// The most symbolic links that are followed in a path; the OCI runtime follows 255.
const LINKS_MAX: u32 = 255;

/// Links are resolved as in a container, and lead nowhere else.
const IN_ROOT: ResolveFlag = ResolveFlag::RESOLVE_IN_ROOT.union(ResolveFlag::RESOLVE_NO_MAGICLINKS);

/// How often a look-up is tried if the kernel asks for another try.
const TRIES_MAX: u32 = 64;

/// What `file` is by its first bytes. Its offset does not change.
pub(crate) fn content_of(file: &File) -> io::Result<Content> {
    let mut head = [0; HEAD_BYTES];
    let mut length = 0;
    while length < head.len() {
        match file.read_at(&mut head[length..], length as u64) {
            Ok(0) => break,
            Ok(read) => length += read,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(Content::of(&head[..length]))
}

/// Opens `path` as the container will see it: in the last bind mount that covers it, otherwise in the root file system.
/// Symbolic links are resolved as if that directory were the root. Returns `None` when there is no such file or it is a
/// directory.
///
/// The file comes from a tenant, so it is opened only once it is known to be a regular file: opening a device would use the
/// shim's privileges, and opening a fifo would block.
///
/// # Errors
/// `InvalidInput` for a device, a fifo or a socket, with its path; those of opening.
pub(crate) fn open_file(rootfs: &Path, mounts: &[Mount], path: &Path) -> io::Result<Option<File>> {
    let (root, inside) = locate(rootfs, mounts, path);
    let found = match open_beneath(&root, &inside, IN_ROOT) {
        Ok(found) => found,
        Err(error) if is_absent(&error) => return Ok(None),
        Err(error) => return Err(error),
    };
    let kind = found.metadata()?.file_type();
    if kind.is_dir() {
        return Ok(None);
    }
    if !kind.is_file() {
        let sentence = format!("`{}` cannot be run: it is {}", path.display(), name_of(kind));
        return Err(io::Error::new(io::ErrorKind::InvalidInput, sentence));
    }
    // Opens exactly the file that was checked, whatever has its name by now. This thread may have its own file table.
    File::open(format!("/proc/thread-self/fd/{}", found.as_raw_fd())).map(Some)
}

/// Opens the directory `path` of a container as its process `pid` sees it, with `O_PATH` only. Symbolic links never lead out of the
/// root of that process.
///
/// # Errors
/// Those of opening.
pub(crate) fn open_directory_of(pid: i32, path: &Path) -> io::Result<File> {
    open_beneath(Path::new(&format!("/proc/{pid}/root")), path, IN_ROOT)
}

fn name_of(kind: FileType) -> &'static str {
    match kind {
        kind if kind.is_fifo() => "a fifo",
        kind if kind.is_socket() => "a socket",
        kind if kind.is_block_device() => "a block device",
        kind if kind.is_char_device() => "a character device",
        _ => "not a regular file",
    }
}

/// Resolves the symbolic links of `path` in the root file system as the OCI runtime does: below the root, and even if the
/// target does not exist yet.
pub(crate) fn resolve(rootfs: &Path, path: &Path) -> PathBuf {
    let mut resolved = PathBuf::from("/");
    let mut rest: Vec<PathBuf> = path.components().rev().map(|part| PathBuf::from(part.as_os_str())).collect();
    let mut links_left = LINKS_MAX;
    while let Some(part) = rest.pop() {
        match part.components().next() {
            Some(Component::RootDir) => resolved = PathBuf::from("/"),
            Some(Component::ParentDir) => drop(resolved.pop()),
            Some(Component::Normal(name)) => {
                let next = resolved.join(name);
                // The resolved part contains no links, so nothing leads out of the root.
                match std::fs::read_link(rootfs.join(next.strip_prefix("/").unwrap_or(&next))) {
                    Ok(target) if links_left > 0 => {
                        links_left -= 1;
                        rest.extend(target.components().rev().map(|part| PathBuf::from(part.as_os_str())));
                    }
                    _ => resolved = next,
                }
            }
            Some(Component::CurDir | Component::Prefix(_)) | None => {}
        }
    }
    resolved
}

fn locate(rootfs: &Path, mounts: &[Mount], path: &Path) -> (PathBuf, PathBuf) {
    let covering = mounts.iter().rev().find(|mount| path.starts_with(&mount.destination));
    match covering.and_then(|mount| Some((mount.source.as_ref()?, &mount.destination))) {
        Some((source, destination)) if source.is_absolute() => {
            (source.clone(), path.strip_prefix(destination).unwrap_or(path).to_path_buf())
        }
        _ => (rootfs.to_path_buf(), path.to_path_buf()),
    }
}

/// Opens `path` below `root` with `O_PATH` only, where its links are treated as `resolve` says.
///
/// # Errors
/// Those of `openat2(2)`.
pub(super) fn open_beneath(root: &Path, path: &Path, resolve: ResolveFlag) -> io::Result<File> {
    let root = nix::fcntl::open(root, OFlag::O_PATH | OFlag::O_CLOEXEC, Mode::empty())?;
    if path.as_os_str().is_empty() {
        return Ok(File::from(root));
    }
    let how = OpenHow::new().flags(OFlag::O_PATH | OFlag::O_CLOEXEC).resolve(resolve);
    // A mount or rename anywhere on the node may keep the kernel from checking a `..`: then it returns EAGAIN (openat2(2)).
    let mut tries_left = TRIES_MAX;
    loop {
        match openat2(root.as_fd(), path, how) {
            Err(Errno::EAGAIN) if tries_left > 0 => tries_left -= 1,
            opened => return Ok(File::from(opened?)),
        }
    }
}

fn is_absent(error: &io::Error) -> bool {
    matches!(error.raw_os_error(), Some(libc::ENOENT | libc::ENOTDIR | libc::ELOOP | libc::ENXIO | libc::ENAMETOOLONG))
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use super::*;

    fn content(rootfs: &Path, mounts: &[Mount], path: &str) -> Option<String> {
        open_file(rootfs, mounts, Path::new(path)).unwrap().map(|file| io::read_to_string(file).unwrap())
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
        let mounts = [Mount::bind("/data".into(), volume.path(), &["bind"])];
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
    fn no_device_fifo_or_socket_is_ever_opened() {
        let root = tempfile::tempdir().unwrap();
        let fifo = root.path().join("fifo");
        nix::unistd::mkfifo(&fifo, Mode::S_IRWXU).unwrap();
        let _socket = std::os::unix::net::UnixListener::bind(root.path().join("socket")).unwrap();
        // Its driver does not exist, so opening it would fail with another error than the sentence.
        let device = nix::sys::stat::makedev(10, 200);
        let kind = nix::sys::stat::SFlag::S_IFCHR;
        nix::sys::stat::mknod(&root.path().join("device"), kind, Mode::S_IRWXU, device).unwrap();
        let volume = Mount::bind("/app.wasm".into(), &fifo, &["bind"]);
        for (mounts, path, expected) in [
            (&[][..], "/fifo", "`/fifo` cannot be run: it is a fifo"),
            (&[], "/socket", "`/socket` cannot be run: it is a socket"),
            (&[], "/device", "`/device` cannot be run: it is a character device"),
            (&[volume], "/app.wasm", "`/app.wasm` cannot be run: it is a fifo"),
        ] {
            // Opening a fifo without a writer would block.
            assert_eq!(open_file(root.path(), mounts, Path::new(path)).unwrap_err().to_string(), expected);
        }
    }

    #[test]
    fn links_in_a_mount_point_are_resolved() {
        let root = tempfile::tempdir().unwrap();
        std::fs::create_dir_all(root.path().join("run")).unwrap();
        std::fs::create_dir_all(root.path().join("var")).unwrap();
        symlink("/run", root.path().join("var/run")).unwrap();
        symlink("../dev/./.skiff", root.path().join("var/nothing")).unwrap();
        symlink("/loop", root.path().join("loop")).unwrap();
        for (path, expected) in [
            ("/var/run/secrets/token", "/run/secrets/token"),
            ("/var/nothing/root", "/dev/.skiff/root"),
            ("/../var/run/../x", "/x"),
            ("/loop/x", "/loop/x"),
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
            (&b"\0asm\x01\0\0\0"[..], Content::Wasm),
            (b"\x7fELF", Content::Elf),
            (b"\0as", Content::Other),
            (b"", Content::Empty),
            (b"(module)", Content::Text),
        ] {
            let mut file = tempfile::tempfile().unwrap();
            io::Write::write_all(&mut file, bytes).unwrap();
            assert_eq!(content_of(&file).unwrap(), expected, "{bytes:?}");
        }
    }
}
