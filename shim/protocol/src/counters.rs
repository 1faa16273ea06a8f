//! The counters of a node's cache of compiled code: a small file in the cache's directory that every shim of the node adds to.
//!
//! It is read and written under a lock rather than mapped: writing to a mapped file on a full disk ends the process.

use std::fs::{File, OpenOptions, TryLockError};
use std::io;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::Path;
use std::time::Duration;

use nix::fcntl::OFlag;
use nix::poll::{PollTimeout, poll};

/// The name of the file in the cache's directory. It changes with the file's form.
pub const COUNTERS_FILE: &str = "counters.1";

/// How often the lock is tried; nobody holds it for more than a read and a write.
const TRIES: usize = 10;
/// How many numbers there are.
const WORDS: usize = 6;

/// What the shims of a node have done since the cache was made.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counters {
    /// How often a container's code was in the cache.
    pub hits: u64,
    /// How often it was not.
    pub misses: u64,
    /// How many compilations have ended.
    pub compilations: u64,
    /// How many of them failed because of the module or its limits, and would again.
    pub failures: u64,
    /// How long all of them took together.
    pub compile_time: Duration,
    /// How many entries were removed to make room for others.
    pub evictions: u64,
}

impl Counters {
    /// Reads the counters of the cache in `dir`; everything is 0 before there are any.
    ///
    /// # Errors
    /// Those of opening and reading the file.
    pub fn read(dir: &Path) -> io::Result<Self> {
        match open(dir, OpenOptions::new().read(true)) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(Self::default()),
            file => Self::read_from(&file?),
        }
    }

    /// Adds these numbers to the counters of the cache in `dir`, a directory that nobody else can write to. No container waits long
    /// to be counted.
    ///
    /// # Errors
    /// `WouldBlock` if others hold the file's lock; those of opening, locking, reading and writing the file.
    pub fn add_to(&self, dir: &Path) -> io::Result<()> {
        let file = open(dir, OpenOptions::new().read(true).write(true).create(true).mode(0o600))?;
        lock(&file)?;
        let before = Self::read_from(&file)?;
        let mut bytes = [0_u8; WORDS * 8];
        for (place, (old, new)) in bytes.chunks_exact_mut(8).zip(before.words().into_iter().zip(self.words())) {
            place.copy_from_slice(&old.saturating_add(new).to_le_bytes());
        }
        file.write_all_at(&bytes, 0)
    }

    fn read_from(file: &File) -> io::Result<Self> {
        let mut bytes = [0_u8; WORDS * 8];
        // A file that is too short was never written whole: what is missing is 0.
        let _length = file.read_at(&mut bytes, 0)?;
        let mut words = [0_u64; WORDS];
        for (word, bytes) in words.iter_mut().zip(bytes.chunks_exact(8)) {
            *word = bytes.try_into().map_or(0, u64::from_le_bytes);
        }
        let [hits, misses, compilations, failures, micros, evictions] = words;
        Ok(Self { hits, misses, compilations, failures, compile_time: Duration::from_micros(micros), evictions })
    }

    fn words(&self) -> [u64; WORDS] {
        let Self { hits, misses, compilations, failures, compile_time, evictions } = *self;
        let micros = u64::try_from(compile_time.as_micros()).unwrap_or(u64::MAX);
        [hits, misses, compilations, failures, micros, evictions]
    }
}

fn lock(file: &File) -> io::Result<()> {
    for _ in 1..TRIES {
        match file.try_lock() {
            // An empty poll waits for a millisecond.
            Err(TryLockError::WouldBlock) => drop(poll(&mut [], PollTimeout::from(1_u8))),
            locked => return Ok(locked?),
        }
    }
    Ok(file.try_lock()?)
}

fn open(dir: &Path, options: &mut OpenOptions) -> io::Result<File> {
    let file = options.custom_flags((OFlag::O_NOFOLLOW | OFlag::O_NONBLOCK).bits()).open(dir.join(COUNTERS_FILE))?;
    if !file.metadata()?.is_file() {
        return Err(io::Error::new(io::ErrorKind::InvalidInput, format!("`{COUNTERS_FILE}` is not a regular file")));
    }
    Ok(file)
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::{PermissionsExt, symlink};
    use std::thread;

    use super::*;

    #[test]
    fn what_several_shims_add_at_once_is_counted_once_each() {
        let dir = tempfile::tempdir().unwrap();
        assert_eq!(Counters::read(dir.path()).unwrap(), Counters::default());
        let more = Counters { hits: 1, compile_time: Duration::from_micros(3), ..Counters::default() };
        thread::scope(|scope| {
            for _ in 0..8 {
                scope.spawn(|| {
                    for _ in 0..50 {
                        while let Err(error) = more.add_to(dir.path()) {
                            assert_eq!(error.kind(), io::ErrorKind::WouldBlock, "{error}");
                        }
                    }
                });
            }
        });
        let sum = Counters { hits: 400, compile_time: Duration::from_micros(1200), ..Counters::default() };
        assert_eq!(Counters::read(dir.path()).unwrap(), sum);
        let mode = fs::metadata(dir.path().join(COUNTERS_FILE)).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
    }

    #[test]
    fn nobody_waits_for_whoever_keeps_the_lock() {
        let dir = tempfile::tempdir().unwrap();
        let more = Counters { hits: 1, ..Counters::default() };
        more.add_to(dir.path()).unwrap();
        let file = File::open(dir.path().join(COUNTERS_FILE)).unwrap();
        file.lock().unwrap();
        assert_eq!(more.add_to(dir.path()).unwrap_err().kind(), io::ErrorKind::WouldBlock);
        file.unlock().unwrap();
        more.add_to(dir.path()).unwrap();
        assert_eq!(Counters::read(dir.path()).unwrap().hits, 2);
    }

    #[test]
    fn whatever_is_in_the_place_of_the_file_is_read_without_harm() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join(COUNTERS_FILE);
        fs::write(&path, [1]).unwrap();
        assert_eq!(Counters::read(dir.path()).unwrap().hits, 1);
        fs::write(&path, [u8::MAX; 100]).unwrap();
        Counters { failures: 1, ..Counters::default() }.add_to(dir.path()).unwrap();
        let read = Counters::read(dir.path()).unwrap();
        assert_eq!(read.failures, u64::MAX);
        assert!(read.compile_time.as_secs_f64().is_finite());
        fs::remove_file(&path).unwrap();
        symlink("/etc/passwd", &path).unwrap();
        assert!(Counters::read(dir.path()).is_err());
        fs::remove_file(&path).unwrap();
        fs::create_dir(&path).unwrap();
        assert!(Counters::read(dir.path()).is_err());
    }
}
