//! The guest's stdout and stderr: the container's own descriptors, written without a buffer in between. A write blocks
//! while the reader is slow, and loses nothing.

use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, OnceLock, PoisonError};
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use hyper::body::Bytes;
use nix::errno::Errno;
use nix::fcntl::{FcntlArg, OFlag, fcntl};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use tokio::io::AsyncWrite;
use wasmtime_wasi::cli::{IsTerminal, StdoutStream};
use wasmtime_wasi::p2::{OutputStream, Pollable, StreamError, StreamResult};

use crate::deadline;

/// How much a guest may write at once.
const PERMIT_BYTES: usize = 64 << 10;
/// What a pipe that is ready takes without blocking; see pipe(7).
pub(crate) const PIPE_BYTES: usize = 4096;
/// How much of a limited rate may be used up at once.
const BURST: Duration = Duration::from_secs(1);

/// What runtimes say on stderr before they end a guest for want of memory, Go's among them.
const OUT_OF_MEMORY: &[u8] = b"out of memory";
static SAID_OUT_OF_MEMORY: AtomicBool = AtomicBool::new(false);
static RATE: OnceLock<Rate> = OnceLock::new();

/// Which descriptor a stream writes to.
#[derive(Clone, Copy)]
pub(crate) enum Target {
    Stdout,
    Stderr,
}

/// Who is writing.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Writer {
    /// A core module of a command: it is told `EPIPE` as an error.
    Module,
    /// A component of a command: for it a broken pipe is a closed stream.
    Component,
    /// An instance of a server; see [`ServerOutput`](crate::server_output::ServerOutput).
    Server,
}

/// An output stream of a command: its only thread waits for a slow reader.
#[derive(Clone, Copy)]
pub(crate) struct Output {
    pub(crate) target: Target,
    pub(crate) writer: Writer,
}

impl Output {
    fn write_all(self, mut bytes: &[u8]) -> io::Result<()> {
        while !bytes.is_empty() {
            let written = self.write_some(bytes)?;
            bytes = bytes.get(written..).unwrap_or_default();
        }
        Ok(())
    }

    fn write_some(self, bytes: &[u8]) -> io::Result<usize> {
        if matches!(self.target, Target::Stderr) && bytes.windows(OUT_OF_MEMORY.len()).any(|part| part == OUT_OF_MEMORY)
        {
            SAID_OUT_OF_MEMORY.store(true, Ordering::Relaxed);
        }
        let bytes = RATE.get().map_or(bytes, |rate| {
            let part = bytes.get(..rate.piece_bytes()).unwrap_or(bytes);
            deadline::pass(rate.take(part.len(), Instant::now()));
            part
        });
        write_blocking(self.target, bytes)
    }
}

fn write_blocking(target: Target, bytes: &[u8]) -> io::Result<usize> {
    loop {
        match nix::unistd::write(target, bytes) {
            Ok(written) => return Ok(written),
            Err(Errno::EINTR) => {}
            Err(Errno::EAGAIN) => {
                wait_writable(target.as_fd(), PollTimeout::NONE)?;
            }
            Err(error) => return Err(error.into()),
        }
    }
}

/// Writes some of a server's output; `None` when it would have to wait, for a reader or for the allowed pace.
///
/// # Errors
/// Those of `write(2)`.
pub(crate) fn try_write(target: Target, bytes: &[u8]) -> io::Result<Option<usize>> {
    if !pace_delay().is_zero() {
        return Ok(None);
    }
    let written = write_into_room(target, bytes)?;
    if let (Some(rate), Some(written)) = (RATE.get(), written) {
        rate.take(written, Instant::now());
    }
    Ok(written)
}

/// Whether [`try_write`] would write.
pub(crate) fn has_room(target: Target) -> bool {
    pace_delay().is_zero() && is_writable(&target, 0)
}

/// How long nothing may be written yet.
pub(crate) fn pace_delay() -> Duration {
    RATE.get().map_or(Duration::ZERO, |rate| rate.delay(Instant::now()))
}

/// Writes all of what the engine itself says to stderr, however long its reader takes.
///
/// # Errors
/// Those of `write(2)`.
pub(crate) fn say(mut bytes: &[u8]) -> io::Result<()> {
    while !bytes.is_empty() {
        match write_into_room(Target::Stderr, bytes)? {
            Some(written) => bytes = bytes.get(written..).unwrap_or_default(),
            None => drop(wait_writable(Target::Stderr.as_fd(), PollTimeout::NONE)?),
        }
    }
    Ok(())
}

/// Writes what a pipe that is ready takes. Of this process's threads one does so at a time: two that see the same room
/// would both fill it, and one of them would wait.
fn write_into_room(target: Target, bytes: &[u8]) -> io::Result<Option<usize>> {
    static WRITING: Mutex<()> = Mutex::new(());
    let _alone = WRITING.lock().unwrap_or_else(PoisonError::into_inner);
    if !wait_writable(target.as_fd(), PollTimeout::ZERO)? {
        return Ok(None);
    }
    write_blocking(target, bytes.get(..PIPE_BYTES).unwrap_or(bytes)).map(Some)
}

/// How much the guest may write in a second, stdout and stderr together; a second's worth at once.
struct Rate {
    bytes_per_second: u64,
    /// When all that was written would have been written at the allowed pace.
    paid_until: Mutex<Instant>,
}

impl Rate {
    /// The most that is written at once.
    fn piece_bytes(&self) -> usize {
        usize::try_from(self.bytes_per_second).unwrap_or(usize::MAX).clamp(1, PERMIT_BYTES)
    }

    /// Pays for `bytes` at `now`; how long to wait before they are written.
    fn take(&self, bytes: usize, now: Instant) -> Duration {
        let mut paid_until = self.paid_until.lock().unwrap_or_else(PoisonError::into_inner);
        let start = (*paid_until).max(now);
        *paid_until = start + Duration::from_secs_f64(bytes as f64 / self.bytes_per_second as f64);
        paid_until.saturating_duration_since(now).saturating_sub(BURST)
    }

    /// How long at `now` nothing more is to be written.
    fn delay(&self, now: Instant) -> Duration {
        self.take(0, now)
    }
}

/// From now on the guest writes at most so many bytes in a second.
pub(crate) fn limit_rate(bytes_per_second: u64) {
    RATE.get_or_init(|| Rate { bytes_per_second: bytes_per_second.max(1), paid_until: Mutex::new(Instant::now()) });
}

/// Whether a command's stderr has said so.
pub(crate) fn said_out_of_memory() -> bool {
    SAID_OUT_OF_MEMORY.load(Ordering::Relaxed)
}

/// Makes reads of stdin block, whoever opened it: another end of the same descriptor may have asked for the contrary.
pub(crate) fn block_stdin() {
    let stdin = std::io::stdin();
    // A stdin that cannot be asked cannot be read either: the guest gets that error when it tries.
    if let Ok(flags) = fcntl(&stdin, FcntlArg::F_GETFL).map(OFlag::from_bits_retain)
        && flags.contains(OFlag::O_NONBLOCK)
    {
        let _set = fcntl(&stdin, FcntlArg::F_SETFL(flags - OFlag::O_NONBLOCK));
    }
}

/// Whether a write would not block, after waiting for it for so many milliseconds.
pub(crate) fn is_writable(file: &impl AsFd, milliseconds: u8) -> bool {
    wait_writable(file.as_fd(), milliseconds.into()).unwrap_or(false)
}

/// Whether a write would not block, after waiting for it.
fn wait_writable(fd: BorrowedFd<'_>, timeout: PollTimeout) -> io::Result<bool> {
    match poll(&mut [PollFd::new(fd, PollFlags::POLLOUT)], timeout) {
        Ok(ready) => Ok(ready > 0),
        Err(Errno::EINTR) => Ok(false),
        Err(error) => Err(error.into()),
    }
}

impl AsFd for Target {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.as_static_fd()
    }
}

impl Target {
    /// The descriptor, which is open as long as the process lives.
    pub(crate) fn as_static_fd(self) -> BorrowedFd<'static> {
        let number = match self {
            Self::Stdout => libc::STDOUT_FILENO,
            Self::Stderr => libc::STDERR_FILENO,
        };
        // SAFETY: the runtime of Rust has made sure that 0 to 2 are open, and nothing in the engine closes them.
        unsafe { BorrowedFd::borrow_raw(number) }
    }
}

impl IsTerminal for Output {
    fn is_terminal(&self) -> bool {
        nix::unistd::isatty(self.target).unwrap_or(false)
    }
}

impl StdoutStream for Output {
    fn p2_stream(&self) -> Box<dyn OutputStream> {
        Box::new(*self)
    }

    fn async_stream(&self) -> Box<dyn AsyncWrite + Send + Sync> {
        Box::new(*self)
    }
}

#[wasmtime_wasi::async_trait]
impl Pollable for Output {
    async fn ready(&mut self) {}
}

impl OutputStream for Output {
    fn write(&mut self, bytes: Bytes) -> StreamResult<()> {
        self.write_all(&bytes).map_err(|error| {
            if error.kind() == io::ErrorKind::BrokenPipe && self.writer != Writer::Module {
                StreamError::Closed
            } else {
                StreamError::LastOperationFailed(error.into())
            }
        })
    }

    fn flush(&mut self) -> StreamResult<()> {
        Ok(())
    }

    fn check_write(&mut self) -> StreamResult<usize> {
        Ok(PERMIT_BYTES)
    }
}

impl AsyncWrite for Output {
    fn poll_write(self: Pin<&mut Self>, _: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        Poll::Ready(self.write_some(bytes))
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_rate_is_kept_after_a_seconds_worth() {
        let now = Instant::now();
        let rate = Rate { bytes_per_second: 1000, paid_until: Mutex::new(now) };
        assert_eq!(rate.piece_bytes(), 1000);
        for (bytes, after, expected) in
            [(1000, 0, 0), (500, 0, 500), (500, 1000, 0), (100, 10_000, 0), (1000, 10_000, 100)]
        {
            let delay = rate.take(bytes, now + Duration::from_millis(after));
            assert_eq!(delay.as_millis(), expected, "{bytes} bytes after {after} ms");
        }
    }
}
