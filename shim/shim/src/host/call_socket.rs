//! The call socket of a wasm container: bound in the bundle, where only root comes, listened to by the engine of the container's
//! guest, and connected to for the engine of an exec. The shim itself sends and reads nothing.

use std::fs::{self, File};
use std::io::{self, ErrorKind};
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::path::Path;

use nix::errno::Errno;
use nix::fcntl::{OFlag, open};
use nix::sys::socket::{
    AddressFamily, Backlog, SockFlag, SockType, UnixAddr, bind, connect, listen as start_to_listen, socket,
};
use nix::sys::stat::{Mode, fchmod};

/// The name of the socket in the bundle.
const FILE: &str = "calls";
/// How many connections may wait until the engine accepts them.
const WAITING_MAX: i32 = 128;

/// Binds the call socket of the container in `bundle`, which only root may connect to.
///
/// # Errors
/// Those of `bind(2)` and `listen(2)`.
pub(crate) fn listen(bundle: &Path) -> io::Result<File> {
    match fs::remove_file(bundle.join(FILE)) {
        Err(error) if error.kind() != ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    let listener = socket(AddressFamily::Unix, SockType::Stream, SockFlag::SOCK_CLOEXEC, None)?;
    // The file gets the mode of the socket.
    fchmod(&listener, Mode::S_IRUSR | Mode::S_IWUSR)?;
    with_address(bundle, |address| bind(listener.as_raw_fd(), address))?;
    start_to_listen(&listener, Backlog::new(WAITING_MAX)?)?;
    Ok(File::from(listener))
}

/// Connects to the call socket of the container in `bundle`, without waiting; `None` if nobody listens any more.
///
/// # Errors
/// `WouldBlock` if as many connections as there may be wait already; those of `connect(2)`.
pub(crate) fn ask(bundle: &Path) -> io::Result<Option<File>> {
    let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
    let connection = socket(AddressFamily::Unix, SockType::Stream, flags, None)?;
    match with_address(bundle, |address| connect(connection.as_raw_fd(), address)) {
        Ok(()) => {}
        Err(Errno::ECONNREFUSED | Errno::ENOENT) => return Ok(None),
        Err(error) => return Err(error.into()),
    }
    let connection = UnixStream::from(connection);
    connection.set_nonblocking(false)?;
    Ok(Some(File::from(OwnedFd::from(connection))))
}

/// Calls `with` with the address of the socket in `bundle`, whose own path may be longer than an address.
fn with_address(bundle: &Path, with: impl FnOnce(&UnixAddr) -> nix::Result<()>) -> nix::Result<()> {
    let directory = open(bundle, OFlag::O_PATH | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC, Mode::empty())?;
    let path = format!("/proc/self/fd/{}/{FILE}", directory.as_raw_fd());
    with(&UnixAddr::new(path.as_str())?)
}

#[cfg(test)]
mod tests {
    use std::io::{Read, Write};
    use std::os::unix::fs::PermissionsExt;
    use std::os::unix::net::UnixListener;

    use super::*;

    /// A bundle whose path is longer than the address of a socket may be.
    fn bundle() -> (tempfile::TempDir, std::path::PathBuf) {
        let directory = tempfile::tempdir().unwrap();
        let bundle = directory.path().join("b".repeat(120));
        fs::create_dir(&bundle).unwrap();
        (directory, bundle)
    }

    #[test]
    fn who_asks_is_heard_by_who_listens_and_nobody_but_root_may() {
        let (_directory, bundle) = bundle();
        assert!(ask(&bundle).unwrap().is_none(), "nobody listens yet");
        let listener = UnixListener::from(OwnedFd::from(listen(&bundle).unwrap()));
        assert_eq!(fs::metadata(bundle.join(FILE)).unwrap().permissions().mode() & 0o777, 0o600);
        let asking = ask(&bundle).unwrap().unwrap();
        (&asking).write_all(b"?").unwrap();
        let (mut heard, _) = listener.accept().unwrap();
        let mut question = [0];
        heard.read_exact(&mut question).unwrap();
        assert_eq!(&question, b"?");
        drop(listener);
        assert!(ask(&bundle).unwrap().is_none(), "nobody listens any more");
        listen(&bundle).unwrap();
    }

    #[test]
    fn an_engine_that_accepts_nobody_keeps_nobody_waiting() {
        let (_directory, bundle) = bundle();
        let _listener = listen(&bundle).unwrap();
        let mut waiting = Vec::new();
        let error = loop {
            match ask(&bundle) {
                Ok(connection) => waiting.push(connection),
                Err(error) => break error,
            }
        };
        assert_eq!(error.kind(), ErrorKind::WouldBlock);
        assert!(waiting.len() > 100, "{}", waiting.len());
    }
}
