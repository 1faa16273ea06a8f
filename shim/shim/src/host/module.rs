//! Reads a module, which is a stranger's file: it is opened where it cannot do harm, read piece by piece up to the size
//! limit of a module, and hashed while it is read.
//!
//! A file of a volume is open only in the file table of the thread that reads it. A process that the shim starts inherits a
//! copy of the shim's table and closes it on exec. If that table contained a file of a server that does not respond (FUSE,
//! NFS), closing it would block for ever.

use std::fs::File;
use std::io::{self, ErrorKind};
use std::os::unix::fs::FileExt;
use std::path::PathBuf;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc::{Receiver, sync_channel};

use nix::sys::signal::SigSet;
use sha2::{Digest, Sha256};
use skiff_linux::descriptors::leave_table;
use skiff_protocol::{MODULE_BYTES_MAX, bytes_and_mi};

use super::lookup::open_file;
use crate::spec::config::Mount;

/// How many bytes are read and hashed at a time: few enough to stay in the processor's cache, and for a buffer on the heap.
const PIECE_BYTES: usize = 32 << 10;

/// Where a module is read from.
#[derive(Clone, Debug)]
pub(crate) enum Source {
    /// A file that the container sees.
    Container {
        /// The mounted root file system.
        rootfs: PathBuf,
        /// The container's mounts.
        mounts: Vec<Mount>,
        /// Its path in the container.
        path: PathBuf,
    },
    /// A file in containerd's store.
    Store(PathBuf),
}

impl Source {
    /// The digest of the module. Call it on a thread with its own file table. Calls `is_unwanted` between the pieces.
    ///
    /// # Errors
    /// Those of [`read_pieces`] and of opening.
    pub(crate) fn digest(&self, is_unwanted: &dyn Fn() -> bool) -> io::Result<String> {
        digest_of(&self.open()?, is_unwanted)
    }

    /// The pieces of the module in order, read by a separate thread. The last one may be an error.
    ///
    /// # Errors
    /// Those of making the thread.
    pub(crate) fn pieces(&self) -> io::Result<Receiver<io::Result<Vec<u8>>>> {
        let (sender, receiver) = sync_channel(1);
        let source = self.clone();
        apart(move || {
            let read = source.open().and_then(|file| {
                let gone = |_| ErrorKind::BrokenPipe.into();
                read_pieces(&file, |piece| sender.send(Ok(piece.to_vec())).map_err(gone))
            });
            // The caller may be gone.
            read.or_else(|error| sender.send(Err(error)).or(Ok(())))
        })?;
        Ok(receiver)
    }

    fn open(&self) -> io::Result<File> {
        match self {
            Source::Container { rootfs, mounts, path } => {
                open_file(rootfs, mounts, path)?.ok_or_else(|| ErrorKind::NotFound.into())
            }
            Source::Store(path) => File::open(path),
        }
    }
}

/// How many threads read tenants' files at once. A volume that does not respond keeps its thread.
const READERS_MAX: usize = 32;
static READERS: AtomicUsize = AtomicUsize::new(0);

/// The place of a reader. The reader itself gives it back, even if its caller no longer waits.
struct Place;

impl Place {
    fn take() -> io::Result<Self> {
        let free = |count| (count < READERS_MAX).then_some(count + 1);
        match READERS.fetch_update(Ordering::Relaxed, Ordering::Relaxed, free) {
            Ok(_) => Ok(Self),
            Err(_) => Err(io::Error::other("too many files of the pod's volumes are being read, or do not respond")),
        }
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        READERS.fetch_sub(1, Ordering::Relaxed);
    }
}

/// Does `work` on a thread whose file table contains only the standard streams, and sends its result once. The work must
/// not use the shim's descriptors, and so neither the log nor the runtime.
///
/// # Errors
/// Those of making the thread; an error when too many threads are at work already.
pub(crate) fn apart<T: Send + 'static>(
    work: impl FnOnce() -> io::Result<T> + Send + 'static,
) -> io::Result<Receiver<io::Result<T>>> {
    let place = Place::take()?;
    let (sender, receiver) = sync_channel(1);
    let thread = std::thread::Builder::new().name("reader".into());
    thread.spawn(move || {
        let answer = leave_the_file_table().and_then(|()| work());
        drop(place);
        // The caller may be gone.
        drop(sender.send(answer));
    })?;
    Ok(receiver)
}

fn leave_the_file_table() -> io::Result<()> {
    // A signal handler would write to a descriptor of the runtime, which is not in this table.
    SigSet::all().thread_block()?;
    leave_table(3)
}

/// The sha256 of an open module, in lower-case hexadecimal.
///
/// # Errors
/// Those of [`read_pieces`].
pub(crate) fn digest_of(file: &File, is_unwanted: &dyn Fn() -> bool) -> io::Result<String> {
    let mut digester = Digester::default();
    read_pieces(file, |piece| {
        digester.add(piece);
        if is_unwanted() { Err(io::Error::other("its container is no longer wanted")) } else { Ok(()) }
    })?;
    Ok(digester.finish())
}

/// Calls `each` with every piece of `file` in order. The file's own offset does not change.
///
/// # Errors
/// `FileTooLarge` for more than [`MODULE_BYTES_MAX`] bytes, before reading anything if the file's size already exceeds
/// that; those of `pread(2)` and of `each`.
fn read_pieces(file: &File, mut each: impl FnMut(&[u8]) -> io::Result<()>) -> io::Result<()> {
    check_size(file.metadata()?.len())?;
    let mut buffer = vec![0; PIECE_BYTES];
    let mut bytes = 0;
    loop {
        match file.read_at(&mut buffer, bytes) {
            Ok(0) => return Ok(()),
            Ok(read) => {
                bytes += read as u64;
                check_size(bytes)?;
                each(&buffer[..read])?;
            }
            Err(error) if error.kind() == ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
}

fn check_size(bytes: u64) -> io::Result<()> {
    if bytes <= MODULE_BYTES_MAX {
        return Ok(());
    }
    Err(io::Error::new(
        ErrorKind::FileTooLarge,
        format!("it is larger than {}, the limit for a module", bytes_and_mi(MODULE_BYTES_MAX)),
    ))
}

/// Computes a sha256.
#[derive(Default)]
pub(crate) struct Digester(Sha256);

impl Digester {
    pub(crate) fn add(&mut self, piece: &[u8]) {
        self.0.update(piece);
    }

    /// The digest in lower-case hexadecimal.
    pub(crate) fn finish(self) -> String {
        use std::fmt::Write as _;
        self.0.finalize().iter().fold(String::with_capacity(64), |mut text, byte| {
            // Writing to a string cannot fail.
            let _written = write!(text, "{byte:02x}");
            text
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_digest_is_that_of_the_whole_file_wherever_its_offset_is() {
        for (content, expected) in [
            (vec![], "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"),
            (b"abc".to_vec(), "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"),
            (vec![b'a'; 1_000_000], "cdc76e5c9914fb9281a1c7e284d73e67f1809a48a497200e046d39ccc7112cd0"),
        ] {
            let mut file = tempfile::tempfile().unwrap();
            io::Write::write_all(&mut file, &content).unwrap();
            assert_eq!(digest_of(&file, &|| false).unwrap(), expected);
        }
    }

    #[test]
    fn an_endless_file_is_read_no_further_than_a_module_may_go() {
        let endless = File::open("/dev/zero").unwrap();
        assert_eq!(digest_of(&endless, &|| false).unwrap_err().kind(), ErrorKind::FileTooLarge);
        let sparse = tempfile::tempfile().unwrap();
        sparse.set_len(8 << 40).unwrap();
        assert_eq!(digest_of(&sparse, &|| panic!("read")).unwrap_err().kind(), ErrorKind::FileTooLarge);
    }

    #[test]
    fn reading_ends_when_it_is_not_wanted_any_more() {
        let endless = File::open("/dev/zero").unwrap();
        assert!(digest_of(&endless, &|| true).unwrap_err().to_string().contains("no longer wanted"));
    }

    #[test]
    fn a_module_that_does_not_come_keeps_a_readers_place_and_no_more_than_so_many() {
        let directory = tempfile::tempdir().unwrap();
        let fifo = directory.path().join("fifo");
        nix::unistd::mkfifo(&fifo, nix::sys::stat::Mode::S_IRWXU).unwrap();
        let waiting: Vec<_> = std::iter::from_fn(|| Source::Store(fifo.clone()).pieces().ok()).collect();
        assert!((1..=READERS_MAX).contains(&waiting.len()), "{}", waiting.len());
        // Each waits for a writer.
        drop(File::options().write(true).open(&fifo).unwrap());
        let deadline = std::time::Instant::now() + std::time::Duration::from_secs(10);
        while apart(|| Ok(())).is_err() {
            assert!(std::time::Instant::now() < deadline, "the places are given back");
            std::thread::yield_now();
        }
    }

    #[test]
    fn what_is_read_apart_is_open_in_no_other_file_table() {
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), "module").unwrap();
        let path = file.path().to_owned();
        let answer = apart(move || {
            let times_open_in = |table: &str| {
                let open = std::fs::read_dir(table)
                    .unwrap()
                    .filter_map(|entry| std::fs::read_link(entry.unwrap().path()).ok());
                open.filter(|target| *target == path).count()
            };
            let before = times_open_in("/proc/thread-self/fd");
            let _open = File::open(&path)?;
            Ok([before, times_open_in("/proc/thread-self/fd"), times_open_in("/proc/self/fd")])
        });
        // The test holds it open itself.
        assert_eq!(answer.unwrap().recv().unwrap().unwrap(), [0, 1, 1]);
        let source = Source::Store(file.path().to_owned());
        let pieces: Vec<u8> = source.pieces().unwrap().iter().flat_map(Result::unwrap).collect();
        assert_eq!(pieces, b"module");
        assert!(Source::Store("/no/such/file".into()).pieces().unwrap().recv().unwrap().is_err());
    }
}
