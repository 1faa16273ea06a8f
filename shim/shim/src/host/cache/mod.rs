//! The cache of compiled code: each guest is compiled once per node and engine, by one process at a time.
//!
//! An entry is `DIR/CODE_ID/SHA256.cwasm`: the artefact as the compiler wrote it, then a [`trailer`] that binds it to its
//! key, its owner and its own hash. wasmtime maps the whole file and ignores what follows the artefact. `SHA256.tmp` beside
//! it is both the lock of the key and the file that becomes the entry: the holder of the lock may compile, and renaming the
//! file publishes the entry. So the only thing to clean up is a `.tmp` that nobody holds. `SHA256.failed` contains the
//! sentence with which the guest recently failed to compile, and which limit on memory that was for. The directories `DIR/slot.N` are locks that limit how many
//! guests are compiled at once.
//!
//! `digests` has the digests of files that need not be hashed again, and `counters.1` the numbers of hits, misses, compilations and evictions.
//!
//! The cache does not know how code is compiled or whether an engine accepts it.

mod counters;
mod digests;
mod failures;
mod room;
mod slots;
#[cfg(test)]
mod tests;
mod trailer;
mod trust;

use std::fs::{self, DirBuilder, File, OpenOptions, Permissions};
use std::io::{self, ErrorKind};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::time::{Instant, SystemTime};

use nix::sys::memfd::{MFdFlags, memfd_create};
use skiff_protocol::names::CODE_EXTENSION;
use skiff_protocol::{CODE_ID, Counters};

pub(crate) use self::digests::FileIdentity;
use super::read_only;

/// The file name extension of a lock, which becomes the entry.
const PENDING: &str = "tmp";

/// The node's cache of compiled code.
#[derive(Clone, Debug)]
pub(crate) struct Cache {
    dir: PathBuf,
    max_bytes: u64,
}

/// A request to the cache, and on whose behalf it is made.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Wanted<'a> {
    /// The sha256 of the guest, lower-case hexadecimal.
    pub(crate) digest: &'a str,
    /// The owner of the entry: the pod's namespace. When the cache is full, the owner of most of it loses entries first.
    pub(crate) owner: &'a str,
    /// The pod, which compiles one guest at a time and takes turns with others.
    pub(crate) pod: &'a str,
    /// The memory that compiling it may take, in bytes.
    pub(crate) memory_bytes: u64,
}

/// A compilation that failed.
#[derive(Debug)]
pub(crate) struct Failure<E> {
    pub(crate) error: E,
    /// The bytes that would fail again; `None` when another attempt might succeed.
    pub(crate) lasting: Option<Lasting>,
}

/// Bytes that cannot be compiled.
#[derive(Debug)]
pub(crate) struct Lasting {
    /// Their sha256, so that a guest is not blamed for bytes that came from another one.
    pub(crate) digest: String,
    /// The reason, for everyone who wants them compiled.
    pub(crate) sentence: String,
    /// The memory that they were given and that was too little, in bytes; `None` if memory was not the reason.
    pub(crate) memory_bytes: Option<u64>,
}

/// Why there is no compiled code.
#[derive(Debug)]
pub(crate) enum CacheError<E> {
    /// The caller's compilation failed.
    Compile(E),
    /// The same guest recently failed to compile, for this reason.
    Remembered(String),
    /// The bytes that were compiled do not match the key.
    Changed,
    /// The cache itself failed; a sentence with the path.
    Host(io::Error),
}

impl<E> From<io::Error> for CacheError<E> {
    fn from(error: io::Error) -> Self {
        Self::Host(error)
    }
}

impl Cache {
    /// Opens the cache in the directory `dir`, which is made if it is missing (mode 0700). `max_bytes` limits the total
    /// size of its entries; the newest one stays whatever its size.
    ///
    /// # Errors
    /// `PermissionDenied` when anybody but root and this user can change what the path means or contains; `InvalidInput`
    /// when it is not absolute; those of making the directory.
    pub(crate) fn open(dir: &Path, max_bytes: u64) -> io::Result<Self> {
        if !dir.is_absolute() {
            return Err(io::Error::new(
                ErrorKind::InvalidInput,
                format!("the cache directory `{}` is not an absolute path", dir.display()),
            ));
        }
        if let Some(parent) = dir.parent() {
            fs::create_dir_all(parent).map_err(|error| at("make the directory", parent, &error))?;
        }
        make_private_dir(dir)?;
        trust::check_directory(dir)?;
        fs::set_permissions(dir, Permissions::from_mode(0o700)).map_err(|error| at("restrict", dir, &error))?;
        Ok(Self { dir: dir.to_owned(), max_bytes })
    }

    /// Returns the verified code of the guest whose sha256 is `digest` (lower-case hexadecimal), opened so that nobody can
    /// write to it through the descriptor. An entry that fails verification is removed and counts as a miss.
    ///
    /// # Errors
    /// `InvalidInput` for a malformed digest; those of opening the entry, or of removing a bad one.
    pub(crate) fn lookup(&self, digest: &str) -> io::Result<Option<File>> {
        let path = self.path(digest, CODE_EXTENSION)?;
        let checked = match open_entry(&path) {
            Ok(file) => trailer::verify(&file, digest).map(|()| file),
            Err(error) if error.kind() == ErrorKind::NotFound => return Ok(None),
            Err(error) if error.raw_os_error() == Some(libc::ELOOP) => Err(error),
            Err(error) => return Err(at("open", &path, &error)),
        };
        match checked {
            Ok(file) => {
                touch(&file, &path);
                // `None` when the entry has just been replaced or evicted.
                self.open_read_only(&path, &file)
            }
            Err(reason) => {
                log::warn!("removing the cache entry `{}`: {reason}", path.display());
                remove_file(&path)?;
                Ok(None)
            }
        }
    }

    /// Like [`Cache::lookup`], but compiles on a miss. `compile` writes the artefact to the empty file in memory that it is
    /// given and returns the sha256 of what it compiled. That file is not the entry itself, so a compiler never holds a
    /// published file. If several processes and threads miss the same key, one compiles and the others wait, without a time
    /// limit of their own because the compilation has one.
    ///
    /// # Errors
    /// [`CacheError::Compile`] is the error of `compile`. [`ErrorKind::StorageFull`] when the disk is still full after old
    /// entries were removed.
    // Invariant: an entry is published only under the digest of exactly the bytes that were compiled.
    pub(crate) fn get_or_compile<E>(
        &self,
        wanted: Wanted<'_>,
        compile: impl FnOnce(&File) -> Result<String, Failure<E>>,
    ) -> Result<File, CacheError<E>> {
        let known = || -> Result<Option<File>, CacheError<E>> {
            if let Some(file) = self.lookup(wanted.digest)? {
                return Ok(Some(file));
            }
            self.recent_failure(wanted)?.map_or(Ok(None), |sentence| Err(CacheError::Remembered(sentence)))
        };
        if let Some(file) = known()? {
            return Ok(self.hit(file));
        }
        let pending = self.with_room(1, || self.lock(wanted.digest))?;
        if let Some(file) = known()? {
            return Ok(self.hit(file));
        }
        self.count(&Counters { misses: 1, ..Counters::default() });
        self.compile_into(pending, wanted, compile)
    }

    /// Compiles a guest whose entry the engine refused, and replaces the entry. An entry that cannot be replaced stays.
    ///
    /// # Errors
    /// Those of [`Cache::get_or_compile`].
    pub(crate) fn recompile<E>(
        &self,
        wanted: Wanted<'_>,
        compile: impl FnOnce(&File) -> Result<String, Failure<E>>,
    ) -> Result<File, CacheError<E>> {
        let pending = self.with_room(1, || self.lock(wanted.digest))?;
        self.compile_into(pending, wanted, compile)
    }

    fn compile_into<E>(
        &self,
        pending: Pending,
        wanted: Wanted<'_>,
        compile: impl FnOnce(&File) -> Result<String, Failure<E>>,
    ) -> Result<File, CacheError<E>> {
        let slot = self.with_room(1, || self.slot(wanted.pod, wanted.memory_bytes))?;
        let output = File::from(memfd_create(c"skiff-code", MFdFlags::MFD_CLOEXEC).map_err(io::Error::from)?);
        let begun = Instant::now();
        let compiled = compile(&output);
        // A slot is never held while waiting for the lock of a key, whose holder may be waiting for a slot.
        drop(slot);
        let is_failure = match &compiled {
            Ok(digest) => digest != wanted.digest,
            Err(failure) => failure.lasting.is_some(),
        };
        let failures = u64::from(is_failure);
        let compile_time = begun.elapsed();
        self.count(&Counters { compilations: 1, failures, compile_time, ..Counters::default() });
        match compiled {
            Ok(digest) if digest == wanted.digest => Ok(self.publish(wanted, pending, &output)?),
            Ok(_other) => Err(CacheError::Changed),
            Err(failure) => {
                if let Some(lasting) = failure.lasting.filter(|lasting| lasting.digest == wanted.digest)
                    && let Err(error) = self.remember_failure(&lasting)
                {
                    log::warn!("cannot remember a failed compilation: {error}");
                }
                Err(CacheError::Compile(failure.error))
            }
        }
    }

    /// Opens the entry again, so that nobody can write to it through the descriptor. Returns `None` when it is no longer
    /// the `verified` one.
    fn open_read_only(&self, path: &Path, verified: &File) -> io::Result<Option<File>> {
        let opened = match read_only::open(&self.dir, path.strip_prefix(&self.dir).unwrap_or(path)) {
            Err(error) if error.kind() == ErrorKind::NotFound => return Ok(None),
            opened => opened?,
        };
        Ok(is_same(&verified.metadata()?, &opened.metadata()?).then_some(opened))
    }

    fn path(&self, digest: &str, extension: &str) -> io::Result<PathBuf> {
        if !is_digest(digest) {
            return Err(io::Error::new(ErrorKind::InvalidInput, format!("`{digest}` is not a sha256 digest")));
        }
        Ok(self.dir.join(CODE_ID).join(digest).with_extension(extension))
    }

    /// Waits for the lock of a key.
    fn lock(&self, digest: &str) -> io::Result<Pending> {
        let path = self.path(digest, PENDING)?;
        loop {
            let file = match open_pending(&path) {
                // The directory has not been made yet, or was removed: with its last entry, or with the whole cache.
                Err(error) if error.kind() == ErrorKind::NotFound => {
                    make_private_dir(&self.dir)?;
                    make_private_dir(&self.dir.join(CODE_ID))?;
                    continue;
                }
                opened => opened.map_err(|error| at("open", &path, &error))?,
            };
            match file.lock() {
                Err(error) if error.kind() == ErrorKind::Interrupted => continue,
                locked => locked.map_err(|error| at("lock", &path, &error))?,
            }
            // If the previous holder renamed or removed the file, this lock protects nothing.
            if is_named(&file, &path) {
                return Ok(Pending { file, path, published: false });
            }
        }
    }

    /// Turns what the compiler wrote into the wanted entry, and brings the cache back to its size.
    fn publish(&self, wanted: Wanted<'_>, pending: Pending, output: &File) -> io::Result<File> {
        let bytes = output.metadata()?.len();
        let entry = self.path(wanted.digest, CODE_EXTENSION)?;
        let publish =
            |mut pending: Pending| self.with_room(bytes, || pending.publish(&entry, wanted, output, &self.dir));
        let file = match publish(pending) {
            // Somebody has removed the cache's files meanwhile, and another process may have begun anew.
            Err(error) if error.kind() == ErrorKind::NotFound => {
                let pending = self.lock(wanted.digest)?;
                if let Some(file) = self.lookup(wanted.digest)? {
                    return Ok(file);
                }
                publish(pending)
            }
            published => published,
        }?;
        if let Err(error) = self.evict(&entry) {
            log::warn!("cannot tidy the cache `{}`: {error}", self.dir.display());
        }
        Ok(file)
    }
}

/// The held lock of a key. Dropping it removes its file, unless that has become the entry.
struct Pending {
    file: File,
    path: PathBuf,
    published: bool,
}

impl Pending {
    /// Writes `output` and its trailer to stable storage and renames the file to `entry`. May be called again if it fails.
    ///
    /// # Errors
    /// `NotFound` when the file has lost its name: whatever file has that name now is another process's.
    fn publish(&mut self, entry: &Path, wanted: Wanted<'_>, output: &File, cache: &Path) -> io::Result<File> {
        trailer::write(output, wanted.digest, wanted.owner, &self.file).map_err(|error| at("write", entry, &error))?;
        // The engine opens its descriptor again as the container's user; the directory keeps everybody else out.
        self.file.set_permissions(Permissions::from_mode(0o444))?;
        self.file.sync_all().map_err(|error| at("write", entry, &error))?;
        let readable = read_only::open(cache, self.path.strip_prefix(cache).unwrap_or(&self.path))?;
        if !is_same(&readable.metadata()?, &self.file.metadata()?) {
            return Err(at("find", &self.path, &ErrorKind::NotFound.into()));
        }
        fs::rename(&self.path, entry).map_err(|error| at("write", entry, &error))?;
        self.published = true;
        if let Some(dir) = entry.parent() {
            File::open(dir)?.sync_all()?;
        }
        Ok(readable)
    }
}

impl Drop for Pending {
    fn drop(&mut self) {
        if self.published || !is_named(&self.file, &self.path) {
            return;
        }
        // Truncating frees the blocks now: a process that is being started may hold the file open a little longer.
        if let Err(error) = self.file.set_len(0).and_then(|()| remove_file(&self.path)) {
            log::warn!("{error}");
        }
    }
}

fn is_digest(text: &str) -> bool {
    text.len() == 64 && text.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'))
}

/// Opens whatever is in an entry's place, without blocking on a fifo.
fn open_entry(path: &Path) -> io::Result<File> {
    OpenOptions::new().read(true).custom_flags(libc::O_NOFOLLOW | libc::O_NONBLOCK).open(path)
}

fn open_pending(path: &Path) -> io::Result<File> {
    OpenOptions::new()
        .read(true)
        .write(true)
        .create(true)
        .truncate(false)
        .mode(0o600)
        .custom_flags(libc::O_NOFOLLOW | libc::O_NONBLOCK)
        .open(path)
}

/// Whether `path` still names the open `file`.
fn is_named(file: &File, path: &Path) -> bool {
    match (file.metadata(), fs::symlink_metadata(path)) {
        (Ok(open), Ok(named)) => is_same(&open, &named),
        _ => false,
    }
}

fn is_same(one: &fs::Metadata, other: &fs::Metadata) -> bool {
    (one.dev(), one.ino()) == (other.dev(), other.ino())
}

/// Marks an entry as used now. A failure is only logged, because a cache that cannot be written to is still useful.
fn touch(file: &File, path: &Path) {
    if let Err(error) = file.set_times(fs::FileTimes::new().set_modified(SystemTime::now())) {
        log::debug!("cannot mark `{}` as used: {error}", path.display());
    }
}

fn make_private_dir(dir: &Path) -> io::Result<()> {
    match DirBuilder::new().mode(0o700).create(dir) {
        Err(error) if error.kind() != ErrorKind::AlreadyExists => Err(at("make the directory", dir, &error)),
        _ => Ok(()),
    }
}

fn remove_file(path: &Path) -> io::Result<()> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != ErrorKind::NotFound => Err(at("remove", path, &error)),
        _ => Ok(()),
    }
}

fn is_full(error: &io::Error) -> bool {
    matches!(error.kind(), ErrorKind::StorageFull | ErrorKind::QuotaExceeded)
}

/// An error of the same kind that names `path`.
fn at(doing: &str, path: &Path, error: &io::Error) -> io::Error {
    let path = path.display();
    let sentence = if is_full(error) {
        format!("cannot {doing} `{path}` in the cache of compiled code: the disk is full")
    } else {
        format!("cannot {doing} `{path}` in the cache of compiled code: {error}")
    };
    io::Error::new(error.kind(), sentence)
}
