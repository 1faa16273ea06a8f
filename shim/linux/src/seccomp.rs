//! System call filters for a whole process.

use std::io;
use std::ptr;
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::sys::ptrace;
use nix::sys::signal::Signal;
use nix::sys::wait::{Id, WaitPidFlag, WaitStatus, waitid};
use nix::unistd::Pid;

/// The most instructions of a filter: `BPF_MAXINSNS` from `linux/bpf_common.h`.
const INSTRUCTIONS_MAX: usize = 4096;
/// `PTRACE_SECCOMP_GET_FILTER` from `linux/ptrace.h`.
const GET_FILTER: libc::c_uint = 0x420c;
/// How long a process may take to stop where its filter can be read.
const STOP_LIMIT: Duration = Duration::from_secs(1);

/// One instruction of a filter, as a number: `struct sock_filter` from the code down to the constant.
pub type Instruction = u64;

/// Installs the filter `program` on every thread of the process.
///
/// # Errors
/// Those of `seccomp(2)`, for example on a kernel without it or for a program that is too long; an error when a thread
/// cannot get the filter.
pub fn install_on_all_threads(program: &mut [libc::sock_filter]) -> io::Result<()> {
    // Without the second flag, kernels before 5.16 slow down everything that the process computes.
    install(program, libc::SECCOMP_FILTER_FLAG_TSYNC | libc::SECCOMP_FILTER_FLAG_SPEC_ALLOW)
}

/// Installs a filter on this thread, and on those that it starts later. `logs`: the kernel logs what it refuses; `speculates`: the
/// process need not do without the processor's guesses about memory.
///
/// # Errors
/// Those of `seccomp(2)`.
pub fn install_on_this_thread(program: &[Instruction], logs: bool, speculates: bool) -> io::Result<()> {
    let mut program: Vec<_> = program.iter().copied().map(decoded).collect();
    let logging = if logs { libc::SECCOMP_FILTER_FLAG_LOG } else { 0 };
    let speculating = if speculates { libc::SECCOMP_FILTER_FLAG_SPEC_ALLOW } else { 0 };
    install(&mut program, logging | speculating)
}

/// Installs a filter. Kernels before 4.17 do not know the flag about speculation, and do not need it.
fn install(program: &mut [libc::sock_filter], flags: libc::c_ulong) -> io::Result<()> {
    let program =
        libc::sock_fprog { len: u16::try_from(program.len()).map_err(io::Error::other)?, filter: program.as_mut_ptr() };
    apply(&program, flags).or_else(|error| match error.raw_os_error() {
        Some(libc::EINVAL) => apply(&program, flags & !libc::SECCOMP_FILTER_FLAG_SPEC_ALLOW),
        _ => Err(error),
    })
}

fn apply(program: &libc::sock_fprog, flags: libc::c_ulong) -> io::Result<()> {
    // SAFETY: the program is a valid value whose instructions outlive the call; the kernel copies them.
    let applied =
        unsafe { libc::syscall(libc::SYS_seccomp, libc::SECCOMP_SET_MODE_FILTER, flags, std::ptr::from_ref(program)) };
    match applied {
        0 => Ok(()),
        -1 => Err(io::Error::last_os_error()),
        thread => Err(io::Error::other(format!("thread {thread} stays outside"))),
    }
}

/// Reads the filter of the process `pid`, which must have exactly one. Everything happens on this
/// thread, and if that ends, nothing is left of it: call it on one of its own.
///
/// # Errors
/// Those of `ptrace(2)`, among them `EACCES` without `CAP_SYS_ADMIN` or under a filter of one's own; `TimedOut` if the process does not
/// stop; an error if it has no filter, or several.
pub fn read_filter(pid: i32) -> io::Result<Vec<Instruction>> {
    let pid = Pid::from_raw(pid);
    ptrace::seize(pid, ptrace::Options::empty())?;
    ptrace::interrupt(pid)?;
    let signal = stopped(pid)?;
    let filter = filter_of_stopped(pid);
    // A signal that was about to be delivered still is.
    ptrace::detach(pid, signal)?;
    filter
}

/// Waits until a traced process stands still. Returns the signal that stopped it on its way.
fn stopped(pid: Pid) -> io::Result<Option<Signal>> {
    let began = Instant::now();
    // Its end is left to whoever waits for that.
    let flags = WaitPidFlag::WSTOPPED | WaitPidFlag::WNOHANG | WaitPidFlag::__WALL;
    loop {
        match waitid(Id::Pid(pid), flags)? {
            WaitStatus::PtraceEvent(_, signal, 0) | WaitStatus::Stopped(_, signal) => return Ok(Some(signal)),
            WaitStatus::PtraceEvent(..) => return Ok(None),
            _ if began.elapsed() > STOP_LIMIT => return Err(io::ErrorKind::TimedOut.into()),
            // It takes some microseconds.
            _ => std::thread::yield_now(),
        }
    }
}

fn filter_of_stopped(pid: Pid) -> io::Result<Vec<Instruction>> {
    let mut program = vec![decoded(0); INSTRUCTIONS_MAX];
    let count = filter_at(pid, 0, ptr::null_mut())?;
    if count > program.len() {
        return Err(io::Error::other(format!("a filter of {count} instructions")));
    }
    filter_at(pid, 0, program.as_mut_ptr())?;
    match filter_at(pid, 1, ptr::null_mut()) {
        Err(error) if error.raw_os_error() == Some(libc::ENOENT) => {}
        Err(error) => return Err(error),
        Ok(_) => return Err(io::Error::other("there are several filters")),
    }
    program.truncate(count);
    Ok(program.iter().map(encoded).collect())
}

/// Writes the filter `number` of a stopped process to `program`, which has room for the longest one or is null. Returns its length.
fn filter_at(pid: Pid, number: usize, program: *mut libc::sock_filter) -> io::Result<usize> {
    // SAFETY: `program` is null, or has room for as many instructions as the kernel ever takes for one filter.
    let count = unsafe { libc::ptrace(GET_FILTER, pid.as_raw(), number, program) };
    usize::try_from(Errno::result(count)?).map_err(io::Error::other)
}

fn encoded(instruction: &libc::sock_filter) -> Instruction {
    let libc::sock_filter { code, jt, jf, k } = *instruction;
    u64::from(code) << 48 | u64::from(jt) << 40 | u64::from(jf) << 32 | u64::from(k)
}

fn decoded(instruction: Instruction) -> libc::sock_filter {
    let [a, b, jt, jf, k @ ..] = instruction.to_be_bytes();
    libc::sock_filter { code: u16::from_be_bytes([a, b]), jt, jf, k: u32::from_be_bytes(k) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_instruction_is_a_number_and_back() {
        let instruction = libc::sock_filter { code: 0x15, jt: 2, jf: 255, k: 0xc000_003e };
        let number = encoded(&instruction);
        assert_eq!(number, 0x0015_02ff_c000_003e);
        assert_eq!(encoded(&decoded(number)), number);
    }
}
