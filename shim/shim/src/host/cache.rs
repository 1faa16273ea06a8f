//! The cache of compiled code: each guest is compiled once per node and engine, by one process at a time.
//!
//! An entry is `DIR/CODE_ID/SHA256.cwasm`: the artefact as the compiler wrote it, then a [`trailer`] that binds it to
//! its key, its owner and its own hash; wasmtime maps the whole file and does not mind what follows the artefact. Beside
//! it, `SHA256.tmp` is the lock of the key as well as the file that becomes the entry: whoever holds its lock may compile,
//! and renaming it publishes the entry. So there is nothing to tidy up but a `.tmp` that nobody holds. `SHA256.failed` is a
//! sentence: why the guest was compiled in vain a short time ago. The directories `DIR/slot.N` are
//! the locks of those who compile at once.
//!
//! It knows neither how code is compiled nor whether an engine accepts it.

mod failures;
mod room;
mod slots;
#[cfg(test)]
mod tests;
mod trailer;
mod trust;

use std::fs::{self, DirBuilder, File, OpenOptions, Permissions};
use std::io::{self, ErrorKind};
use std::os::unix::fs::{DirBuilderExt, FileExt, MetadataExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use nix::sys::memfd::{MFdFlags, memfd_create};
use skiff_protocol::CODE_ID;

use super::read_only;

/// The file name extension of an entry.
const ENTRY: &str = "cwasm";
/// The file name extension of a lock, which becomes the entry.
const PENDING: &str = "tmp";
/// How many bytes are read and hashed at a time: they stay in the processor's cache.
const CHUNK_BYTES: usize = 128 << 10;

/// The node's cache of compiled code.
#[derive(Clone, Debug)]
pub(crate) struct Cache {
    dir: PathBuf,
    max_bytes: u64,
}

/// What is wanted of the cache, and for whom.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Wanted<'a> {
    /// The sha256 of the guest, lower-case hexadecimal.
    pub(crate) digest: &'a str,
    /// Whose entry it becomes: the pod's namespace. When the cache is full, the owner of most of it gives way.
    pub(crate) owner: &'a str,
    /// The pod, which compiles one guest at a time and takes turns with others.
    pub(crate) pod: &'a str,
}

/// A compilation that failed.
#[derive(Debug)]
pub(crate) struct Failure<E> {
    pub(crate) error: E,
    /// What would fail again; `None` when it might not.
    pub(crate) lasting: Option<Lasting>,
}

/// Bytes that cannot be compiled.
#[derive(Debug)]
pub(crate) struct Lasting {
    /// Their sha256: a guest is not to be blamed for what was read of another.
    pub(crate) digest: String,
    /// Why, for whoever wants them compiled.
    pub(crate) sentence: String,
}

/// Why there is no compiled code.
#[derive(Debug)]
pub(crate) enum CacheError<E> {
    /// The caller's compilation failed.
    Compile(E),
    /// The same guest was compiled in vain a short time ago; why.
    Remembered(String),
    /// What was compiled is not what the key says.
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
    /// Opens the cache in the directory `dir`, which is made if it is missing (mode 0700). `max_bytes` bounds the sum
    /// of its entries; the newest one stays whatever its size.
    ///
    /// # Errors
    /// `PermissionDenied` when somebody else than root or this user could change what the path means or holds;
    /// `InvalidInput` when it is not absolute; those of making the directory.
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

    /// The compiled code of the guest whose sha256 is `digest` (lower-case hexadecimal), verified, and open so that nobody
    /// can write to it through the descriptor. An entry that does not verify is removed and is a miss.
    ///
    /// # Errors
    /// `InvalidInput` for a malformed digest; those of opening the entry, or of removing a bad one.
    pub(crate) fn lookup(&self, digest: &str) -> io::Result<Option<File>> {
        let path = self.path(digest, ENTRY)?;
        let checked = match open_entry(&path) {
            Ok(file) => trailer::verify(&file, digest).map(|()| file),
            Err(error) if error.kind() == ErrorKind::NotFound => return Ok(None),
            Err(error) if error.raw_os_error() == Some(libc::ELOOP) => Err(error),
            Err(error) => return Err(at("open", &path, &error)),
        };
        match checked {
            Ok(file) => {
                touch(&file, &path);
                // None when somebody has compiled it again at this moment, or removed it for want of room.
                self.open_read_only(&path, &file)
            }
            Err(reason) => {
                log::warn!("removing the cache entry `{}`: {reason}", path.display());
                remove_file(&path)?;
                Ok(None)
            }
        }
    }

    /// Like [`Cache::lookup`], but a miss is compiled: `compile` writes the artefact to the file it is given (in
    /// memory, empty, not the entry itself, so that no compiler ever holds a published file) and answers the sha256 of what
    /// it compiled. Of several processes and threads that miss the same key one compiles and the others wait for it, without
    /// a time limit of their own: the compilation has one.
    ///
    /// # Errors
    /// [`CacheError::Compile`] is what `compile` answered. A full disk is [`ErrorKind::StorageFull`], after old entries
    /// were removed for the new one in vain.
    // Invariant: nothing is published under a digest that is not that of exactly the bytes that were compiled.
    pub(crate) fn get_or_compile<E>(
        &self,
        wanted: Wanted<'_>,
        compile: impl FnOnce(&File) -> Result<String, Failure<E>>,
    ) -> Result<File, CacheError<E>> {
        let known = || -> Result<Option<File>, CacheError<E>> {
            if let Some(file) = self.lookup(wanted.digest)? {
                return Ok(Some(file));
            }
            self.recent_failure(wanted.digest)?.map_or(Ok(None), |sentence| Err(CacheError::Remembered(sentence)))
        };
        if let Some(file) = known()? {
            return Ok(file);
        }
        let pending = self.with_room(1, || self.lock(wanted.digest))?;
        if let Some(file) = known()? {
            return Ok(file);
        }
        self.compile_into(pending, wanted, compile)
    }

    /// Compiles a guest whose entry the engine refused, and replaces the entry; one that cannot be replaced stays.
    ///
    /// # Errors
    /// As of [`Cache::get_or_compile`].
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
        let _slot = self.with_room(1, || self.slot(wanted.pod))?;
        let output = File::from(memfd_create(c"skiff-code", MFdFlags::MFD_CLOEXEC).map_err(io::Error::from)?);
        match compile(&output) {
            Ok(digest) if digest == wanted.digest => Ok(self.publish(wanted, pending, &output)?),
            Ok(_other) => Err(CacheError::Changed),
            Err(failure) => {
                if let Some(lasting) = failure.lasting.filter(|lasting| lasting.digest == wanted.digest)
                    && let Err(error) = self.remember_failure(wanted.digest, &lasting.sentence)
                {
                    log::warn!("cannot remember a failed compilation: {error}");
                }
                Err(CacheError::Compile(failure.error))
            }
        }
    }

    /// Opens the entry once more, so that nobody can write to it through the descriptor; none when it is not the `verified`
    /// one any more.
    fn open_read_only(&self, path: &Path, verified: &File) -> io::Result<Option<File>> {
        let opened = match read_only::open(&self.dir, path.strip_prefix(&self.dir).unwrap_or(path)) {
            Err(error) if error.kind() == ErrorKind::NotFound => return Ok(None),
            opened => opened?,
        };
        let (ours, theirs) = (verified.metadata()?, opened.metadata()?);
        Ok(((ours.dev(), ours.ino()) == (theirs.dev(), theirs.ino())).then_some(opened))
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
                // Not made yet, or the last entry was evicted and its directory with it.
                Err(error) if error.kind() == ErrorKind::NotFound => {
                    make_private_dir(&self.dir.join(CODE_ID))?;
                    continue;
                }
                opened => opened.map_err(|error| at("open", &path, &error))?,
            };
            match file.lock() {
                Err(error) if error.kind() == ErrorKind::Interrupted => continue,
                locked => locked.map_err(|error| at("lock", &path, &error))?,
            }
            // Whoever had the lock before has renamed or removed the file: then this lock locks nothing.
            if is_named(&file, &path) {
                return Ok(Pending { file, path, published: false });
            }
        }
    }

    /// Makes the entry of what is wanted from what the compiler wrote, and brings the cache back to its size.
    fn publish(&self, wanted: Wanted<'_>, mut pending: Pending, output: &File) -> io::Result<File> {
        let bytes = output.metadata()?.len();
        let entry = self.path(wanted.digest, ENTRY)?;
        let file = self.with_room(bytes, || pending.publish(&entry, wanted, output, &self.dir))?;
        drop(pending);
        if let Err(error) = self.evict(&entry) {
            log::warn!("cannot tidy the cache `{}`: {error}", self.dir.display());
        }
        Ok(file)
    }
}

/// The held lock of a key. Dropped, it takes its file along, unless that has become the entry.
struct Pending {
    file: File,
    path: PathBuf,
    published: bool,
}

impl Pending {
    /// Writes `output` and its trailer to stable storage and renames the whole to `entry`. May be called again when it
    /// has failed.
    fn publish(&mut self, entry: &Path, wanted: Wanted<'_>, output: &File, cache: &Path) -> io::Result<File> {
        trailer::write(output, wanted, &self.file).map_err(|error| at("write", entry, &error))?;
        // The engine opens its descriptor once more as the container's user; the directory keeps everybody else out.
        self.file.set_permissions(Permissions::from_mode(0o444))?;
        self.file.sync_all().map_err(|error| at("write", entry, &error))?;
        let readable = read_only::open(cache, self.path.strip_prefix(cache).unwrap_or(&self.path))?;
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
        if self.published {
            return;
        }
        // Processes that are just being started may hold the file open a little longer; its blocks are free now.
        if let Err(error) = self.file.set_len(0).and_then(|()| remove_file(&self.path)) {
            log::warn!("{error}");
        }
    }
}

/// Calls `work` with the next piece of the file's first `limit_bytes` bytes until they end; their number.
fn for_each_chunk(file: &File, limit_bytes: u64, mut work: impl FnMut(&[u8]) -> io::Result<()>) -> io::Result<u64> {
    let mut buffer = vec![0; CHUNK_BYTES];
    let mut done_bytes = 0;
    while done_bytes < limit_bytes {
        let wanted = usize::try_from(limit_bytes - done_bytes).unwrap_or(CHUNK_BYTES).min(CHUNK_BYTES);
        match file.read_at(&mut buffer[..wanted], done_bytes) {
            Ok(0) => break,
            Ok(read) => {
                work(&buffer[..read])?;
                done_bytes += read as u64;
            }
            Err(error) if error.kind() == ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(done_bytes)
}

fn is_digest(text: &str) -> bool {
    text.len() == 64 && text.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'))
}

/// Opens what lies in an entry's place; a fifo there does not block.
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
        (Ok(open), Ok(named)) => (open.dev(), open.ino()) == (named.dev(), named.ino()),
        _ => false,
    }
}

/// Marks an entry as used now. A cache that cannot be written to still serves.
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

/// A sentence about `path`, of the same kind as `error`.
fn at(doing: &str, path: &Path, error: &io::Error) -> io::Error {
    let path = path.display();
    let sentence = if is_full(error) {
        format!("cannot {doing} `{path}` in the cache of compiled code: the disk is full")
    } else {
        format!("cannot {doing} `{path}` in the cache of compiled code: {error}")
    };
    io::Error::new(error.kind(), sentence)
}
