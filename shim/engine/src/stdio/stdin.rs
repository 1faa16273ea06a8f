//! The guest's stdin.

use nix::fcntl::{FcntlArg, OFlag, fcntl};

/// Clears `O_NONBLOCK` on stdin: another holder of the same open file may have set it.
pub(crate) fn block() {
    let stdin = std::io::stdin();
    // A stdin that cannot be asked cannot be read either: the guest gets that error when it tries.
    if let Ok(flags) = fcntl(&stdin, FcntlArg::F_GETFL).map(OFlag::from_bits_retain)
        && flags.contains(OFlag::O_NONBLOCK)
    {
        let _set = fcntl(&stdin, FcntlArg::F_SETFL(flags - OFlag::O_NONBLOCK));
    }
}
