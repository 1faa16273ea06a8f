//! What is typed at a guest's terminal. Ctrl-D ends one read, as for a native program: the next one waits again.

use std::io;
use std::os::fd::BorrowedFd;
use std::pin::Pin;
use std::sync::OnceLock;
use std::task::{Context, Poll, ready};

use hyper::body::Bytes;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use rustix::stdio::stdin;
use skiff_linux::descriptors::watch_static;
use tokio::io::unix::AsyncFd;
use tokio::io::{AsyncRead, Interest, ReadBuf};
use wasmtime_wasi::cli::{IsTerminal, StdinStream};
use wasmtime_wasi::p2::{InputStream, Pollable, StreamError, StreamResult};

/// How much is read at once: as much as the kernel takes of a line.
const READ_BYTES: usize = 4096;

/// A terminal that is watched once somebody waits for it; `None` inside if it cannot be watched.
type Watched = OnceLock<Option<AsyncFd<BorrowedFd<'static>>>>;

static WATCHED: Watched = OnceLock::new();

/// The input of all instances. It is read when a guest reads, by the guest's own thread.
#[derive(Clone, Copy)]
pub(crate) struct TerminalInput {
    terminal: BorrowedFd<'static>,
    watched: &'static Watched,
}

impl TerminalInput {
    /// The process's own input, if it is a terminal.
    pub(crate) fn find() -> Option<Self> {
        let is_terminal = nix::unistd::isatty(stdin()).unwrap_or(false);
        is_terminal.then(|| Self { terminal: stdin(), watched: &WATCHED })
    }

    /// Reads what was typed: nothing after Ctrl-D, or if the terminal is gone. `None` if that is still to come.
    fn take(self, buffer: &mut [u8]) -> io::Result<Option<usize>> {
        if !self.is_readable() {
            return Ok(None);
        }
        Ok(Some(rustix::io::retry_on_intr(|| rustix::io::read(self.terminal, &mut *buffer))?))
    }

    /// Whether a read would not wait. What cannot be asked fails when it is read.
    fn is_readable(self) -> bool {
        poll(&mut [PollFd::new(self.terminal, PollFlags::POLLIN)], PollTimeout::ZERO) != Ok(0)
    }

    fn watch(self) -> Option<&'static AsyncFd<BorrowedFd<'static>>> {
        self.watched.get_or_init(|| watch_static(self.terminal, Interest::READABLE).ok()).as_ref()
    }
}

impl IsTerminal for TerminalInput {
    fn is_terminal(&self) -> bool {
        true
    }
}

impl StdinStream for TerminalInput {
    fn p2_stream(&self) -> Box<dyn InputStream> {
        Box::new(*self)
    }

    fn async_stream(&self) -> Box<dyn AsyncRead + Send + Sync> {
        Box::new(*self)
    }
}

#[wasmtime_wasi::async_trait]
impl Pollable for TerminalInput {
    async fn ready(&mut self) {
        while !self.is_readable() {
            let Some(watched) = self.watch() else { return };
            let Ok(mut guard) = watched.readable().await else { return };
            if !self.is_readable() {
                guard.clear_ready();
            }
        }
    }
}

impl InputStream for TerminalInput {
    fn read(&mut self, size: usize) -> StreamResult<Bytes> {
        if size == 0 {
            return Ok(Bytes::new());
        }
        let mut buffer = vec![0; size.min(READ_BYTES)];
        match self.take(&mut buffer) {
            Ok(None) => Ok(Bytes::new()),
            Ok(Some(0)) => Err(StreamError::Closed),
            Ok(Some(length)) => {
                buffer.truncate(length);
                Ok(buffer.into())
            }
            Err(error) => Err(StreamError::LastOperationFailed(error.into())),
        }
    }
}

impl AsyncRead for TerminalInput {
    fn poll_read(self: Pin<&mut Self>, context: &mut Context<'_>, into: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let mut buffer = [0; READ_BYTES];
        let room = into.remaining().min(READ_BYTES);
        loop {
            if let Some(length) = self.take(&mut buffer[..room])? {
                into.put_slice(&buffer[..length]);
                return Poll::Ready(Ok(()));
            }
            let Some(watched) = self.watch() else { return Poll::Ready(Ok(())) };
            let mut guard = ready!(watched.poll_read_ready(context))?;
            if !self.is_readable() {
                guard.clear_ready();
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::fs::File;
    use std::io::Write as _;
    use std::os::fd::{AsFd as _, OwnedFd};
    use std::time::Duration;

    use nix::pty::openpty;
    use tokio::io::AsyncReadExt as _;
    use tokio::time::timeout;

    use super::*;

    /// How long nothing may come before it is taken for granted.
    const QUIET: Duration = Duration::from_millis(50);
    const CTRL_D: &[u8] = b"\x04";

    /// Where somebody types, and the input.
    fn terminal() -> (File, TerminalInput) {
        let pty = openpty(None, None).unwrap();
        let (terminal, watched): (&OwnedFd, &Watched) = (Box::leak(Box::new(pty.slave)), Box::leak(Box::default()));
        (pty.master.into(), TerminalInput { terminal: terminal.as_fd(), watched })
    }

    #[tokio::test]
    async fn ctrl_d_ends_one_read_and_the_next_one_waits() {
        let (mut keys, input) = terminal();
        let mut stream = input.p2_stream();
        timeout(QUIET, stream.ready()).await.unwrap_err();
        assert_eq!(stream.read(10).unwrap(), "");
        for _ in 0..2 {
            keys.write_all(&[b"two words\n", CTRL_D].concat()).unwrap();
            stream.ready().await;
            assert_eq!(stream.read(4).unwrap(), "two ");
            assert_eq!(stream.read(0).unwrap(), "");
            assert_eq!(stream.blocking_read(100).await.unwrap(), "words\n");
            assert!(matches!(stream.blocking_read(100).await, Err(StreamError::Closed)));
            assert_eq!(stream.read(10).unwrap(), "");
            timeout(QUIET, stream.ready()).await.unwrap_err();
        }
    }

    #[tokio::test]
    async fn a_stream_of_wasi_0_3_ends_with_ctrl_d_and_the_next_one_goes_on() {
        let (mut keys, input) = terminal();
        for text in ["first\n", "second\n"] {
            let mut stream = Box::into_pin(input.async_stream());
            let mut read = String::new();
            timeout(QUIET, stream.read_to_string(&mut read)).await.unwrap_err();
            keys.write_all(&[text.as_bytes(), CTRL_D].concat()).unwrap();
            stream.read_to_string(&mut read).await.unwrap();
            assert_eq!(read, text);
        }
    }

    #[tokio::test]
    async fn a_terminal_that_is_gone_ends_its_input() {
        let (keys, input) = terminal();
        drop(keys);
        let mut stream = input.p2_stream();
        stream.ready().await;
        assert!(stream.read(10).is_err());
    }
}
