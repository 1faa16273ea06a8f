//! Programs that the kernel asks whether a cgroup's processes may use a device (bpf(2), `BPF_PROG_TYPE_CGROUP_DEVICE`). All programs
//! of a cgroup and of those above it have to agree.
//!
//! Before Linux 5.11 a program counts as locked memory of this process.

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};

/// Commands, kinds and flags from `linux/bpf.h`.
const LOAD: libc::c_int = 5;
const ATTACH: libc::c_int = 8;
const DETACH: libc::c_int = 9;
const OPEN_BY_ID: libc::c_int = 13;
const QUERY: libc::c_int = 16;
const PROGRAM_CGROUP_DEVICE: u32 = 15;
const CGROUP_DEVICE: u32 = 6;
const ALLOW_MULTI: u32 = 2;

/// The most programs that a cgroup has.
const PROGRAMS_MAX: usize = 64;
/// How often a program is loaded again because a signal has come.
const TRIES_MAX: usize = 30;

/// One instruction: `struct bpf_insn` from `linux/bpf.h`, on processors that have the low bits first.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(C)]
pub struct Instruction {
    /// What it does.
    pub code: u8,
    /// The register that it changes, and 16 times the one that it reads.
    pub registers: u8,
    /// How far it jumps, or from where it loads.
    pub offset: i16,
    /// Its number.
    pub number: i32,
}

/// `union bpf_attr` of [`LOAD`].
#[repr(C)]
struct Load {
    kind: u32,
    count: u32,
    instructions: u64,
    license: u64,
}

/// That of [`ATTACH`] and [`DETACH`].
#[repr(C)]
struct Attach {
    cgroup: u32,
    program: u32,
    kind: u32,
    flags: u32,
}

/// That of [`QUERY`]. Some kernels write all of it, however long they are told it is.
#[repr(C)]
#[derive(Default)]
struct Query {
    cgroup: u32,
    kind: u32,
    flags: u32,
    attach_flags: u32,
    ids: u64,
    count: u32,
    padding: u32,
    more: [u64; 4],
}

/// Loads a program for devices.
///
/// # Errors
/// Those of `bpf(2)`, among them `InvalidInput` and `PermissionDenied` for a program that the kernel does not trust.
pub fn load(program: &[Instruction]) -> io::Result<OwnedFd> {
    let mut attribute = Load {
        kind: PROGRAM_CGROUP_DEVICE,
        count: u32::try_from(program.len()).map_err(io::Error::other)?,
        instructions: address(program.as_ptr()),
        license: address(c"Apache".as_ptr()),
    };
    for _ in 1..TRIES_MAX {
        // SAFETY: both addresses are those of values that outlive the call, with the count of the one and a zero behind the other.
        match unsafe { call(LOAD, &mut attribute) } {
            Err(error) if error.raw_os_error() == Some(libc::EAGAIN) => {}
            // SAFETY: the number is that of a new descriptor, which nobody else owns.
            loaded => return loaded.map(|number| unsafe { OwnedFd::from_raw_fd(number) }),
        }
    }
    Err(io::ErrorKind::Interrupted.into())
}

/// Lets `program` decide about devices in `cgroup`, beside the programs that do so already.
///
/// # Errors
/// Those of `bpf(2)`.
pub fn attach(cgroup: BorrowedFd<'_>, program: BorrowedFd<'_>) -> io::Result<()> {
    change(ATTACH, cgroup, program, ALLOW_MULTI)
}

/// Keeps `program` from deciding about devices in `cgroup`.
///
/// # Errors
/// Those of `bpf(2)`.
pub fn detach(cgroup: BorrowedFd<'_>, program: BorrowedFd<'_>) -> io::Result<()> {
    change(DETACH, cgroup, program, 0)
}

/// The programs that decide about devices in `cgroup`, without those above it and those that are out of reach.
///
/// # Errors
/// Those of `bpf(2)`.
pub fn attached(cgroup: BorrowedFd<'_>) -> io::Result<Vec<OwnedFd>> {
    let mut ids = [0_u32; PROGRAMS_MAX];
    let mut query = Query {
        cgroup: number(cgroup)?,
        kind: CGROUP_DEVICE,
        ids: address(ids.as_mut_ptr()),
        count: u32::try_from(ids.len()).map_err(io::Error::other)?,
        ..Query::default()
    };
    // SAFETY: the address is that of as many numbers as are said, which outlive the call.
    unsafe { call(QUERY, &mut query) }?;
    let count = usize::try_from(query.count).map_err(io::Error::other)?;
    let mut programs = Vec::new();
    for id in ids.iter().take(count) {
        let mut attribute = *id;
        // SAFETY: the attribute has no address.
        match unsafe { call(OPEN_BY_ID, &mut attribute) } {
            Err(error) if error.kind() == io::ErrorKind::PermissionDenied => {}
            // SAFETY: the number is that of a new descriptor, which nobody else owns.
            opened => programs.push(opened.map(|number| unsafe { OwnedFd::from_raw_fd(number) })?),
        }
    }
    Ok(programs)
}

fn change(command: libc::c_int, cgroup: BorrowedFd<'_>, program: BorrowedFd<'_>, flags: u32) -> io::Result<()> {
    let mut attribute = Attach { cgroup: number(cgroup)?, program: number(program)?, kind: CGROUP_DEVICE, flags };
    // SAFETY: the attribute has no address.
    unsafe { call(command, &mut attribute) }.map(drop)
}

fn number(descriptor: BorrowedFd<'_>) -> io::Result<u32> {
    u32::try_from(descriptor.as_raw_fd()).map_err(io::Error::other)
}

fn address<T>(pointer: *const T) -> u64 {
    pointer.addr() as u64
}

/// # Safety
/// The attribute must be the command's, and each address in it that of a value which outlives the call and is as long as it says.
unsafe fn call<T>(command: libc::c_int, attribute: &mut T) -> io::Result<RawFd> {
    // SAFETY: as the caller promises; the attribute is as long as is said.
    match unsafe { libc::syscall(libc::SYS_bpf, command, std::ptr::from_mut(attribute), size_of::<T>()) } {
        -1 => Err(io::Error::last_os_error()),
        result => RawFd::try_from(result).map_err(io::Error::other),
    }
}
