//! The fifos of a process: makes them, reads them to their end on threads, and writes to them.

use std::fs::{File, OpenOptions};
use std::io::{ErrorKind, Read, Write};
use std::os::fd::AsFd;
use std::os::unix::fs::OpenOptionsExt;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::stat::Mode;
use tempfile::TempDir;

use crate::wait::{eventually, until};

const END_LIMIT: Duration = Duration::from_secs(20);
const STOP_CHECK_MS: u16 = 50;
const BLOCK_BYTES: usize = 1 << 16;

/// The three fifos of a process in a directory of their own.
pub struct Streams {
    directory: TempDir,
    stdin: Mutex<Option<File>>,
    stdout: Option<Collected>,
    stderr: Option<Collected>,
}

/// What has been read from a fifo so far.
pub struct Collected {
    bytes: Arc<Mutex<Vec<u8>>>,
    ended: Arc<AtomicBool>,
    stop: Arc<AtomicBool>,
}

impl Streams {
    /// Makes the fifos; both outputs are read from now on.
    pub fn collecting() -> Self {
        let mut streams = Self::unread();
        streams.stdout = Some(Collected::start(open_reader(streams.path("stdout"))));
        streams.stderr = Some(Collected::start(open_reader(streams.path("stderr"))));
        streams
    }

    /// Makes the fifos of a terminal, which has one output.
    pub fn of_terminal() -> Self {
        let mut streams = Self::unread();
        streams.stdout = Some(Collected::start(open_reader(streams.path("stdout"))));
        streams
    }

    /// Makes the fifos, which the test reads itself.
    pub fn unread() -> Self {
        let directory = tempfile::Builder::new().prefix("skiff-io-").tempdir().expect("a temporary directory");
        for name in ["stdin", "stdout", "stderr"] {
            nix::unistd::mkfifo(&directory.path().join(name), Mode::S_IRUSR | Mode::S_IWUSR)
                .expect("a fifo can be made");
        }
        Self { directory, stdin: Mutex::default(), stdout: None, stderr: None }
    }

    /// The path of `stdin`, `stdout` or `stderr`.
    pub fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    /// Standard output so far.
    pub fn stdout(&self) -> String {
        self.stdout.as_ref().map(Collected::text).unwrap_or_default()
    }

    /// Standard error so far.
    pub fn stderr(&self) -> String {
        self.stderr.as_ref().map(Collected::text).unwrap_or_default()
    }

    /// Waits until both outputs have ended.
    pub fn wait_for_the_end(&self) {
        for collected in [&self.stdout, &self.stderr].into_iter().flatten() {
            let ended = until(END_LIMIT, || collected.ended.load(Ordering::SeqCst));
            assert!(ended, "an output did not end; so far: {}", collected.text());
        }
    }

    /// Waits until standard output holds `text`.
    pub fn wait_for_stdout(&self, text: &str) {
        let said = || format!("stdout: {:?}, stderr: {:?}", self.stdout(), self.stderr());
        let found = until(END_LIMIT, || self.stdout().contains(text));
        assert!(found, "{text:?} did not appear on standard output: {}", said());
    }

    /// Writes to standard input, which the shim must have opened.
    pub fn write(&self, bytes: &[u8]) {
        let mut stdin = self.stdin.lock().unwrap();
        let file = stdin.get_or_insert_with(|| open_writer(self.path("stdin")));
        file.write_all(bytes).expect("standard input takes bytes");
    }

    /// Closes the test's end of standard input.
    pub fn close_stdin(&self) {
        self.stdin.lock().unwrap().take();
    }
}

impl Collected {
    /// Reads `fifo` to its end on a thread of its own.
    pub fn start(mut fifo: File) -> Self {
        let collected = Self { bytes: Arc::default(), ended: Arc::default(), stop: Arc::default() };
        let (bytes, ended, stop) = (collected.bytes.clone(), collected.ended.clone(), collected.stop.clone());
        std::thread::spawn(move || {
            let mut block = vec![0; BLOCK_BYTES];
            while !stop.load(Ordering::SeqCst) {
                let mut ready = [PollFd::new(fifo.as_fd(), PollFlags::POLLIN)];
                if poll(&mut ready, PollTimeout::from(STOP_CHECK_MS)).unwrap_or(0) == 0 {
                    continue;
                }
                match fifo.read(&mut block) {
                    Ok(0) => break,
                    Ok(length) => bytes.lock().unwrap().extend(&block[..length]),
                    Err(error) if error.kind() == ErrorKind::WouldBlock => {}
                    Err(error) => panic!("an output cannot be read: {error}"),
                }
            }
            ended.store(true, Ordering::SeqCst);
        });
        collected
    }

    /// What has been read so far, as text.
    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.bytes.lock().unwrap()).into_owned()
    }

    /// Waits for the end and returns everything.
    pub fn all(&self) -> Vec<u8> {
        assert!(until(END_LIMIT, || self.ended.load(Ordering::SeqCst)), "the output did not end");
        self.bytes.lock().unwrap().clone()
    }
}

impl Drop for Collected {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::SeqCst);
    }
}

/// A poll of this fifo reports its end only after a writer has come and gone.
fn open_reader(path: PathBuf) -> File {
    OpenOptions::new().read(true).custom_flags(libc::O_NONBLOCK).open(path).expect("a fifo can be opened")
}

fn open_writer(path: PathBuf) -> File {
    let file = eventually("standard input is read", || {
        OpenOptions::new().write(true).custom_flags(libc::O_NONBLOCK).open(&path).ok()
    });
    // From now on a write blocks until there is room.
    nix::fcntl::fcntl(&file, nix::fcntl::FcntlArg::F_SETFL(nix::fcntl::OFlag::empty())).expect("flags can be set");
    file
}
