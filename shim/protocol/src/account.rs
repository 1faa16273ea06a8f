//! The account: what the engine reports about its guest's memory, in a page that it shares with every holder of the file.
//!
//! The container can write anything there, so a reader must treat it as the container's claim about itself.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::sync::atomic::{AtomicU64, Ordering};

use nix::fcntl::{FcntlArg, SealFlag, fcntl};
use nix::sys::memfd::{MFdFlags, memfd_create};
use serde::{Deserialize, Serialize};
use skiff_linux::memory::{PAGE_BYTES, shared_words};

/// The name of the file in the container's bundle.
pub const ACCOUNT_FILE: &str = "account";

/// The first word of an account, which identifies its release: the last byte is the version.
const FORM: u64 = u64::from_be_bytes(*b"skiffac2");

/// The words of an account, in order.
#[derive(Clone, Copy)]
enum Word {
    Form,
    Used,
    Peak,
    Refusals,
    RanOut,
    /// 0 means no limit.
    Limit,
}

/// How many words there are.
const WORDS: usize = Word::Limit as usize + 1;

/// The values of an account.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Figures {
    /// The size of the guest's linear memories, tables and GC heaps together, in bytes.
    pub linear_memory_bytes: u64,
    /// The largest size that they had at one time, in bytes.
    pub peak_bytes: u64,
    /// How many growths were refused.
    pub refusals: u64,
    /// Whether the guest gave up because a growth was refused.
    pub ran_out: bool,
    /// The container's memory limit when the guest last grew, in bytes.
    pub limit_bytes: Option<u64>,
}

/// An account as its engine writes it.
#[derive(Debug)]
pub struct Account(&'static [AtomicU64; WORDS]);

impl Account {
    /// Makes an empty account: a page of memory that no holder of the file can grow or shrink.
    ///
    /// # Errors
    /// Those of `memfd_create(2)`, `ftruncate(2)` and of sealing it.
    pub fn create() -> io::Result<File> {
        let flags = MFdFlags::MFD_CLOEXEC | MFdFlags::MFD_ALLOW_SEALING;
        let file = File::from(memfd_create(c"skiff-account", flags)?);
        file.set_len(PAGE_BYTES)?;
        let seals = SealFlag::F_SEAL_SHRINK | SealFlag::F_SEAL_GROW | SealFlag::F_SEAL_SEAL;
        fcntl(&file, FcntlArg::F_ADD_SEALS(seals))?;
        Ok(file)
    }

    /// Writes the account to `file`, which [`Account::create`] made, as long as the process lives.
    ///
    /// # Errors
    /// Those of `mmap(2)`; `InvalidInput` for a file shorter than an account.
    pub fn keep_in(file: &File) -> io::Result<Self> {
        let account = Self(shared_words(file)?);
        account.word(Word::Form).store(FORM, Ordering::Relaxed);
        Ok(account)
    }

    fn word(&self, word: Word) -> &AtomicU64 {
        &self.0[word as usize]
    }

    /// Adds `bytes` to the size of the guest's memories, tables and heaps.
    ///
    /// # Errors
    /// Their present size, when the sum would exceed `max_bytes`. Then nothing is added.
    pub fn take(&self, bytes: u64, max_bytes: u64) -> Result<(), u64> {
        let fits = |used: u64| used.checked_add(bytes).filter(|sum| *sum <= max_bytes);
        let used = self.word(Word::Used).fetch_update(Ordering::Relaxed, Ordering::Relaxed, fits)?;
        self.word(Word::Peak).fetch_max(used + bytes, Ordering::Relaxed);
        Ok(())
    }

    /// Subtracts `bytes` that were added before.
    pub fn give_back(&self, bytes: u64) {
        self.word(Word::Used).fetch_sub(bytes, Ordering::Relaxed);
    }

    /// The size of the guest's memories, tables and heaps together, in bytes.
    pub fn used_bytes(&self) -> u64 {
        self.word(Word::Used).load(Ordering::Relaxed)
    }

    /// Counts a refused growth.
    pub fn add_refusal(&self) {
        self.word(Word::Refusals).fetch_add(1, Ordering::Relaxed);
    }

    /// Records the container's memory limit.
    pub fn set_limit(&self, limit_bytes: Option<u64>) {
        self.word(Word::Limit).store(limit_bytes.unwrap_or(0), Ordering::Relaxed);
    }

    /// Records that the guest gave up because it ran out of memory.
    pub fn set_ran_out(&self) {
        self.word(Word::RanOut).store(1, Ordering::Relaxed);
    }
}

impl Figures {
    /// Reads the account in `file`; everything is 0 before a guest has been prepared.
    ///
    /// # Errors
    /// Those of `pread(2)`; `InvalidData` for an account of another release of skiff.
    pub fn read(file: &File) -> io::Result<Self> {
        let mut bytes = [0_u8; WORDS * 8];
        let length = file.read_at(&mut bytes, 0)?;
        if length < bytes.len() {
            return Ok(Self::default());
        }
        let mut words = [0_u64; WORDS];
        for (word, bytes) in words.iter_mut().zip(bytes.chunks_exact(8)) {
            *word = bytes.try_into().map_or(0, u64::from_ne_bytes);
        }
        let word = |word: Word| words[word as usize];
        match word(Word::Form) {
            FORM => Ok(Self {
                linear_memory_bytes: word(Word::Used),
                peak_bytes: word(Word::Peak),
                refusals: word(Word::Refusals),
                ran_out: word(Word::RanOut) != 0,
                limit_bytes: Some(word(Word::Limit)).filter(|bytes| *bytes > 0),
            }),
            0 => Ok(Self::default()),
            _ => Err(io::Error::new(
                io::ErrorKind::InvalidData,
                "the account is one of another release of skiff: use the `skiff` that is beside the pod's shim",
            )),
        }
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
        file.write_at(b"another ", 0).unwrap();
        assert!(Figures::read(&file).unwrap_err().to_string().contains("another release"));
        for bytes in [0, 1 << 20] {
            assert_eq!(file.set_len(bytes).unwrap_err().kind(), io::ErrorKind::PermissionDenied, "{bytes}");
        }
    }
}
