//! Runs a program and kills it from outside, before one of the system calls with which it changes something.

use std::os::unix::process::CommandExt;
use std::process::{Command, Stdio};

use nix::sys::ptrace;
use nix::sys::signal::Signal;
use nix::sys::wait::{WaitStatus, waitpid};
use nix::unistd::Pid;

/// How a run ended.
pub(crate) enum End {
    /// By the signal, before its step.
    Killed,
    /// By itself, before that step.
    Done(i32),
}

/// Runs `command` and kills it before its change number `step`, counted from 1.
#[allow(clippy::zombie_processes, reason = "it is waited for by its pid, as a tracer does")]
pub(crate) fn run_and_kill(mut command: Command, step: usize) -> End {
    command.stdout(Stdio::null()).stderr(Stdio::null());
    // SAFETY: between fork and exec the closure makes one system call.
    unsafe { command.pre_exec(|| Ok(ptrace::traceme()?)) };
    let child = command.spawn().unwrap();
    let pid = Pid::from_raw(child.id().cast_signed());
    assert_eq!(waitpid(pid, None).unwrap(), WaitStatus::Stopped(pid, Signal::SIGTRAP));
    ptrace::setoptions(pid, ptrace::Options::PTRACE_O_TRACESYSGOOD | ptrace::Options::PTRACE_O_EXITKILL).unwrap();
    let mut signal = None;
    let mut changes = 0;
    let mut is_inside = false;
    loop {
        ptrace::syscall(pid, signal.take()).unwrap();
        match waitpid(pid, None).unwrap() {
            WaitStatus::PtraceSyscall(_) => {
                is_inside = !is_inside;
                changes += usize::from(is_inside && is_change(pid));
                if changes == step {
                    ptrace::kill(pid).unwrap();
                    while !matches!(waitpid(pid, None).unwrap(), WaitStatus::Signaled(..)) {}
                    return End::Killed;
                }
            }
            WaitStatus::Stopped(_, other) => signal = Some(other),
            WaitStatus::Exited(_, code) => return End::Done(code),
            other => panic!("{other:?}"),
        }
    }
}

/// Whether the system call that begins changes a file, starts a program, or connects to the CRI.
fn is_change(pid: Pid) -> bool {
    let registers = ptrace::getregs(pid).unwrap();
    match registers.orig_rax.cast_signed() {
        libc::SYS_openat => registers.rdx & u64::from(libc::O_CREAT.cast_unsigned()) != 0,
        libc::SYS_rename
        | libc::SYS_renameat
        | libc::SYS_renameat2
        | libc::SYS_unlink
        | libc::SYS_unlinkat
        | libc::SYS_mkdir
        | libc::SYS_mkdirat
        | libc::SYS_rmdir
        | libc::SYS_symlink
        | libc::SYS_symlinkat
        | libc::SYS_fsync
        | libc::SYS_fchmod
        | libc::SYS_fchown
        | libc::SYS_clone
        | libc::SYS_clone3
        | libc::SYS_fork
        | libc::SYS_vfork
        | libc::SYS_connect => true,
        _ => false,
    }
}
