//! The guest's directories. Each open directory is what is checked, what the wall leaves in reach and what every instance
//! gets.

use std::fs::File;
use std::os::fd::{AsRawFd, OwnedFd};
use std::sync::Arc;

use nix::fcntl::{OFlag, OpenHow, ResolveFlag, openat2};
use skiff_protocol::{Preopen, Refusal};
use wasmtime_wasi::filesystem::{Descriptor, WasiFilesystemCtx, WasiFilesystemCtxView};
use wasmtime_wasi::p2::bindings::filesystem::preopens::Host;
use wasmtime_wasi::{FsPerms, ResourceTable, WasiCtx};

use super::mounts;
use super::opened::{Opened, cannot_open};
use super::reader::Reader;
use super::tree::Tree;
use crate::error::sentence;
use crate::role::Role;
use crate::wall::view::Access;

/// The open directories of a guest. There are none by default.
#[derive(Default)]
pub(crate) struct Directories {
    /// For the wall, which closes them.
    places: Vec<(OwnedFd, Access)>,
    /// For the instances, which share its descriptors.
    filesystem: WasiFilesystemCtx,
    /// The same, for those that must not block their thread.
    patient: WasiFilesystemCtx,
    /// The same, for paths that the engine resolves itself.
    tree: Tree,
    /// For the engine itself.
    reader: Reader,
}

/// Where a guest finds its root.
const ROOT: &str = "/";
/// The guest's devices, which can be written to even where no file can.
const DEVICES: &str = "dev";

impl Directories {
    /// Opens the directories of a plan for instances of this role, and makes sure that a guest may see them.
    ///
    /// # Errors
    /// [`Refusal::Guest`] if the path of one leads through a symbolic link, or if one shows a kernel file system;
    /// [`Refusal::Host`] if one cannot be opened.
    pub(crate) fn open(preopens: &[Preopen], role: Role) -> Result<Self, Refusal> {
        let opened = preopens.iter().map(Opened::open).collect::<Result<Vec<_>, Refusal>>()?;
        mounts::check(&opened)?;
        let mut names = Vec::with_capacity(opened.len());
        let mut places = Vec::with_capacity(opened.len());
        let mut reader = Reader::default();
        for (preopen, Opened { guest, descriptor }) in preopens.iter().zip(opened) {
            // Not a path to follow: the kernel opens the directory itself, wherever it is by now.
            names.push((format!("/proc/self/fd/{}", descriptor.as_raw_fd()), guest));
            let own = descriptor.try_clone().map_err(|error| cannot_open(guest, &error.to_string()))?;
            reader.add(guest, own);
            if preopen.read_only {
                places.extend(devices_of(&descriptor).map(|devices| (devices, Access::Write)));
                places.push((descriptor, Access::Read));
            } else {
                places.push((descriptor, Access::Write));
            }
        }
        let mut filesystem = filesystem_of(&names, role)?;
        // A command's functions may be called in instances of their own.
        let patient = if role.may_block() { filesystem_of(&names, Role::Server)? } else { filesystem.clone() };
        let tree = Tree::new(root_of(&mut filesystem), role);
        Ok(Self { places, filesystem, patient, tree, reader })
    }

    /// The descriptors, for the wall. The instances have their own.
    pub(crate) fn take_places(&mut self) -> Vec<(OwnedFd, Access)> {
        std::mem::take(&mut self.places)
    }

    /// What follows the guest's paths for the engine itself.
    pub(crate) fn take_reader(&mut self) -> Reader {
        std::mem::take(&mut self.reader)
    }

    /// What an instance of this role gets. Nothing is opened for it.
    pub(crate) fn filesystem(&self, role: Role) -> WasiFilesystemCtx {
        if role.may_block() { self.filesystem.clone() } else { self.patient.clone() }
    }

    /// What resolves the paths of an instance of this role.
    pub(crate) fn tree(&self, role: Role) -> Tree {
        self.tree.clone().of(role)
    }
}

/// What instances of this role get of the directories with these names, the guest's after the host's.
fn filesystem_of(names: &[(String, &str)], role: Role) -> Result<WasiFilesystemCtx, Refusal> {
    let mut builder = WasiCtx::builder();
    builder.allow_blocking_current_thread(role.may_block());
    for (host, guest) in names {
        // The mounts decide what can be written, and with the right error.
        let opened = builder.preopened_dir(host, guest, FsPerms::ReadWrite);
        opened.map_err(|error| cannot_open(guest, &sentence(&error)))?;
    }
    Ok(std::mem::take(builder.build().filesystem()))
}

/// The open directory that is the guest's root.
fn root_of(filesystem: &mut WasiFilesystemCtx) -> Option<Arc<File>> {
    let mut table = ResourceTable::new();
    let directories = WasiFilesystemCtxView { ctx: filesystem, table: &mut table }.get_directories().ok()?;
    let (root, _) = directories.into_iter().find(|(_, guest)| guest == ROOT)?;
    match table.delete(root) {
        Ok(Descriptor::Dir(root)) => Some(root.dir),
        _ => None,
    }
}

/// The directory of devices in the guest's root, if there is one.
fn devices_of(root: &OwnedFd) -> Option<OwnedFd> {
    let how = OpenHow::new()
        .flags(OFlag::O_PATH | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC)
        .resolve(ResolveFlag::RESOLVE_BENEATH | ResolveFlag::RESOLVE_NO_SYMLINKS);
    openat2(root, DEVICES, how).ok()
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;
    use std::path::Path;

    use super::*;

    fn opened(host: &Path) -> Result<(), Refusal> {
        let host = host.to_str().unwrap().to_owned();
        Directories::open(&[Preopen { host, guest: "/data".to_owned(), read_only: false }], Role::Server).map(drop)
    }

    #[test]
    fn a_link_on_the_way_to_a_directory_is_refused() {
        let folder = tempfile::tempdir().unwrap();
        let at = |name: &str| folder.path().join(name);
        std::fs::create_dir_all(at("real/deep")).unwrap();
        std::fs::write(at("file"), "").unwrap();
        for (link, target) in
            [("kernel", "/proc"), ("up", "../../../../proc"), ("inside", "real"), ("circle", "circle")]
        {
            symlink(target, at(link)).unwrap();
        }
        for good in ["real", "real/deep", "real/../real/deep/."] {
            assert_eq!(opened(&at(good)), Ok(()), "{good}");
        }
        for bad in ["kernel", "kernel/", "kernel/self", "up", "inside", "inside/deep", "circle"] {
            assert!(
                matches!(opened(&at(bad)), Err(Refusal::Guest(why)) if why.contains("symbolic link") && why.contains("`/data`")),
                "{bad}"
            );
        }
        for magic in ["/proc/self/cwd", "/proc/self/fd/0", "/proc/self/root/tmp", "/dev/fd"] {
            assert!(matches!(opened(Path::new(magic)), Err(Refusal::Guest(_))), "{magic}");
        }
        for broken in ["file", "missing", ""] {
            assert!(matches!(opened(&at(broken).join("x")), Err(Refusal::Host(_))), "{broken}");
        }
    }

    #[test]
    fn opening_costs_microseconds() {
        let preopen = |host: &str| Preopen { host: host.to_owned(), guest: host.to_owned(), read_only: false };
        let preopens = [preopen("/etc"), preopen("/usr")];
        let once = || {
            let begun = std::time::Instant::now();
            Directories::open(&preopens, Role::Module).unwrap();
            begun.elapsed()
        };
        let least = (0..100).map(|_| once()).min().unwrap();
        println!("opening and checking two directories takes {least:?}");
        assert!(least < std::time::Duration::from_millis(1), "{least:?}");
    }
}
