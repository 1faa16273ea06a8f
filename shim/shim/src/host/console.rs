//! Terminals: the socket over which the OCI runtime sends one, and its size.

use std::fs::File;
use std::io::{self, IoSliceMut};
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};
use std::path::{Path, PathBuf};

use nix::sys::socket::{ControlMessageOwned, MsgFlags, recvmsg};
use tokio::io::Interest;
use tokio::net::UnixListener;

/// Where sockets lie while a process is being made: paths of sockets must be short.
const DIRECTORY: &str = "/run/skiff";

/// A socket that waits for one terminal; its file is removed when it is dropped.
#[derive(Debug)]
pub(crate) struct ConsoleSocket {
    listener: UnixListener,
    path: PathBuf,
}

impl ConsoleSocket {
    /// Listens at a path that nobody else has, made from the process id and `serial`.
    pub(crate) fn listen(serial: u64) -> io::Result<Self> {
        std::fs::create_dir_all(DIRECTORY)?;
        let path = Path::new(DIRECTORY).join(format!("tty-{}-{serial}", std::process::id()));
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
            match stream.try_io(Interest::READABLE, || receive_descriptor(stream.as_raw_fd())) {
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

/// Removes the sockets that a shim that was killed has left.
pub(crate) fn remove_sockets_of(shim_pid: u32) -> io::Result<()> {
    let entries = match std::fs::read_dir(DIRECTORY) {
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

fn receive_descriptor(socket: RawFd) -> io::Result<File> {
    let mut name = [0_u8; 4096];
    let mut space = nix::cmsg_space!(RawFd);
    let mut iov = [IoSliceMut::new(&mut name)];
    let received = recvmsg::<()>(socket, &mut iov, Some(&mut space), MsgFlags::MSG_CMSG_CLOEXEC)?;
    for control in received.cmsgs()? {
        if let ControlMessageOwned::ScmRights(descriptors) = control
            && let Some(descriptor) = descriptors.first()
        {
            // SAFETY: the kernel has just made this descriptor for us, and nobody else knows of it.
            return Ok(File::from(unsafe { OwnedFd::from_raw_fd(*descriptor) }));
        }
    }
    Err(io::Error::new(io::ErrorKind::InvalidData, "the OCI runtime sent no terminal"))
}

/// Sets the size of a terminal, in characters.
pub(crate) fn resize(terminal: BorrowedFd<'_>, width: u16, height: u16) -> io::Result<()> {
    let size = libc::winsize { ws_row: height, ws_col: width, ws_xpixel: 0, ws_ypixel: 0 };
    // SAFETY: TIOCSWINSZ reads a winsize, which lives through the call.
    let set = unsafe { libc::ioctl(terminal.as_raw_fd(), libc::TIOCSWINSZ, &raw const size) };
    nix::errno::Errno::result(set)?;
    Ok(())
}
