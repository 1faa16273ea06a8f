//! A file system that the test serves. Its one file changes after it was read, or requests for it are not answered.
//!
//! It speaks as much of FUSE's protocol (`linux/fuse.h`, version 7.31) as it takes to read one file. The kernel caches nothing,
//! so the test sees each read of a process as a request.

use std::fs::File;
use std::io::{Read, Write};
use std::os::fd::{AsFd, AsRawFd};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;

use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::poll::{PollFd, PollFlags, poll};
use tempfile::TempDir;

const DEVICE: &str = "/dev/fuse";
/// The name of the one file.
const NAME: &str = "app.wasm";
const FILE_ID: u64 = 2;
const STOP_CHECK_MS: u16 = 20;
const REQUEST_BYTES_MAX: usize = 1 << 18;
const HEADER_BYTES: usize = 40;
/// `FOPEN_DIRECT_IO`: the kernel keeps nothing of the file.
const DIRECT: u32 = 1;

mod call {
    pub(super) const LOOKUP: u32 = 1;
    pub(super) const FORGET: u32 = 2;
    pub(super) const GETATTR: u32 = 3;
    pub(super) const OPEN: u32 = 14;
    pub(super) const READ: u32 = 15;
    pub(super) const RELEASE: u32 = 18;
    pub(super) const FLUSH: u32 = 25;
    pub(super) const INIT: u32 = 26;
    pub(super) const OPENDIR: u32 = 27;
    pub(super) const READDIR: u32 = 28;
    pub(super) const RELEASEDIR: u32 = 29;
    pub(super) const INTERRUPT: u32 = 36;
    pub(super) const BATCH_FORGET: u32 = 42;
}

/// A mounted file system with the file `app.wasm`. Dropping it ends every pending request.
pub struct Volume {
    directory: TempDir,
    state: Arc<State>,
    server: Option<JoinHandle<()>>,
}

#[derive(Default)]
struct State {
    /// The file has been read to its end, or a request is left unanswered.
    has_turned: AtomicBool,
    stop: AtomicBool,
}

/// What happens to the file.
enum Turn {
    /// Once it has been read to its end, it has this content.
    Into(Vec<u8>),
    /// From the first such request on, nothing is answered.
    Silence(Silence),
}

/// The requests that a file system leaves unanswered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Silence {
    /// All of them.
    All,
    /// Reads. The file can be opened.
    Read,
}

impl Volume {
    /// A file with the content `first` until it has been read to its end once, and `then`, of the same length, afterwards.
    pub fn changing(first: Vec<u8>, then: Vec<u8>) -> Self {
        assert_eq!(first.len(), then.len(), "the size stays the same");
        Self::serve(first, Turn::Into(then))
    }

    /// A file on a server that stops answering.
    pub fn silent(since: Silence) -> Self {
        Self::serve(b"\0asm".to_vec(), Turn::Silence(since))
    }

    fn serve(content: Vec<u8>, turn: Turn) -> Self {
        let device = File::options().read(true).write(true).custom_flags(libc::O_NONBLOCK).open(DEVICE);
        let device = device.unwrap_or_else(|error| panic!("`{DEVICE}` is needed: {error}"));
        let directory = tempfile::Builder::new().prefix("skiff-fuse-").tempdir().expect("a temporary directory");
        let options = format!("fd={},rootmode=40000,user_id=0,group_id=0,allow_other", device.as_raw_fd());
        mount(Some("skiff-test"), directory.path(), Some("fuse"), MsFlags::empty(), Some(options.as_str()))
            .unwrap_or_else(|error| panic!("FUSE is needed: {error}"));
        let state = Arc::<State>::default();
        let server = Server { device, content, turn, state: state.clone() };
        Self { directory, state, server: Some(std::thread::spawn(move || server.run())) }
    }

    /// Where it is mounted.
    pub fn path(&self) -> &Path {
        self.directory.path()
    }

    /// Its file.
    pub fn file(&self) -> PathBuf {
        self.path().join(NAME)
    }

    /// Whether the file has changed, or a request is left unanswered.
    pub fn has_turned(&self) -> bool {
        self.state.has_turned.load(Ordering::SeqCst)
    }
}

impl Drop for Volume {
    fn drop(&mut self) {
        self.state.stop.store(true, Ordering::SeqCst);
        if let Some(server) = self.server.take() {
            drop(server.join());
        }
        umount2(self.path(), MntFlags::MNT_DETACH).ok();
    }
}

struct Server {
    device: File,
    content: Vec<u8>,
    turn: Turn,
    state: Arc<State>,
}

impl Server {
    /// Answers requests until it is stopped. The kernel ends pending requests when the device is closed.
    fn run(mut self) {
        let mut request = vec![0; REQUEST_BYTES_MAX];
        let mut is_silent = false;
        while !self.state.stop.load(Ordering::SeqCst) {
            // The process behind a request that was not read can be killed.
            let has_turned = is_silent && self.state.has_turned.load(Ordering::SeqCst);
            let events = if has_turned { PollFlags::empty() } else { PollFlags::POLLIN };
            let mut fds = [PollFd::new(self.device.as_fd(), events)];
            let is_asked = poll(&mut fds, STOP_CHECK_MS).is_ok_and(|ready| ready > 0);
            if is_silent {
                self.state.has_turned.fetch_or(is_asked, Ordering::SeqCst);
            } else if let Ok(length) = self.device.read(&mut request) {
                let opcode = self.answer(&request[..length]);
                is_silent = match self.turn {
                    Turn::Silence(Silence::All) => opcode == call::INIT,
                    Turn::Silence(Silence::Read) => opcode == call::OPEN,
                    Turn::Into(_) => false,
                };
            }
        }
    }

    /// Answers a request and returns its opcode.
    fn answer(&mut self, request: &[u8]) -> u32 {
        let (opcode, node, body) = (number(request, 4, 4), number(request, 16, 8), &request[HEADER_BYTES..]);
        let opcode = u32::try_from(opcode).expect("four bytes");
        let answer = match opcode {
            call::FORGET | call::BATCH_FORGET | call::INTERRUPT => return opcode,
            call::INIT => Ok(words(&[7, 31, 0, 0, 0, 1 << 16, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0])),
            call::LOOKUP if body.strip_suffix(b"\0") == Some(NAME.as_bytes()) => {
                Ok([longs(&[FILE_ID, 0, 0, 0, 0]), self.attributes(FILE_ID)].concat())
            }
            call::LOOKUP => Err(libc::ENOENT),
            call::GETATTR => Ok([longs(&[0, 0]), self.attributes(node)].concat()),
            call::OPEN => Ok(words(&[0, 0, DIRECT, 0])),
            call::OPENDIR => Ok(words(&[0; 4])),
            call::READ => Ok(self.read(number(body, 8, 8), number(body, 16, 4))),
            call::READDIR | call::RELEASE | call::RELEASEDIR | call::FLUSH => Ok(Vec::new()),
            _ => Err(libc::ENOSYS),
        };
        let (error, data) = answer.map_or_else(|error| (-error, Vec::new()), |data| (0, data));
        let length = u32::try_from(data.len() + 16).expect("a short answer");
        let header = [&length.to_le_bytes()[..], &error.to_le_bytes(), &request[8..16]].concat();
        // The process that asked may be gone.
        drop(self.device.write(&[header, data].concat()));
        opcode
    }

    fn read(&mut self, offset: u64, size: u64) -> Vec<u8> {
        let length = self.content.len();
        let [from, to] = [offset, offset + size].map(|at| usize::try_from(at).unwrap_or(length).min(length));
        let data = self.content[from..to].to_vec();
        if to == length
            && let Turn::Into(then) = &self.turn
        {
            self.content.clone_from(then);
            self.state.has_turned.store(true, Ordering::SeqCst);
        }
        data
    }

    /// `struct fuse_attr`.
    fn attributes(&self, node: u64) -> Vec<u8> {
        let is_file = node == FILE_ID;
        let size = if is_file { self.content.len() as u64 } else { 0 };
        let mode = if is_file { libc::S_IFREG | 0o555 } else { libc::S_IFDIR | 0o555 };
        [longs(&[node, size, 1, 0, 0, 0]), words(&[0, 0, 0, mode, 1, 0, 0, 0, 4096, 0])].concat()
    }
}

fn number(bytes: &[u8], at: usize, length: usize) -> u64 {
    bytes[at..at + length].iter().rev().fold(0, |sum, byte| sum << 8 | u64::from(*byte))
}

fn words(numbers: &[u32]) -> Vec<u8> {
    numbers.iter().flat_map(|number| number.to_le_bytes()).collect()
}

fn longs(numbers: &[u64]) -> Vec<u8> {
    numbers.iter().flat_map(|number| number.to_le_bytes()).collect()
}
