//! Descriptors: inherited, closed in ranges, sent over sockets, watched.

use std::io::{self, IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};

use nix::errno::Errno;
use nix::fcntl::{FcntlArg, FdFlag, fcntl};
use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, ReturnFlags, SendAncillaryBuffer, SendAncillaryMessage,
    SendFlags, recvmsg, sendmsg,
};
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

/// The most descriptors that [`send`] and [`receive`] pass at once.
pub const PASSED_MAX: usize = 32;

/// Takes over the descriptor `number`, which the process that executed this program left open for it, and makes it close on
/// exec. Call it once per number, before this process opens anything itself.
///
/// # Errors
/// `EBADF` when it is not open; `InvalidInput` for a standard stream.
pub fn inherit(number: RawFd) -> io::Result<OwnedFd> {
    if number <= libc::STDERR_FILENO {
        return Err(io::Error::new(io::ErrorKind::InvalidInput, "a standard stream is not inherited like this"));
    }
    // SAFETY: `fcntl` on a number that is not open fails with `EBADF`; nothing is closed through this borrow.
    let borrowed = unsafe { BorrowedFd::borrow_raw(number) };
    fcntl(borrowed, FcntlArg::F_SETFD(FdFlag::FD_CLOEXEC))?;
    // SAFETY: the descriptor is open and was made for this program; by the contract above nothing else here owns it.
    Ok(unsafe { OwnedFd::from_raw_fd(number) })
}

/// Closes every descriptor from `first` on. Nothing in this process may use one of them any more: call it while the process
/// starts, or when it confines itself.
///
/// # Errors
/// `ENOSYS` before Linux 5.9.
pub fn close_from(first: u32) -> io::Result<()> {
    close_range(first, 0)
}

/// Gives the calling thread its own descriptor table, with nothing in it from `first` on. Code that runs on the thread
/// afterwards must not use a descriptor that the process opened before.
///
/// # Errors
/// Those of `close_range(2)`.
pub fn leave_table(first: u32) -> io::Result<()> {
    close_range(first, libc::CLOSE_RANGE_UNSHARE)
}

fn close_range(first: u32, flags: u32) -> io::Result<()> {
    // SAFETY: takes numbers only; the callers' contracts demand that nobody uses the descriptors.
    Errno::result(unsafe { libc::syscall(libc::SYS_close_range, first, u32::MAX, flags) })?;
    Ok(())
}

/// Sends `bytes` and copies of `files` over `socket`, in one message.
///
/// # Errors
/// `InvalidInput` for more than [`PASSED_MAX`] files; those of `sendmsg(2)`.
pub fn send(socket: impl AsFd, bytes: &[u8], files: &[BorrowedFd<'_>]) -> io::Result<()> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(PASSED_MAX))];
    let mut control = SendAncillaryBuffer::new(&mut space);
    // The space is rounded up, so it may have room for one more.
    if files.len() > PASSED_MAX || !control.push(SendAncillaryMessage::ScmRights(files)) {
        return Err(io::Error::new(io::ErrorKind::InvalidInput, "too many files for one message"));
    }
    sendmsg(socket, &[IoSlice::new(bytes)], &mut control, SendFlags::NOSIGNAL)?;
    Ok(())
}

/// Waits for one message on `socket`. Returns how many of its bytes are now in `bytes` (0 when the other end is closed) and
/// the files that came with it, at most [`PASSED_MAX`].
///
/// # Errors
/// Those of `recvmsg(2)`; `ENOBUFS` when not all of the files arrived.
pub fn receive(socket: impl AsFd, bytes: &mut [u8]) -> io::Result<(usize, Vec<OwnedFd>)> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(PASSED_MAX))];
    let mut control = RecvAncillaryBuffer::new(&mut space);
    let received = recvmsg(socket, &mut [IoSliceMut::new(bytes)], &mut control, RecvFlags::CMSG_CLOEXEC)?;
    // Descriptors were lost, because there is no room for more in this process, say.
    if received.flags.contains(ReturnFlags::CTRUNC) {
        return Err(Errno::ENOBUFS.into());
    }
    let mut files = Vec::new();
    for message in control.drain() {
        if let RecvAncillaryMessage::ScmRights(passed) = message {
            files.extend(passed);
        }
    }
    Ok((received.bytes, files))
}

/// Watches `file` on the current executor until it is readable or writable.
///
/// # Errors
/// `EPERM` for a file that is always ready, such as a regular one; those of `epoll_ctl(2)`.
pub fn watch(file: OwnedFd, interest: Interest) -> io::Result<AsyncFd<OwnedFd>> {
    // SAFETY: the AsyncFd owns the descriptor, so it stays open and the same as long as it is registered.
    Ok(unsafe { AsyncFd::register_with_interest(file, interest) }?)
}

/// The same for a standard stream, which stays open as long as the process lives.
///
/// # Errors
/// Those of [`watch`].
pub fn watch_static(stream: BorrowedFd<'static>, interest: Interest) -> io::Result<AsyncFd<BorrowedFd<'static>>> {
    // SAFETY: a descriptor with a `'static` borrow stays open and the same.
    Ok(unsafe { AsyncFd::register_with_interest(stream, interest) }?)
}

#[cfg(test)]
mod tests {
    use std::fs::File;
    use std::io::Read;
    use std::os::unix::net::UnixStream;

    use super::*;

    #[test]
    fn files_arrive_with_the_bytes() {
        let (ours, theirs) = UnixStream::pair().unwrap();
        let mut directory = tempfile::tempfile().unwrap();
        std::io::Write::write_all(&mut directory, b"text").unwrap();
        std::io::Seek::rewind(&mut directory).unwrap();
        send(&ours, b"x", &[directory.as_fd(), ours.as_fd()]).unwrap();
        let mut bytes = [0; 4];
        let (count, mut files) = receive(&theirs, &mut bytes).unwrap();
        assert_eq!((count, bytes[0], files.len()), (1, b'x', 2));
        let mut text = String::new();
        File::from(files.remove(0)).read_to_string(&mut text).unwrap();
        assert_eq!(text, "text");
        drop((ours, files));
        assert_eq!(receive(&theirs, &mut bytes).unwrap().0, 0);
    }

    #[test]
    fn no_more_files_are_sent_than_are_received() {
        let (ours, theirs) = UnixStream::pair().unwrap();
        let files = |count| vec![ours.as_fd(); count];
        assert_eq!(send(&ours, b"x", &files(PASSED_MAX + 1)).unwrap_err().kind(), io::ErrorKind::InvalidInput);
        send(&ours, b"x", &files(PASSED_MAX)).unwrap();
        assert_eq!(receive(&theirs, &mut [0]).unwrap().1.len(), PASSED_MAX);
    }

    #[test]
    fn only_what_is_open_and_no_stream_is_inherited() {
        assert_eq!(inherit(1).unwrap_err().kind(), io::ErrorKind::InvalidInput);
        assert_eq!(inherit(RawFd::MAX).unwrap_err().raw_os_error(), Some(libc::EBADF));
    }
}
