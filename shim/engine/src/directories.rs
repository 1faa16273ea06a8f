//! The guest's directories, each opened once. Whoever shares a volume with the guest can put a symbolic link in the place of
//! a directory at any time. So a path of the plan is followed once, without links; what is checked, what the wall leaves
//! in reach and what every instance gets is that open directory.

use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};

use nix::errno::Errno;
use nix::fcntl::{AT_FDCWD, OFlag, OpenHow, ResolveFlag, openat2};
use skiff_protocol::{Preopen, Refusal};
use wasmtime_wasi::filesystem::WasiFilesystemCtx;
use wasmtime_wasi::{FsPerms, WasiCtx};

use crate::stdio::Writer;
use crate::wall::Access;
use crate::{mounts, report};

/// The open directories of a guest; by default none.
#[derive(Default)]
pub(crate) struct Directories {
    /// For the wall, which takes them.
    places: Vec<(OwnedFd, Access)>,
    /// For the instances, which share its descriptors.
    filesystem: WasiFilesystemCtx,
}

/// One directory of a plan, open.
pub(crate) struct Opened<'a> {
    /// Where in the guest it is.
    pub(crate) guest: &'a str,
    descriptor: OwnedFd,
}

impl Directories {
    /// Opens the directories of a plan for the instances of `writer`, and makes sure that a guest may see them.
    ///
    /// # Errors
    /// [`Refusal::Guest`] when the way to one leads through a symbolic link, or one shows a kernel file system;
    /// [`Refusal::Host`] when one cannot be opened.
    pub(crate) fn open(preopens: &[Preopen], writer: Writer) -> Result<Self, Refusal> {
        let opened = preopens.iter().map(Opened::of).collect::<Result<Vec<_>, Refusal>>()?;
        mounts::check(&opened)?;
        let mut builder = WasiCtx::builder();
        // One guest alone may block the only thread; many must not block each other.
        builder.allow_blocking_current_thread(writer != Writer::Server);
        let mut places = Vec::with_capacity(opened.len());
        for (preopen, Opened { guest, descriptor }) in preopens.iter().zip(opened) {
            let (permissions, access) =
                if preopen.read_only { (FsPerms::ReadOnly, Access::Read) } else { (FsPerms::ReadWrite, Access::Write) };
            // Not a path to follow: the kernel answers with the open directory itself, wherever it is by now.
            let again = format!("/proc/self/fd/{}", descriptor.as_raw_fd());
            builder
                .preopened_dir(again, guest, permissions)
                .map_err(|error| cannot_open(guest, &report::sentence(&error)))?;
            places.push((descriptor, access));
        }
        Ok(Self { places, filesystem: std::mem::take(builder.build().filesystem()) })
    }

    /// The descriptors, for the wall. The instances have their own.
    pub(crate) fn take_places(&mut self) -> Vec<(OwnedFd, Access)> {
        std::mem::take(&mut self.places)
    }

    /// What an instance is given. It opens nothing.
    pub(crate) fn filesystem(&self) -> WasiFilesystemCtx {
        self.filesystem.clone()
    }
}

impl<'a> Opened<'a> {
    /// Opens a directory of a plan.
    ///
    /// # Errors
    /// As [`Directories::open`].
    pub(crate) fn of(preopen: &'a Preopen) -> Result<Self, Refusal> {
        let Preopen { host, guest, .. } = preopen;
        let how = OpenHow::new()
            .flags(OFlag::O_PATH | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC)
            .resolve(ResolveFlag::RESOLVE_NO_SYMLINKS | ResolveFlag::RESOLVE_NO_MAGICLINKS);
        match openat2(AT_FDCWD, host.as_str(), how) {
            Ok(descriptor) => Ok(Self { guest, descriptor }),
            Err(Errno::ELOOP) => Err(Refusal::Guest(format!(
                "there is a symbolic link on the way to the directory `{guest}` (`{host}`), and whoever can write to the volume \
                 that it lies in could lead the guest anywhere: use a mount path without links, outside of other volumes"
            ))),
            Err(error) => Err(cannot_open(guest, &io::Error::from(error).to_string())),
        }
    }
}

impl AsFd for Opened<'_> {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.descriptor.as_fd()
    }
}

/// The refusal of a directory that the container does not have as it should.
pub(crate) fn cannot_open(guest: &str, why: &str) -> Refusal {
    Refusal::Host(format!("cannot open the directory `{guest}`: {why}"))
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;
    use std::path::Path;

    use super::*;

    fn opened(host: &Path) -> Result<(), Refusal> {
        let host = host.to_str().unwrap().to_owned();
        Directories::open(&[Preopen { host, guest: "/data".to_owned(), read_only: false }], Writer::Server).map(drop)
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
            Directories::open(&preopens, Writer::Module).unwrap();
            begun.elapsed()
        };
        let least = (0..100).map(|_| once()).min().unwrap();
        println!("opening and checking two directories takes {least:?}");
        assert!(least < std::time::Duration::from_millis(1), "{least:?}");
    }
}
