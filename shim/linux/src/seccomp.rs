//! System call filters for a whole process.

use std::io;

/// Installs the filter `program` on every thread of the process.
///
/// # Errors
/// Those of `seccomp(2)`, for example on a kernel without it or for a program that is too long; an error when a thread
/// cannot get the filter.
pub fn install_on_all_threads(program: &mut [libc::sock_filter]) -> io::Result<()> {
    let program =
        libc::sock_fprog { len: u16::try_from(program.len()).map_err(io::Error::other)?, filter: program.as_mut_ptr() };
    // Without the second flag, kernels before 5.16 slow down everything that the process computes.
    let all_threads = libc::SECCOMP_FILTER_FLAG_TSYNC;
    apply(&program, all_threads | libc::SECCOMP_FILTER_FLAG_SPEC_ALLOW).or_else(|error| match error.raw_os_error() {
        Some(libc::EINVAL) => apply(&program, all_threads),
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
