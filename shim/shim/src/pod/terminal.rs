//! A process's terminal: the only stream that is copied.

use std::os::fd::{AsFd, BorrowedFd};
use std::sync::atomic::{AtomicU64, Ordering};

use containerd_shim::asynchronous::io::{IoTasks, Pty};

use crate::error::{Context, Result};
use crate::host::console::ConsoleSocket;
use crate::request::StdioPaths;

/// A terminal with its copies to and from containerd's fifos.
pub(crate) struct Terminal {
    master: Pty,
    copies: IoTasks,
}

/// A socket for the next terminal.
pub(crate) fn listen() -> Result<ConsoleSocket> {
    static SERIAL: AtomicU64 = AtomicU64::new(0);
    ConsoleSocket::listen(SERIAL.fetch_add(1, Ordering::Relaxed))
        .doing(|| "cannot make a socket for the terminal".into())
}

impl Terminal {
    /// Receives the terminal that the OCI runtime has made and starts to copy.
    pub(crate) async fn receive(socket: ConsoleSocket, paths: &StdioPaths) -> Result<Self> {
        let master = socket.receive().await.doing(|| "cannot receive the terminal".into())?;
        let master = Pty::new(master).doing(|| "cannot use the terminal".into())?;
        let copies = IoTasks::default();
        if !paths.stdin.is_empty() {
            copies.copy_from_fifo(&paths.stdin, master.clone()).doing(|| "cannot copy to the terminal".into())?;
        }
        if !paths.stdout.is_empty() {
            copies.copy_to_fifo(master.clone(), &paths.stdout).doing(|| "cannot copy from the terminal".into())?;
        }
        Ok(Self { master, copies })
    }

    pub(crate) fn close_stdin(&self) {
        self.copies.close_input();
    }

    /// Waits until what the process wrote has been delivered, for as long as containerd's own shim does.
    pub(crate) async fn finish(self) {
        self.copies.shutdown().await;
    }
}

impl AsFd for Terminal {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.master.as_fd()
    }
}
