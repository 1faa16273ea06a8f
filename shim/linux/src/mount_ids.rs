//! Single mounts of the node, asked for by their ids (`statmount(2)` and `listmount(2)`, Linux 6.8). `/proc/self/mountinfo` instead
//! has a line for every mount of the node: with 500 pods it takes 5 ms of processor time to read.

use std::ffi::{CStr, OsStr};
use std::io::{self, Error, ErrorKind};
use std::os::fd::AsFd;
use std::os::unix::ffi::OsStrExt;
use std::path::PathBuf;

use linux_raw_sys::general::{
    __NR_listmount, __NR_statmount, STATMOUNT_FS_TYPE, STATMOUNT_MNT_POINT, STATX_MNT_ID_UNIQUE, mnt_id_req, statmount,
};
use nix::errno::Errno;
use rustix::fs::{AtFlags, StatxFlags, statx};

/// The longest path, and so the longest answer about a mount.
const TEXT_BYTES: usize = libc::PATH_MAX as usize;
/// How many ids are listed by one call.
const LISTED: usize = 512;

/// The id of a mount. The kernel never gives it again.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct MountId(u64);

impl MountId {
    /// The mount that an open file is on.
    ///
    /// # Errors
    /// Those of `statx(2)`; `Unsupported` before Linux 6.8.
    pub fn of(file: impl AsFd) -> io::Result<Self> {
        let found = statx(file, c"", AtFlags::EMPTY_PATH, StatxFlags::from_bits_retain(STATX_MNT_ID_UNIQUE))?;
        if found.stx_mask & STATX_MNT_ID_UNIQUE == 0 {
            return Err(ErrorKind::Unsupported.into());
        }
        Ok(Self(found.stx_mnt_id))
    }

    /// The type of its file system.
    ///
    /// # Errors
    /// Those of `statmount(2)`.
    pub fn file_system(self) -> io::Result<String> {
        let told = self.ask(STATMOUNT_FS_TYPE)?;
        Ok(told.text(told.about.fs_type)?.to_string_lossy().into_owned())
    }

    /// Where it is mounted.
    ///
    /// # Errors
    /// Those of `statmount(2)`.
    pub fn point(self) -> io::Result<PathBuf> {
        let told = self.ask(STATMOUNT_MNT_POINT)?;
        Ok(OsStr::from_bytes(told.text(told.about.mnt_point)?.to_bytes()).into())
    }

    /// The mounts below it, and those below them.
    ///
    /// # Errors
    /// Those of `listmount(2)`.
    pub fn below(self) -> io::Result<Vec<Self>> {
        let mut all = Vec::new();
        let mut last = 0;
        loop {
            let request = self.request(last);
            let mut ids = [0_u64; LISTED];
            // SAFETY: the kernel reads the request, and writes no more ids than there is room for.
            let count =
                unsafe { libc::syscall(__NR_listmount.into(), &raw const request, ids.as_mut_ptr(), ids.len(), 0) };
            let count = usize::try_from(Errno::result(count)?).map_err(io::Error::other)?;
            all.extend(ids.iter().take(count).copied().map(Self));
            match ids.last() {
                Some(id) if count == ids.len() => last = *id,
                _ => return Ok(all),
            }
        }
    }

    fn request(self, param: u64) -> mnt_id_req {
        let size = u32::try_from(size_of::<mnt_id_req>()).unwrap_or_default();
        mnt_id_req { size, spare: 0, mnt_id: self.0, param, mnt_ns_id: 0 }
    }

    fn ask(self, what: u32) -> io::Result<Box<Told>> {
        let request = self.request(what.into());
        // SAFETY: numbers and bytes, all of which may be zero.
        let mut told: Box<Told> = unsafe { Box::new(std::mem::zeroed()) };
        // SAFETY: the kernel reads the request, and writes no more than the size of what it is given.
        let done =
            unsafe { libc::syscall(__NR_statmount.into(), &raw const request, &raw mut *told, size_of::<Told>(), 0) };
        Errno::result(done)?;
        if told.about.mask & u64::from(what) == 0 {
            return Err(ErrorKind::Unsupported.into());
        }
        Ok(told)
    }
}

/// What `statmount(2)` writes: the structure, and the texts that its fields say the places of.
#[repr(C)]
struct Told {
    about: statmount,
    text: [u8; TEXT_BYTES],
}

impl Told {
    fn text(&self, place: u32) -> io::Result<&CStr> {
        let rest = usize::try_from(place).ok().and_then(|place| self.text.get(place..));
        rest.and_then(|rest| CStr::from_bytes_until_nul(rest).ok()).ok_or_else(|| Error::from(ErrorKind::InvalidData))
    }
}

#[cfg(test)]
mod tests {
    use std::fs::File;
    use std::path::Path;

    use super::*;

    fn at(path: &str) -> MountId {
        MountId::of(File::open(path).unwrap()).unwrap()
    }

    #[test]
    fn a_mount_has_its_place_and_its_file_system() {
        match MountId::of(File::open("/proc").unwrap()) {
            Err(error) if error.kind() == ErrorKind::Unsupported => {
                return println!("skipped: Linux is older than 6.8");
            }
            proc => assert_eq!(proc.unwrap(), at("/proc/self/status")),
        }
        assert_ne!(at("/proc"), at("/"));
        assert_eq!(at("/proc").point().unwrap(), Path::new("/proc"));
        assert_eq!(at("/proc").file_system().unwrap(), "proc");
        assert_eq!(at("/sys").file_system().unwrap(), "sysfs");
    }

    #[test]
    fn the_mounts_below_are_those_of_the_kernels_own_list() {
        let Ok(root) = MountId::of(File::open("/").unwrap()) else {
            return println!("skipped: Linux is older than 6.8");
        };
        let mut below: Vec<_> = root.below().unwrap().into_iter().filter_map(|id| id.point().ok()).collect();
        let mut listed = Vec::new();
        crate::mounts::each_mount(|line| {
            listed.extend(line.split(' ').nth(4).map(crate::mounts::unescape));
            std::ops::ControlFlow::Continue(())
        })
        .unwrap();
        // Other tests mount and unmount meanwhile.
        let is_of_a_test = |path: &PathBuf| path.starts_with(std::env::temp_dir()) || path.starts_with("/run");
        for paths in [&mut below, &mut listed] {
            paths.retain(|path| !is_of_a_test(path) && path != Path::new("/"));
            paths.sort();
        }
        assert_eq!(below, listed);
        assert!(below.contains(&PathBuf::from("/proc")), "{below:?}");
        let none = MountId(u64::MAX - 1);
        assert_eq!(none.file_system().unwrap_err().kind(), ErrorKind::NotFound);
        assert_eq!(none.below().unwrap_err().kind(), ErrorKind::NotFound);
    }
}
