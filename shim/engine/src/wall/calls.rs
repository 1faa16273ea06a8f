//! Which system calls stay, and with which arguments. Calls that name or make another process, load or write code, change
//! namespaces or reach the kernel's newer machinery are not here.

use std::io;

use libc::{c_int, c_long};

/// A system call that exists.
pub(super) struct Call {
    pub(super) number: u32,
    pub(super) rule: Rule,
}

/// With which arguments.
pub(super) enum Rule {
    /// With any.
    Allowed,
    /// It does not exist.
    Missing,
    /// It ends the process.
    Fatal,
    /// If all conditions of one alternative hold; else the error.
    When(Vec<Vec<Condition>>, c_int),
}

/// Of the lower 32 bits of argument `argument`, those in `mask` are `value`.
pub(super) struct Condition {
    pub(super) argument: u8,
    pub(super) mask: u32,
    pub(super) value: u32,
}

/// Calls that are allowed with any arguments.
const ALLOWED: &[c_long] = &[
    // memory; mmap and mprotect have rules of their own
    libc::SYS_brk,
    libc::SYS_madvise,
    libc::SYS_mremap,
    libc::SYS_munmap,
    // files, below the directories that are open
    libc::SYS_close,
    libc::SYS_dup,
    libc::SYS_dup3,
    libc::SYS_faccessat,
    libc::SYS_faccessat2,
    libc::SYS_fadvise64,
    libc::SYS_fallocate,
    libc::SYS_fdatasync,
    libc::SYS_fstat,
    libc::SYS_fstatfs,
    libc::SYS_fsync,
    libc::SYS_ftruncate,
    libc::SYS_getdents64,
    libc::SYS_linkat,
    libc::SYS_lseek,
    libc::SYS_mkdirat,
    libc::SYS_newfstatat,
    libc::SYS_openat,
    libc::SYS_openat2,
    libc::SYS_pread64,
    libc::SYS_preadv,
    libc::SYS_preadv2,
    libc::SYS_pwrite64,
    libc::SYS_pwritev,
    libc::SYS_pwritev2,
    libc::SYS_read,
    libc::SYS_readlinkat,
    libc::SYS_readv,
    libc::SYS_renameat,
    libc::SYS_renameat2,
    libc::SYS_statx,
    libc::SYS_symlinkat,
    libc::SYS_unlinkat,
    libc::SYS_utimensat,
    libc::SYS_write,
    libc::SYS_writev,
    // sockets; socket and setsockopt have rules of their own
    libc::SYS_accept4,
    libc::SYS_bind,
    libc::SYS_connect,
    libc::SYS_getpeername,
    libc::SYS_getsockname,
    libc::SYS_getsockopt,
    libc::SYS_listen,
    libc::SYS_recvfrom,
    libc::SYS_sendto,
    libc::SYS_shutdown,
    // waiting
    libc::SYS_epoll_create1,
    libc::SYS_epoll_ctl,
    libc::SYS_epoll_pwait,
    libc::SYS_eventfd2,
    libc::SYS_pipe2,
    libc::SYS_ppoll,
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
    // signals of the process to itself; tgkill has a rule of its own
    libc::SYS_restart_syscall,
    libc::SYS_rt_sigaction,
    libc::SYS_rt_sigprocmask,
    libc::SYS_rt_sigreturn,
    libc::SYS_setitimer,
    libc::SYS_sigaltstack,
    // clocks, chance, and the host's name, whose domain is searched for names
    libc::SYS_clock_getres,
    libc::SYS_clock_gettime,
    libc::SYS_clock_nanosleep,
    libc::SYS_getrandom,
    libc::SYS_nanosleep,
    libc::SYS_uname,
];

/// Older calls, which C libraries use on this processor only.
#[cfg(target_arch = "x86_64")]
const OLDER: &[c_long] = &[libc::SYS_epoll_wait, libc::SYS_gettimeofday, libc::SYS_poll, libc::SYS_time];
#[cfg(not(target_arch = "x86_64"))]
const OLDER: &[c_long] = &[libc::SYS_gettimeofday];

/// Everything that `clone(2)` could make besides a thread.
const NO_THREAD: c_int = libc::CLONE_NEWCGROUP
    | libc::CLONE_NEWIPC
    | libc::CLONE_NEWNET
    | libc::CLONE_NEWNS
    | libc::CLONE_NEWPID
    | libc::CLONE_NEWUSER
    | libc::CLONE_NEWUTS
    | libc::CLONE_PTRACE
    | libc::CLONE_VFORK;

/// The part of a socket's type that is not a flag.
const SOCKET_TYPE: c_int = 0xf;
const SOCKETS: &[[c_int; 3]] = &[
    [libc::AF_INET, libc::SOCK_STREAM, 0],
    [libc::AF_INET, libc::SOCK_STREAM, libc::IPPROTO_TCP],
    [libc::AF_INET, libc::SOCK_DGRAM, 0],
    [libc::AF_INET, libc::SOCK_DGRAM, libc::IPPROTO_UDP],
    [libc::AF_INET6, libc::SOCK_STREAM, 0],
    [libc::AF_INET6, libc::SOCK_STREAM, libc::IPPROTO_TCP],
    [libc::AF_INET6, libc::SOCK_DGRAM, 0],
    [libc::AF_INET6, libc::SOCK_DGRAM, libc::IPPROTO_UDP],
];
/// The options of sockets that WASI, tokio and the server set.
const SOCKET_OPTIONS: &[[c_int; 2]] = &[
    [libc::SOL_SOCKET, libc::SO_KEEPALIVE],
    [libc::SOL_SOCKET, libc::SO_LINGER],
    [libc::SOL_SOCKET, libc::SO_RCVBUF],
    [libc::SOL_SOCKET, libc::SO_REUSEADDR],
    [libc::SOL_SOCKET, libc::SO_SNDBUF],
    [libc::IPPROTO_TCP, libc::TCP_KEEPCNT],
    [libc::IPPROTO_TCP, libc::TCP_KEEPIDLE],
    [libc::IPPROTO_TCP, libc::TCP_KEEPINTVL],
    [libc::IPPROTO_TCP, libc::TCP_NODELAY],
    [libc::IPPROTO_IP, libc::IP_TTL],
    [libc::IPPROTO_IPV6, libc::IPV6_UNICAST_HOPS],
    [libc::IPPROTO_IPV6, libc::IPV6_V6ONLY],
];
/// What `fcntl` does to a descriptor itself. Those that make the kernel send signals are not here.
const FCNTL_COMMANDS: &[c_int] =
    &[libc::F_DUPFD, libc::F_DUPFD_CLOEXEC, libc::F_GETFD, libc::F_SETFD, libc::F_GETFL, libc::F_SETFL];
/// `PAGEMAP_SCAN` of Linux 6.7: which pages of its own this process has written, so that a pool clears only those.
const PAGEMAP_SCAN: libc::Ioctl = 0xc060_6610;
/// Whether a descriptor blocks, is closed by an exec, has bytes, has yet to send some, or is a terminal, which C libraries ask in
/// two ways. Nothing that changes a terminal or types into it is here.
const IOCTL_REQUESTS: &[libc::Ioctl] = &[
    libc::FIONBIO,
    libc::FIONREAD,
    libc::FIOCLEX,
    libc::FIONCLEX,
    libc::TCGETS,
    libc::TIOCGWINSZ,
    libc::TIOCOUTQ,
    PAGEMAP_SCAN,
];
/// `PIDFD_SELF_THREAD_GROUP` of Linux 6.14: with it wasmtime gives back many of its own pages at once.
const THIS_PROCESS: c_int = -10_000;

/// All calls that exist for this process.
///
/// # Errors
/// Never: all numbers of calls are small.
pub(super) fn calls() -> io::Result<Vec<Call>> {
    let mut calls = Vec::new();
    for number in ALLOWED.iter().chain(OLDER) {
        calls.push(call(*number, Rule::Allowed)?);
    }
    let no_code = || Rule::When(vec![vec![bits(2, libc::PROT_EXEC, 0)]], libc::EPERM);
    calls.push(call(libc::SYS_mmap, no_code())?);
    calls.push(call(libc::SYS_mprotect, no_code())?);
    // The flags of clone3 are in memory, where a filter cannot see them. Without it, libc makes its threads with clone.
    let thread = vec![bits(0, libc::CLONE_THREAD | NO_THREAD, libc::CLONE_THREAD)];
    calls.push(call(libc::SYS_clone, Rule::When(vec![thread], libc::EPERM))?);
    let own = |argument| Rule::When(vec![vec![whole(argument, std::process::id())]], libc::EPERM);
    calls.push(call(libc::SYS_tgkill, own(0))?);
    let own_pages = vec![whole(0, THIS_PROCESS.cast_unsigned())];
    calls.push(call(libc::SYS_process_madvise, Rule::When(vec![own_pages], libc::ENOSYS))?);
    let name = vec![whole(0, libc::PR_SET_NAME.cast_unsigned())];
    calls.push(call(libc::SYS_prctl, Rule::When(vec![name], libc::EPERM))?);
    // It may read its own limits, and set none.
    let asks = vec![whole(0, 0), whole(2, 0)];
    calls.push(call(libc::SYS_prlimit64, Rule::When(vec![asks], libc::EPERM))?);
    let sockets = SOCKETS.iter().map(|[family, kind, protocol]| {
        vec![whole(0, family.cast_unsigned()), bits(1, SOCKET_TYPE, *kind), whole(2, protocol.cast_unsigned())]
    });
    calls.push(call(libc::SYS_socket, Rule::When(sockets.collect(), libc::EAFNOSUPPORT))?);
    let options = SOCKET_OPTIONS
        .iter()
        .map(|[level, option]| vec![whole(1, level.cast_unsigned()), whole(2, option.cast_unsigned())]);
    calls.push(call(libc::SYS_setsockopt, Rule::When(options.collect(), libc::ENOPROTOOPT))?);
    let commands = FCNTL_COMMANDS.iter().map(|command| vec![whole(1, command.cast_unsigned())]);
    calls.push(call(libc::SYS_fcntl, Rule::When(commands.collect(), libc::EPERM))?);
    let requests =
        IOCTL_REQUESTS.iter().filter_map(|request| u32::try_from(*request).ok()).map(|one| vec![whole(1, one)]);
    calls.push(call(libc::SYS_ioctl, Rule::When(requests.collect(), libc::ENOTTY))?);
    Ok(calls)
}

fn call(number: c_long, rule: Rule) -> io::Result<Call> {
    Ok(Call { number: u32::try_from(number).map_err(io::Error::other)?, rule })
}

fn whole(argument: u8, value: u32) -> Condition {
    Condition { argument, mask: u32::MAX, value }
}

fn bits(argument: u8, mask: c_int, value: c_int) -> Condition {
    Condition { argument, mask: mask.cast_unsigned(), value: value.cast_unsigned() }
}
