//! A process's terminal: the only stream that is copied.

use std::fs::File;
use std::os::fd::{AsFd, AsRawFd as _, BorrowedFd};
use std::sync::atomic::{AtomicU64, Ordering};

use containerd_shim::asynchronous::io::{IoTasks, Pty};

use crate::error::{Context, Result};
use crate::host::console::ConsoleSocket;
use crate::request::StdioPaths;

/// A terminal with its copies to and from containerd's fifos, or to a logging program.
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
    /// Receives the terminal that the OCI runtime has made and starts to copy; its output to the pipe of a `program`, if there is one.
    pub(crate) async fn receive(socket: ConsoleSocket, paths: &StdioPaths, program: Option<&File>) -> Result<Self> {
        let master = socket.receive().await.doing(|| "cannot receive the terminal".into())?;
        let master = Pty::new(master).doing(|| "cannot use the terminal".into())?;
        let copies = IoTasks::default();
        if !paths.stdin.is_empty() {
            copies.copy_from_fifo(&paths.stdin, master.clone()).doing(|| "cannot copy to the terminal".into())?;
        }
        let pipe = program.map(|pipe| format!("/proc/self/fd/{}", pipe.as_raw_fd()));
        let output = pipe.as_ref().unwrap_or(&paths.stdout);
        if !output.is_empty() {
            copies.copy_to_fifo(master.clone(), output).doing(|| "cannot copy from the terminal".into())?;
        }
        Ok(Self { master, copies })
    }

    pub(crate) fn close_stdin(&self) {
        self.copies.close_input();
    }

    /// The copies, for whoever waits for them.
    pub(crate) fn copies(&self) -> IoTasks {
        self.copies.clone()
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
