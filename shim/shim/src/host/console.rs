//! Terminals: the socket over which the OCI runtime sends one, and the size of one.

use std::fs::File;
use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::path::{Path, PathBuf};

use rustix::termios::{Winsize, tcsetwinsize};
use skiff_linux::descriptors::receive;
use skiff_protocol::names::TERMINALS;
use tokio::io::Interest;
use tokio::net::UnixListener;

/// A socket that waits for one terminal. Dropping it removes its file.
#[derive(Debug)]
pub(crate) struct ConsoleSocket {
    listener: UnixListener,
    path: PathBuf,
}

impl ConsoleSocket {
    /// Listens at a unique path, made from the process id and `serial`, that is short enough for a socket.
    pub(crate) fn listen(serial: u64) -> io::Result<Self> {
        std::fs::create_dir_all(TERMINALS)?;
        let path = Path::new(TERMINALS).join(format!("tty-{}-{serial}", std::process::id()));
        Ok(Self { listener: UnixListener::bind(&path)?, path })
    }

    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// Waits for the terminal's master.
    pub(crate) async fn receive(&self) -> io::Result<File> {
        let (stream, _) = self.listener.accept().await?;
        loop {
            stream.readable().await?;
            match stream.try_io(Interest::READABLE, || receive_descriptor(stream.as_fd())) {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                result => return result,
            }
        }
    }
}

impl Drop for ConsoleSocket {
    fn drop(&mut self) {
        if let Err(error) = std::fs::remove_file(&self.path) {
            log::warn!("cannot remove `{}`: {error}", self.path.display());
        }
    }
}

/// Removes the sockets that a killed shim left.
pub(crate) fn remove_sockets_of(shim_pid: u32) -> io::Result<()> {
    let entries = match std::fs::read_dir(TERMINALS) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        read => read?,
    };
    let prefix = format!("tty-{shim_pid}-");
    for entry in entries {
        let entry = entry?;
        if entry.file_name().to_string_lossy().starts_with(&prefix) {
            std::fs::remove_file(entry.path())?;
        }
    }
    Ok(())
}

fn receive_descriptor(socket: BorrowedFd<'_>) -> io::Result<File> {
    // The bytes are the terminal's name, which nobody needs.
    let (_, files) = receive(socket, &mut [0; 4096])?;
    let terminal = files.into_iter().next();
    terminal
        .map(File::from)
        .ok_or_else(|| io::Error::new(io::ErrorKind::InvalidData, "the OCI runtime sent no terminal"))
}

/// Sets the size of a terminal, in characters.
pub(crate) fn resize(terminal: BorrowedFd<'_>, width: u16, height: u16) -> io::Result<()> {
    let size = Winsize { ws_row: height, ws_col: width, ws_xpixel: 0, ws_ypixel: 0 };
    Ok(tcsetwinsize(terminal, size)?)
}
