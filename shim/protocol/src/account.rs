//! The account: what the engine tells of its guest's memory, in a page that it shares with whoever holds the file.
//!
//! The container's side can write there what it likes: to a reader it is a claim of the container about itself.

use std::fs::File;
use std::io;
use std::num::NonZero;
use std::os::unix::fs::FileExt;
use std::ptr::NonNull;
use std::sync::atomic::{AtomicU64, Ordering};

use nix::fcntl::{FcntlArg, SealFlag, fcntl};
use nix::sys::memfd::{MFdFlags, memfd_create};
use nix::sys::mman::{MapFlags, ProtFlags, mmap};
use serde::{Deserialize, Serialize};

/// The name of the file in the container's bundle.
pub const ACCOUNT_FILE: &str = "account";

const PAGE_BYTES: NonZero<usize> = NonZero::new(4096).unwrap();

/// What an account says.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Figures {
    /// What the guest's linear memories, tables and GC heaps take, in bytes.
    pub linear_memory_bytes: u64,
    /// The most that they took at one time, in bytes.
    pub peak_bytes: u64,
    /// How many growths were refused.
    pub refusals: u64,
    /// Whether the guest gave up because a growth was refused.
    pub ran_out: bool,
    /// The container's memory limit when the guest last grew, in bytes.
    pub limit_bytes: Option<u64>,
}

/// An account that is kept.
#[derive(Debug)]
pub struct Account(&'static Page);

#[derive(Debug)]
#[repr(C)]
struct Page {
    used: AtomicU64,
    peak: AtomicU64,
    refusals: AtomicU64,
    ran_out: AtomicU64,
    /// 0 for none.
    limit: AtomicU64,
}

impl Account {
    /// Makes an empty account: a page of memory that nobody who gets the file can make longer or shorter.
    ///
    /// # Errors
    /// Those of `memfd_create(2)`, `ftruncate(2)` and of sealing it.
    pub fn create() -> io::Result<File> {
        let flags = MFdFlags::MFD_CLOEXEC | MFdFlags::MFD_ALLOW_SEALING;
        let file = File::from(memfd_create(c"skiff-account", flags)?);
        file.set_len(PAGE_BYTES.get() as u64)?;
        let seals = SealFlag::F_SEAL_SHRINK | SealFlag::F_SEAL_GROW | SealFlag::F_SEAL_SEAL;
        fcntl(&file, FcntlArg::F_ADD_SEALS(seals))?;
        Ok(file)
    }

    /// Keeps the account in `file`, which [`Account::create`] made, for as long as the process lives.
    ///
    /// # Errors
    /// Those of `mmap(2)`; `InvalidInput` for a file that is shorter than an account.
    pub fn keep_in(file: &File) -> io::Result<Self> {
        if file.metadata()?.len() < PAGE_BYTES.get() as u64 {
            return Err(io::Error::new(io::ErrorKind::InvalidInput, "this is not an account"));
        }
        let protection = ProtFlags::PROT_READ | ProtFlags::PROT_WRITE;
        // SAFETY: a new mapping at an address of the kernel's choice touches no memory of Rust's.
        let page: NonNull<Page> = unsafe { mmap(None, PAGE_BYTES, protection, MapFlags::MAP_SHARED, file, 0)? }.cast();
        // SAFETY: the mapping is a whole page, aligned, never unmapped, and of atomics only, which others may change.
        Ok(Self(unsafe { page.as_ref() }))
    }

    /// Adds `bytes` to what the guest's memories, tables and heaps take.
    ///
    /// # Errors
    /// What they take already, when the sum would be over `max_bytes`: nothing is added then.
    pub fn take(&self, bytes: u64, max_bytes: u64) -> Result<(), u64> {
        let fits = |used: u64| used.checked_add(bytes).filter(|sum| *sum <= max_bytes);
        let used = self.0.used.fetch_update(Ordering::Relaxed, Ordering::Relaxed, fits)?;
        self.0.peak.fetch_max(used + bytes, Ordering::Relaxed);
        Ok(())
    }

    /// Subtracts `bytes` that were added before.
    pub fn give_back(&self, bytes: u64) {
        self.0.used.fetch_sub(bytes, Ordering::Relaxed);
    }

    /// What the guest's memories, tables and heaps take, in bytes.
    pub fn used_bytes(&self) -> u64 {
        self.0.used.load(Ordering::Relaxed)
    }

    /// Notes a refused growth.
    pub fn add_refusal(&self) {
        self.0.refusals.fetch_add(1, Ordering::Relaxed);
    }

    /// Notes the container's memory limit.
    pub fn set_limit(&self, limit_bytes: Option<u64>) {
        self.0.limit.store(limit_bytes.unwrap_or(0), Ordering::Relaxed);
    }

    /// Notes that the guest gave up for want of memory.
    pub fn set_ran_out(&self) {
        self.0.ran_out.store(1, Ordering::Relaxed);
    }
}

impl Figures {
    /// Reads the account in `file`; all is 0 before a guest has been prepared.
    ///
    /// # Errors
    /// Those of `pread(2)`.
    pub fn read(file: &File) -> io::Result<Self> {
        let mut bytes = [0_u8; size_of::<Page>()];
        let length = file.read_at(&mut bytes, 0)?;
        if length < bytes.len() {
            return Ok(Self::default());
        }
        let mut words = bytes.chunks_exact(8).map(|word| word.try_into().map_or(0, u64::from_ne_bytes));
        let mut word = || words.next().unwrap_or(0);
        Ok(Self {
            linear_memory_bytes: word(),
            peak_bytes: word(),
            refusals: word(),
            ran_out: word() != 0,
            limit_bytes: Some(word()).filter(|bytes| *bytes > 0),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_reader_sees_what_is_kept() {
        let file = Account::create().unwrap();
        assert_eq!(Figures::read(&file).unwrap(), Figures::default());
        let account = Account::keep_in(&file).unwrap();
        account.take(300, 300).unwrap();
        assert_eq!(account.take(1, 300), Err(300));
        account.give_back(100);
        account.add_refusal();
        account.add_refusal();
        account.set_limit(Some(400));
        let expected =
            Figures { linear_memory_bytes: 200, peak_bytes: 300, refusals: 2, ran_out: false, limit_bytes: Some(400) };
        assert_eq!(Figures::read(&file).unwrap(), expected);
        account.set_ran_out();
        assert!(Figures::read(&file).unwrap().ran_out);
        for bytes in [0, 1 << 20] {
            assert_eq!(file.set_len(bytes).unwrap_err().kind(), io::ErrorKind::PermissionDenied, "{bytes}");
        }
    }
}
