//! The account: what the engines of a container report about their guests, in two pages that they share with every holder of the file:
//! the memory of the guests as [`Figures`], what they do as [`Activity`], and which of their functions were called as [`CalledFunctions`].
//! Each process has a place of its own.
//!
//! The container can write anything there, so a reader must treat it as the container's claim about itself.

mod activity;
mod calls;
mod places;

use std::fs::{self, File};
use std::io;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use nix::fcntl::{FcntlArg, SealFlag, fcntl};
use nix::sys::memfd::{MFdFlags, memfd_create};
use serde::{Deserialize, Serialize};
use skiff_linux::memory::{shared_bytes, shared_words};

pub use self::activity::{Activity, CODE_CLASSES, DURATION_BOUNDS};
use self::activity::{DURATIONS, bucket, class};
pub use self::calls::{CalledFunction, CalledFunctions, FUNCTION_NAME_BYTES_MAX, FUNCTIONS_MAX, OTHER_FUNCTIONS};
pub use self::places::PLACES;
use self::places::Places;

/// The name of the link in the container's bundle that leads to the file.
pub const ACCOUNT_FILE: &str = "account";

/// The process that holds the account of the container in `bundle`, and its descriptor, as the link there says.
pub fn account_holder(bundle: &Path) -> Option<(u32, u32)> {
    let link = fs::read_link(bundle.join(ACCOUNT_FILE)).ok()?;
    let (pid, descriptor) = link.to_str()?.strip_prefix("/proc/")?.split_once("/fd/")?;
    Some((pid.parse().ok()?, descriptor.parse().ok()?))
}

/// The first word of an account, which identifies its release: the last byte is the version.
const FORM: u64 = u64::from_be_bytes(*b"skiffac5");

/// The words of an account, in order.
#[derive(Clone, Copy)]
enum Word {
    Form,
    Peak,
    Refusals,
    RanOut,
    /// 0 means no limit.
    Limit,
    /// Whether the guest is a server: 1, otherwise 0.
    Serves,
    Traps,
    /// The sum of the durations of all requests, in microseconds.
    RequestMicros,
}

/// Where the slots begin that count requests, one for each class of codes.
const REQUESTS: usize = Word::RequestMicros as usize + 1;
/// Where the slots begin that count requests by their duration.
const BUCKETS: usize = REQUESTS + CODE_CLASSES.len();
/// Where the places of the processes begin.
const PROCESSES: usize = BUCKETS + DURATIONS;
/// Where the called functions begin.
const CALLS: usize = PROCESSES + places::WORDS;
/// How many words there are.
const WORDS: usize = CALLS + calls::WORDS;
/// The size of an account, in bytes.
const BYTES: u64 = shared_bytes(WORDS) as u64;

/// The values of an account.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Figures {
    /// The size of the linear memories, tables and GC heaps of all guests together, and what is kept for the processes that were
    /// started beside the first one, in bytes.
    pub linear_memory_bytes: u64,
    /// The largest size that it had at one time, in bytes.
    pub peak_bytes: u64,
    /// How many growths were refused.
    pub refusals: u64,
    /// Whether the guest gave up because a growth was refused.
    pub ran_out: bool,
    /// The container's memory limit when the guest last grew, in bytes.
    pub limit_bytes: Option<u64>,
}

/// An account as an engine writes it. Its pages stay mapped as long as the process lives.
#[derive(Clone, Copy, Debug)]
pub struct Account {
    words: &'static [AtomicU64; WORDS],
    /// The place of this process; 0 is that of the container's guest.
    place: usize,
}

impl Account {
    /// Makes an empty account: pages of memory that no holder of the file can grow or shrink.
    ///
    /// # Errors
    /// Those of `memfd_create(2)`, `ftruncate(2)` and of sealing it.
    pub fn create() -> io::Result<File> {
        let flags = MFdFlags::MFD_CLOEXEC | MFdFlags::MFD_ALLOW_SEALING;
        let file = File::from(memfd_create(c"skiff-account", flags)?);
        file.set_len(BYTES)?;
        let seals = SealFlag::F_SEAL_SHRINK | SealFlag::F_SEAL_GROW | SealFlag::F_SEAL_SEAL;
        fcntl(&file, FcntlArg::F_ADD_SEALS(seals))?;
        Ok(file)
    }

    /// Writes the account to `file`, which [`Account::create`] made, as the engine of the container's guest, as long as the process
    /// lives.
    ///
    /// # Errors
    /// Those of `mmap(2)`; `InvalidInput` for a file shorter than an account.
    pub fn keep_in(file: &File) -> io::Result<Self> {
        let account = Self { words: shared_words(file)?, place: 0 };
        account.word(Word::Form).store(FORM, Ordering::Relaxed);
        Ok(account)
    }

    /// The same account as the process in `place` writes it.
    ///
    /// # Errors
    /// `InvalidInput` for a place that there is not.
    pub fn in_place(self, place: usize) -> io::Result<Self> {
        if place >= PLACES {
            return Err(io::Error::new(io::ErrorKind::InvalidInput, "the account has no such place"));
        }
        Ok(Self { place, ..self })
    }

    /// Keeps `bytes` in the account in `file` for a process that is not started yet, in its `place`; or empties the place of one
    /// that has ended, for which nothing is kept any more.
    ///
    /// # Errors
    /// Those of `pwrite(2)`; `InvalidInput` for a place that there is not.
    pub fn set_place(file: &File, place: usize, bytes: u64) -> io::Result<()> {
        places::set(file, PROCESSES, place, bytes)
    }

    fn word(&self, word: Word) -> &AtomicU64 {
        &self.words[word as usize]
    }

    fn places(&self) -> Places<'_> {
        Places(&self.words[PROCESSES..CALLS])
    }

    fn count(&self, slot: usize) {
        if let Some(slot) = self.words.get(slot) {
            slot.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// Adds `bytes` to the size of this process's memories, tables and heaps.
    ///
    /// # Errors
    /// What all processes take at present, when the sum would exceed `max_bytes`. Then nothing is added.
    pub fn take(&self, bytes: u64, max_bytes: u64) -> Result<(), u64> {
        let sum = self.places().take(self.place, bytes, max_bytes)?;
        self.word(Word::Peak).fetch_max(sum, Ordering::Relaxed);
        Ok(())
    }

    /// Subtracts `bytes` that were added before.
    pub fn give_back(&self, bytes: u64) {
        self.places().give_back(self.place, bytes);
    }

    /// What all processes of the container take together, in bytes.
    pub fn used_bytes(&self) -> u64 {
        self.places().used_bytes()
    }

    /// The values that readers see.
    pub fn figures(&self) -> Figures {
        let word = |word: Word| self.word(word).load(Ordering::Relaxed);
        let used_bytes = self.used_bytes();
        Figures {
            linear_memory_bytes: used_bytes,
            peak_bytes: word(Word::Peak).max(used_bytes),
            refusals: word(Word::Refusals),
            ran_out: word(Word::RanOut) != 0,
            limit_bytes: Some(word(Word::Limit)).filter(|bytes| *bytes > 0),
        }
    }

    /// Counts a refused growth, if it is the container's guest that grew.
    pub fn add_refusal(&self) {
        if self.place == 0 {
            self.word(Word::Refusals).fetch_add(1, Ordering::Relaxed);
        }
    }

    /// Records the container's memory limit.
    pub fn set_limit(&self, limit_bytes: Option<u64>) {
        self.word(Word::Limit).store(limit_bytes.unwrap_or(0), Ordering::Relaxed);
    }

    /// Records that the guest gave up because it ran out of memory, if it is the container's: the container ends with it.
    pub fn set_ran_out(&self) {
        if self.place == 0 {
            self.word(Word::RanOut).store(1, Ordering::Relaxed);
        }
    }

    /// Records that the guest serves requests, if it is the container's.
    pub fn set_serves(&self) {
        if self.place == 0 {
            self.word(Word::Serves).store(1, Ordering::Relaxed);
        }
    }

    /// Counts an instance that is alive.
    pub fn add_instance(&self) {
        if let Some(instances) = self.places().instances_in(self.place) {
            instances.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// Subtracts an instance that was counted before.
    pub fn remove_instance(&self) {
        if let Some(instances) = self.places().instances_in(self.place) {
            instances.fetch_sub(1, Ordering::Relaxed);
        }
    }

    /// Counts a trap, if it is one of the container's guest.
    pub fn add_trap(&self) {
        if self.place == 0 {
            self.word(Word::Traps).fetch_add(1, Ordering::Relaxed);
        }
    }

    /// Counts a request that took this long, with the status code of its response if it got one.
    pub fn add_request(&self, status: Option<u16>, duration: Duration) {
        self.count(REQUESTS + class(status));
        self.count(BUCKETS + bucket(duration));
        let micros = u64::try_from(duration.as_micros()).unwrap_or(u64::MAX);
        self.word(Word::RequestMicros).fetch_add(micros, Ordering::Relaxed);
    }

    /// Gives a called function its name: slot [`FUNCTIONS_MAX`] is that of all functions without a slot of their own.
    pub fn name_function(&self, slot: usize, name: &str) {
        calls::name(&self.words[CALLS..], slot, name);
    }

    /// Counts a call of the function in this slot.
    pub fn add_call(&self, slot: usize, duration: Duration, trapped: bool) {
        calls::add(&self.words[CALLS..], slot, duration, trapped);
    }
}

/// Reads the functions that were called from the account in `file`; there are none before a guest has been prepared.
///
/// # Errors
/// Those of [`Figures::read`].
pub fn called_functions(file: &File) -> io::Result<CalledFunctions> {
    Ok(read_words(file)?.map_or_else(CalledFunctions::new, |words| calls::read(&words[CALLS..])))
}

/// Reads the words of the account in `file`; `None` before a guest has been prepared.
fn read_words(file: &File) -> io::Result<Option<[u64; WORDS]>> {
    let mut bytes = [0_u8; WORDS * 8];
    let length = file.read_at(&mut bytes, 0)?;
    let mut words = [0_u64; WORDS];
    for (word, bytes) in words.iter_mut().zip(bytes.chunks_exact(8)) {
        *word = bytes.try_into().map_or(0, u64::from_ne_bytes);
    }
    match words[Word::Form as usize] {
        FORM if length == bytes.len() => Ok(Some(words)),
        0 | FORM => Ok(None),
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
        let used_bytes = places::sums(&words[PROCESSES..CALLS]).0;
        Ok(Self {
            linear_memory_bytes: used_bytes,
            // What is kept for a process that has not grown yet was added by the shim, which does not write here.
            peak_bytes: word(Word::Peak).max(used_bytes),
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
            instances: places::sums(&words[PROCESSES..CALLS]).1,
            traps: word(Word::Traps),
            request_time: Duration::from_micros(word(Word::RequestMicros)),
            ..Self::default()
        };
        activity.requests.copy_from_slice(&words[REQUESTS..BUCKETS]);
        activity.durations.copy_from_slice(&words[BUCKETS..PROCESSES]);
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
        assert_eq!((Figures::read(&file).unwrap(), account.figures()), (expected, expected));
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
    fn processes_share_one_limit_and_leave_nothing_behind() {
        let file = Account::create().unwrap();
        let first = Account::keep_in(&file).unwrap();
        let second = first.in_place(PLACES - 1).unwrap();
        first.take(200, 300).unwrap();
        Account::set_place(&file, PLACES - 1, 40).unwrap();
        assert_eq!(second.take(61, 300), Err(240));
        second.take(60, 300).unwrap();
        assert_eq!(first.take(1, 300), Err(300));
        second.add_instance();
        first.add_instance();
        second.set_ran_out();
        second.add_refusal();
        second.add_trap();
        second.set_serves();
        let activity = Activity::read(&file).unwrap();
        assert_eq!((activity.traps, activity.serves, Figures::read(&file).unwrap().refusals), (0, false, 0));
        let figures = Figures::read(&file).unwrap();
        assert_eq!((figures.linear_memory_bytes, figures.peak_bytes, figures.ran_out), (300, 300, false));
        assert_eq!(Activity::read(&file).unwrap().instances, 2);
        // It was killed.
        Account::set_place(&file, PLACES - 1, 0).unwrap();
        assert_eq!((first.used_bytes(), Activity::read(&file).unwrap().instances), (200, 1));
        first.take(100, 300).unwrap();
        assert!(first.in_place(PLACES).is_err() && Account::set_place(&file, PLACES, 1).is_err());
    }

    #[test]
    fn processes_that_take_at_once_never_take_more_than_there_is() {
        let file = Account::create().unwrap();
        let account = Account::keep_in(&file).unwrap();
        std::thread::scope(|scope| {
            for place in 0..8 {
                let account = account.in_place(place).unwrap();
                scope.spawn(move || {
                    for _ in 0..10_000 {
                        let taken = (0..4).take_while(|_| account.take(7, 100).is_ok()).count() as u64;
                        account.give_back(7 * taken);
                    }
                });
            }
        });
        assert_eq!(account.used_bytes(), 0);
        assert!(Figures::read(&file).unwrap().peak_bytes <= 100);
        account.take(100, 100).unwrap();
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
    fn calls_are_counted_by_the_name_of_the_function() {
        let file = Account::create().unwrap();
        assert!(called_functions(&file).unwrap().is_empty());
        let account = Account::keep_in(&file).unwrap();
        account.name_function(0, "add");
        account.name_function(FUNCTIONS_MAX, OTHER_FUNCTIONS);
        account.add_call(0, Duration::from_nanos(5), false);
        account.add_call(0, Duration::from_nanos(7), true);
        account.add_call(FUNCTIONS_MAX, Duration::ZERO, false);
        let called = called_functions(&file).unwrap();
        let [time, longest] = [12, 7].map(Duration::from_nanos);
        assert_eq!(called["add"], CalledFunction { calls: 2, traps: 1, time, longest });
        assert_eq!((called.len(), called[OTHER_FUNCTIONS].calls), (2, 1));
        assert_eq!(Figures::read(&file).unwrap().linear_memory_bytes, 0);
    }

    #[test]
    fn pages_of_anything_are_read_without_harm() {
        let file = Account::create().unwrap();
        file.write_at(&[u8::MAX; WORDS * 8], 0).unwrap();
        file.write_at(&FORM.to_ne_bytes(), 0).unwrap();
        assert_eq!(Figures::read(&file).unwrap().peak_bytes, u64::MAX);
        let activity = Activity::read(&file).unwrap();
        assert_eq!(activity.requests, [u64::MAX; CODE_CLASSES.len()]);
        assert!(activity.request_time.as_secs_f64().is_finite());
    }
}
