//! What went wrong with a file, in the words of each version of WASI. wasmtime's own tables lack some of the kernel's errors.

use std::io;

use rustix::io::Errno;
use wasmtime_wasi::p1::types::Errno as P1Errno;
use wasmtime_wasi::p2::bindings::filesystem::types::ErrorCode as P2Code;
use wasmtime_wasi::p3::bindings::filesystem::types::ErrorCode as P3Code;

/// For 0.1.
pub(super) fn p1(error: Errno) -> P1Errno {
    p2(error).into()
}

/// For 0.2.
pub(super) fn p2(error: Errno) -> P2Code {
    match error {
        Errno::AGAIN => P2Code::WouldBlock,
        Errno::DQUOT => P2Code::Quota,
        Errno::NODEV => P2Code::NoDevice,
        Errno::NXIO => P2Code::NoSuchDevice,
        Errno::ROFS => P2Code::ReadOnly,
        Errno::TXTBSY => P2Code::TextFileBusy,
        Errno::XDEV => P2Code::CrossDevice,
        other => io::Error::from(other).into(),
    }
}

/// For 0.3.
pub(super) fn p3(error: Errno) -> P3Code {
    match error {
        Errno::DQUOT => P3Code::Quota,
        Errno::NODEV => P3Code::NoDevice,
        Errno::NXIO => P3Code::NoSuchDevice,
        Errno::ROFS => P3Code::ReadOnly,
        Errno::TXTBSY => P3Code::TextFileBusy,
        Errno::XDEV => P3Code::CrossDevice,
        other => io::Error::from(other).into(),
    }
}
