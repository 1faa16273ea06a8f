//! Asks the kernel about single mounts, by their ids (`statmount(2)` and `listmount(2)`, Linux 6.8). `/proc/self/mountinfo` instead
//! has a line for every mount of the node: with 500 pods it takes 5 ms of processor time to read.

use std::ffi::CStr;
use std::io::{self, ErrorKind};
use std::os::fd::AsFd;

use linux_raw_sys::general::{
    __NR_listmount, __NR_statmount, MNT_ID_REQ_SIZE_VER1, STATMOUNT_FS_TYPE, STATX_MNT_ID_UNIQUE, mnt_id_req, statmount,
};
use nix::errno::Errno;
use rustix::fs::{AtFlags, StatxFlags, statx};

/// More than the name of any type of file system.
const TEXT_BYTES: usize = 256;

/// The id of a mount, which is never reused.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MountId(u64);

impl MountId {
    /// The mount that an open file is on.
    ///
    /// # Errors
    /// Those of `statx(2)`; `Unsupported` before Linux 6.8.
    pub fn of(file: impl AsFd) -> io::Result<Self> {
        let flags = AtFlags::EMPTY_PATH | AtFlags::STATX_DONT_SYNC;
        let found = statx(file, c"", flags, StatxFlags::from_bits_retain(STATX_MNT_ID_UNIQUE))?;
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
        /// What `statmount(2)` writes: the structure, and the strings that its offsets point to.
        #[repr(C)]
        struct Told {
            about: statmount,
            text: [u8; TEXT_BYTES],
        }
        let request = self.request(STATMOUNT_FS_TYPE.into());
        // SAFETY: numbers and bytes, all of which may be zero.
        let mut told: Told = unsafe { std::mem::zeroed() };
        // SAFETY: the kernel reads the request, and writes no more than the size of what it is given.
        let done =
            unsafe { libc::syscall(__NR_statmount.into(), &raw const request, &raw mut told, size_of::<Told>(), 0) };
        Errno::result(done)?;
        let is_told = told.about.mask & u64::from(STATMOUNT_FS_TYPE) != 0;
        let place = usize::try_from(told.about.fs_type).ok().filter(|_| is_told);
        let text = place.and_then(|place| CStr::from_bytes_until_nul(told.text.get(place..)?).ok());
        Ok(text.ok_or(ErrorKind::InvalidData)?.to_string_lossy().into_owned())
    }

    /// Whether anything is mounted below it.
    ///
    /// # Errors
    /// Those of `listmount(2)`.
    pub fn has_mounts_below(self) -> io::Result<bool> {
        let request = self.request(0);
        let mut id = 0_u64;
        // SAFETY: the kernel reads the request, and writes the one id that there is room for.
        let count = unsafe { libc::syscall(__NR_listmount.into(), &raw const request, &raw mut id, 1, 0) };
        Ok(Errno::result(count)? > 0)
    }

    fn request(self, param: u64) -> mnt_id_req {
        mnt_id_req { size: MNT_ID_REQ_SIZE_VER1, spare: 0, mnt_id: self.0, param, mnt_ns_id: 0 }
    }
}

#[cfg(test)]
mod tests {
    use std::fs::File;
    use std::ops::ControlFlow;

    use super::*;
    use crate::mounts::each_mount;

    #[test]
    fn the_kernel_says_of_a_mount_what_its_list_says() {
        let at = |path: &str| MountId::of(File::open(path).unwrap());
        match at("/proc") {
            Err(error) if error.kind() == ErrorKind::Unsupported => {
                return println!("skipped: Linux is older than 6.8");
            }
            proc => assert_eq!(proc.unwrap(), at("/proc/self/status").unwrap()),
        }
        let mut listed: Vec<Vec<String>> = Vec::new();
        each_mount(|line| {
            listed.push(line.split(' ').map(Into::into).collect());
            ControlFlow::Continue(())
        })
        .unwrap();
        for path in ["/", "/proc", "/sys", "/dev", "/dev/pts"] {
            // The last one covers the others.
            let Some(line) = listed.iter().rfind(|line| line[4] == path) else { continue };
            let kind = line.iter().skip_while(|field| *field != "-").nth(1).unwrap();
            let mount = at(path).unwrap();
            assert_eq!(mount.file_system().unwrap(), *kind, "{path}");
            let has_mounts_below = listed.iter().any(|below| below[1] == line[0]);
            assert_eq!(mount.has_mounts_below().unwrap(), has_mounts_below, "{path}");
        }
        let none = MountId(u64::MAX - 1);
        assert_eq!(none.file_system().unwrap_err().kind(), ErrorKind::NotFound);
        assert_eq!(none.has_mounts_below().unwrap_err().kind(), ErrorKind::NotFound);
    }
}
