//! The system calls of a confined compiler: what an allocator, threads and two open files need. All others do not
//! exist for it (`ENOSYS`), so that a library that tries a newer call first falls back as on an older kernel.

use std::collections::BTreeMap;

use seccompiler::{
    BpfProgram, SeccompAction, SeccompCmpArgLen, SeccompCmpOp, SeccompCondition, SeccompFilter, SeccompRule, TargetArch,
};

use crate::error::{Context, Result};

/// System calls that are allowed with any arguments. None of them opens, names or reaches anything outside.
const ALLOWED: &[libc::c_long] = &[
    // memory; mmap and mprotect have a rule of their own
    libc::SYS_brk,
    libc::SYS_madvise,
    libc::SYS_mremap,
    libc::SYS_munmap,
    // the open files
    libc::SYS_close,
    libc::SYS_fcntl,
    libc::SYS_fstat,
    libc::SYS_lseek,
    libc::SYS_newfstatat,
    libc::SYS_pread64,
    libc::SYS_read,
    libc::SYS_statx,
    libc::SYS_write,
    libc::SYS_writev,
    // threads; clone has a rule of its own
    libc::SYS_exit,
    libc::SYS_exit_group,
    libc::SYS_futex,
    libc::SYS_getpid,
    libc::SYS_gettid,
    libc::SYS_rseq,
    libc::SYS_sched_getaffinity,
    libc::SYS_sched_yield,
    libc::SYS_set_robust_list,
    // signals, and to end by them
    libc::SYS_restart_syscall,
    libc::SYS_rt_sigaction,
    libc::SYS_rt_sigprocmask,
    libc::SYS_rt_sigreturn,
    libc::SYS_sigaltstack,
    libc::SYS_tgkill,
    // clocks and chance
    libc::SYS_clock_getres,
    libc::SYS_clock_gettime,
    libc::SYS_clock_nanosleep,
    libc::SYS_getrandom,
];

/// The namespaces that `clone(2)` could make.
const NEW_NAMESPACES: libc::c_int = libc::CLONE_NEWCGROUP
    | libc::CLONE_NEWIPC
    | libc::CLONE_NEWNET
    | libc::CLONE_NEWNS
    | libc::CLONE_NEWPID
    | libc::CLONE_NEWUSER
    | libc::CLONE_NEWUTS;

/// Compiles the filter and puts the calling thread, and every thread that it makes later, under it.
///
/// # Errors
/// The host's, if the kernel does not have seccomp, or the filter does not support the processor.
pub(super) fn install() -> Result<()> {
    apply(rules()?)
}

/// The same for a process that also opens files to read them.
///
/// # Errors
/// Those of [`install`].
pub(super) fn install_for_reader() -> Result<()> {
    let mut rules = rules()?;
    let writing = libc::O_ACCMODE | libc::O_CREAT | libc::O_TRUNC | libc::O_PATH;
    rules.insert(libc::SYS_openat, vec![masked(2, writing, libc::O_RDONLY)?]);
    apply(rules)
}

fn apply(rules: BTreeMap<i64, Vec<SeccompRule>>) -> Result<()> {
    seccompiler::apply_filter(&program(rules)?).or_host("cannot install the seccomp filter")
}

fn program(rules: BTreeMap<i64, Vec<SeccompRule>>) -> Result<BpfProgram> {
    let making = "cannot make the seccomp filter";
    let architecture = TargetArch::try_from(std::env::consts::ARCH).or_host(making)?;
    let refusal = SeccompAction::Errno(libc::ENOSYS.unsigned_abs());
    let filter = SeccompFilter::new(rules, refusal, SeccompAction::Allow, architecture).or_host(making)?;
    filter.try_into().or_host(making)
}

fn rules() -> Result<BTreeMap<i64, Vec<SeccompRule>>> {
    let mut rules: BTreeMap<_, _> = ALLOWED.iter().map(|call| (*call, Vec::new())).collect();
    // A compiler writes code but never runs it.
    let not_executable = masked(2, libc::PROT_EXEC, 0)?;
    rules.insert(libc::SYS_mmap, vec![not_executable.clone()]);
    rules.insert(libc::SYS_mprotect, vec![not_executable]);
    // Threads of this process only. The flags of clone3 are in memory, out of a filter's sight: without it, libc
    // makes its threads with clone.
    rules.insert(libc::SYS_clone, vec![masked(0, libc::CLONE_THREAD | NEW_NAMESPACES, libc::CLONE_THREAD)?]);
    // Its own limits, never those of another process.
    rules.insert(libc::SYS_prlimit64, vec![masked(0, -1, 0)?]);
    Ok(rules)
}

/// A rule that matches if the bits `mask` of argument `index` are `value`.
fn masked(index: u8, mask: libc::c_int, value: libc::c_int) -> Result<SeccompRule> {
    let bits = |word: libc::c_int| u64::from(word.cast_unsigned());
    let operator = SeccompCmpOp::MaskedEq(bits(mask));
    let condition = SeccompCondition::new(index, SeccompCmpArgLen::Dword, operator, bits(value));
    condition.and_then(|condition| SeccompRule::new(vec![condition])).or_host("cannot make the seccomp filter")
}

#[cfg(test)]
mod tests {
    use nix::sys::wait::{WaitStatus, waitpid};
    use nix::unistd::{ForkResult, fork};

    use super::*;

    /// Makes a system call under the filter, in a process of its own. Returns the error number, or 0 if it succeeded.
    fn errno_under_filter(number: libc::c_long, arguments: [libc::c_long; 4]) -> i32 {
        // SAFETY: the child makes system calls and exits; it takes no lock that another thread may hold.
        match unsafe { fork() }.unwrap() {
            ForkResult::Child => {
                // SAFETY: sets a flag of this process.
                unsafe { libc::prctl(libc::PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) };
                let installed = install().is_ok();
                let [a, b, c, d] = arguments;
                // SAFETY: the arguments are numbers, or null where the kernel wants memory.
                let done = unsafe { libc::syscall(number, a, b, c, d) };
                let errno = nix::errno::Errno::last_raw();
                let code = if !installed {
                    255
                } else if done == -1 {
                    errno
                } else {
                    0
                };
                // SAFETY: ends this process at once.
                unsafe { libc::_exit(code) }
            }
            ForkResult::Parent { child } => match waitpid(child, None).unwrap() {
                WaitStatus::Exited(_, code) => code,
                other => panic!("{other:?}"),
            },
        }
    }

    #[test]
    fn what_a_compiler_needs_is_allowed() {
        let private = i64::from(libc::MAP_PRIVATE | libc::MAP_ANONYMOUS);
        assert_eq!(errno_under_filter(libc::SYS_gettid, [0; 4]), 0);
        assert_eq!(errno_under_filter(libc::SYS_mmap, [0, 4096, i64::from(libc::PROT_READ), private]), 0);
        assert_eq!(errno_under_filter(libc::SYS_sched_yield, [0; 4]), 0);
    }

    #[test]
    fn everything_else_does_not_exist() {
        let private = i64::from(libc::MAP_PRIVATE | libc::MAP_ANONYMOUS);
        let refused: &[(libc::c_long, [libc::c_long; 4])] = &[
            (libc::SYS_socket, [i64::from(libc::AF_INET), i64::from(libc::SOCK_STREAM), 0, 0]),
            (libc::SYS_openat, [i64::from(libc::AT_FDCWD), 0, 0, 0]),
            (libc::SYS_execve, [0; 4]),
            (libc::SYS_ptrace, [0; 4]),
            (libc::SYS_bpf, [0; 4]),
            (libc::SYS_io_uring_setup, [0; 4]),
            (libc::SYS_unshare, [i64::from(libc::CLONE_NEWUSER), 0, 0, 0]),
            (libc::SYS_clone, [i64::from(libc::SIGCHLD), 0, 0, 0]),
            (libc::SYS_clone, [i64::from(libc::CLONE_THREAD | libc::CLONE_NEWUSER), 0, 0, 0]),
            (libc::SYS_clone3, [0; 4]),
            (libc::SYS_mmap, [0, 4096, i64::from(libc::PROT_EXEC), private]),
            (libc::SYS_mprotect, [0, 0, i64::from(libc::PROT_READ | libc::PROT_EXEC), 0]),
            (libc::SYS_prlimit64, [1, 0, 0, 0]),
            (libc::SYS_kill, [1, 0, 0, 0]),
            (9999, [0; 4]),
        ];
        for (number, arguments) in refused {
            assert_eq!(errno_under_filter(*number, *arguments), libc::ENOSYS, "{number} {arguments:?}");
        }
    }
}
