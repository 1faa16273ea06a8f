//! The standard streams of a process.

use std::fs::File;
use std::io;
use std::os::fd::{AsFd, BorrowedFd};

use rustix::fs::{Uid, fchown, fstat};
use rustix::io::Errno;
use rustix::process::ioctl_tiocsctty;
use rustix::stdio::{dup2_stderr, dup2_stdin, dup2_stdout, stderr, stdin, stdout};
use skiff_linux::{descriptors, terminal};
use skiff_protocol::launch::CONSOLE_FD;

use crate::root::{Root, is_null, proc_path};

fn all() -> [BorrowedFd<'static>; 3] {
    [stdin(), stdout(), stderr()]
}

/// Replaces those that are the node's `/dev/null` by the container's.
pub(crate) fn replace_null(root: &Root) -> io::Result<()> {
    let mut are_null = [false; 3];
    for (is, stream) in are_null.iter_mut().zip(all()) {
        *is = is_null(stream)?;
    }
    if are_null == [false; 3] {
        return Ok(());
    }
    let null = File::options().read(true).write(true).open(proc_path(&root.null()?))?;
    let replace: [fn(&File) -> rustix::io::Result<()>; 3] =
        [|null| dup2_stdin(null), |null| dup2_stdout(null), |null| dup2_stderr(null)];
    for (replace, _) in replace.iter().zip(are_null).filter(|(_, is_null)| *is_null) {
        replace(&null)?;
    }
    Ok(())
}

/// Makes a new terminal of the container the standard streams and the session's own, and sends its other end to the shim.
pub(crate) fn open_terminal() -> io::Result<()> {
    let console = descriptors::inherit(CONSOLE_FD)?;
    let (master, process) = terminal::open()?;
    descriptors::send(console, b"terminal", &[master.as_fd()])?;
    dup2_stdin(&process)?;
    dup2_stdout(&process)?;
    dup2_stderr(&process)?;
    Ok(ioctl_tiocsctty(&process)?)
}

/// Gives them to `user`, as far as they may be given away.
pub(crate) fn give_to(user: u32) -> io::Result<()> {
    for stream in all() {
        if fstat(stream)?.st_uid == user || is_null(stream)? {
            continue;
        }
        match fchown(stream, Some(Uid::from_raw(user)), None) {
            Ok(()) | Err(Errno::PERM | Errno::ROFS) => {}
            Err(error) => return Err(error.into()),
        }
    }
    Ok(())
}
