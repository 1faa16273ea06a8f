//! The account: what the engine reports about its guest, in a page that it shares with every holder of the file: the guest's
//! memory as [`Figures`], and what it does as [`Activity`].
//!
//! The container can write anything there, so a reader must treat it as the container's claim about itself.

mod activity;

use std::fs::{self, File};
use std::io;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use nix::fcntl::{FcntlArg, SealFlag, fcntl};
use nix::sys::memfd::{MFdFlags, memfd_create};
use serde::{Deserialize, Serialize};
use skiff_linux::memory::{PAGE_BYTES, shared_words};

pub use self::activity::{Activity, CODE_CLASSES, DURATION_BOUNDS};
use self::activity::{DURATIONS, bucket, class};

/// The name of the link in the container's bundle that leads to the file.
pub const ACCOUNT_FILE: &str = "account";

/// The process that holds the account of the container in `bundle`, and its descriptor, as the link there says.
pub fn account_holder(bundle: &Path) -> Option<(u32, u32)> {
    let link = fs::read_link(bundle.join(ACCOUNT_FILE)).ok()?;
    let (pid, descriptor) = link.to_str()?.strip_prefix("/proc/")?.split_once("/fd/")?;
    Some((pid.parse().ok()?, descriptor.parse().ok()?))
}

/// The first word of an account, which identifies its release: the last byte is the version.
const FORM: u64 = u64::from_be_bytes(*b"skiffac3");

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
    /// Whether the guest is a server: 1, otherwise 0.
    Serves,
    Instances,
    Traps,
    /// The sum of the durations of all requests, in microseconds.
    RequestMicros,
}

/// Where the slots begin that count requests, one for each class of codes.
const REQUESTS: usize = Word::RequestMicros as usize + 1;
/// Where the slots begin that count requests by their duration.
const BUCKETS: usize = REQUESTS + CODE_CLASSES.len();
/// How many words there are.
const WORDS: usize = BUCKETS + DURATIONS;

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

/// An account as its engine writes it. Its page stays mapped as long as the process lives.
#[derive(Clone, Copy, Debug)]
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

    fn count(&self, slot: usize) {
        if let Some(slot) = self.0.get(slot) {
            slot.fetch_add(1, Ordering::Relaxed);
        }
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

    /// Records that the guest serves requests.
    pub fn set_serves(&self) {
        self.word(Word::Serves).store(1, Ordering::Relaxed);
    }

    /// Counts an instance that is alive.
    pub fn add_instance(&self) {
        self.word(Word::Instances).fetch_add(1, Ordering::Relaxed);
    }

    /// Subtracts an instance that was counted before.
    pub fn remove_instance(&self) {
        self.word(Word::Instances).fetch_sub(1, Ordering::Relaxed);
    }

    /// Counts a trap.
    pub fn add_trap(&self) {
        self.word(Word::Traps).fetch_add(1, Ordering::Relaxed);
    }

    /// Counts a request that took this long, with the status code of its response if it got one.
    pub fn add_request(&self, status: Option<u16>, duration: Duration) {
        self.count(REQUESTS + class(status));
        self.count(BUCKETS + bucket(duration));
        let micros = u64::try_from(duration.as_micros()).unwrap_or(u64::MAX);
        self.word(Word::RequestMicros).fetch_add(micros, Ordering::Relaxed);
    }
}

/// Reads the words of the account in `file`; `None` before a guest has been prepared.
fn read_words(file: &File) -> io::Result<Option<[u64; WORDS]>> {
    let mut bytes = [0_u8; WORDS * 8];
    let length = file.read_at(&mut bytes, 0)?;
    if length < bytes.len() {
        return Ok(None);
    }
    let mut words = [0_u64; WORDS];
    for (word, bytes) in words.iter_mut().zip(bytes.chunks_exact(8)) {
        *word = bytes.try_into().map_or(0, u64::from_ne_bytes);
    }
    match words[Word::Form as usize] {
        FORM => Ok(Some(words)),
        0 => Ok(None),
        _ => Err(io::Error::new(
            io::ErrorKind::InvalidData,
            "the account is one of another release of skiff: use the `skiff` that is beside the pod's shim",
        )),
    }
}

impl Figures {
    /// Reads the account in `file`; everything is 0 before a guest has been prepared.
    ///
    /// # Errors
    /// Those of `pread(2)`; `InvalidData` for an account of another release of skiff.
    pub fn read(file: &File) -> io::Result<Self> {
        let Some(words) = read_words(file)? else { return Ok(Self::default()) };
        let word = |word: Word| words[word as usize];
        Ok(Self {
            linear_memory_bytes: word(Word::Used),
            peak_bytes: word(Word::Peak),
            refusals: word(Word::Refusals),
            ran_out: word(Word::RanOut) != 0,
            limit_bytes: Some(word(Word::Limit)).filter(|bytes| *bytes > 0),
        })
    }
}

impl Activity {
    /// Reads the account in `file`; everything is 0 before a guest has been prepared.
    ///
    /// # Errors
    /// Those of [`Figures::read`].
    pub fn read(file: &File) -> io::Result<Self> {
        let Some(words) = read_words(file)? else { return Ok(Self::default()) };
        let word = |word: Word| words[word as usize];
        let mut activity = Self {
            serves: word(Word::Serves) != 0,
            instances: word(Word::Instances),
            traps: word(Word::Traps),
            request_time: Duration::from_micros(word(Word::RequestMicros)),
            ..Self::default()
        };
        activity.requests.copy_from_slice(&words[REQUESTS..BUCKETS]);
        activity.durations.copy_from_slice(&words[BUCKETS..]);
        Ok(activity)
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
        assert!(Activity::read(&file).is_err());
        for bytes in [0, 1 << 20] {
            assert_eq!(file.set_len(bytes).unwrap_err().kind(), io::ErrorKind::PermissionDenied, "{bytes}");
        }
    }
    #[test]
    fn what_a_guest_does_is_counted() {
        let file = Account::create().unwrap();
        assert_eq!(Activity::read(&file).unwrap(), Activity::default());
        let account = Account::keep_in(&file).unwrap();
        account.set_serves();
        account.add_instance();
        account.add_instance();
        account.remove_instance();
        account.add_trap();
        account.add_request(Some(200), Duration::from_micros(500));
        account.add_request(Some(204), Duration::from_micros(501));
        account.add_request(Some(503), Duration::from_secs(3600));
        account.add_request(None, Duration::from_millis(7));
        account.add_request(Some(999), Duration::ZERO);
        let activity = Activity::read(&file).unwrap();
        assert_eq!((activity.serves, activity.instances, activity.traps), (true, 1, 1));
        assert_eq!(activity.request_time, Duration::from_micros(3_600_008_001));
        let requests: Vec<_> = CODE_CLASSES.into_iter().zip(activity.requests).collect();
        assert_eq!(requests, [("none", 2), ("1xx", 0), ("2xx", 2), ("3xx", 0), ("4xx", 0), ("5xx", 1)]);
        assert_eq!(activity.durations, [2, 1, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1]);
    }

    #[test]
    fn a_page_of_anything_is_read_without_harm() {
        let file = Account::create().unwrap();
        file.write_at(&[u8::MAX; WORDS * 8], 0).unwrap();
        file.write_at(&FORM.to_ne_bytes(), 0).unwrap();
        assert_eq!(Figures::read(&file).unwrap().peak_bytes, u64::MAX);
        let activity = Activity::read(&file).unwrap();
        assert_eq!(activity.requests, [u64::MAX; CODE_CLASSES.len()]);
        assert!(activity.request_time.as_secs_f64().is_finite());
    }
}
