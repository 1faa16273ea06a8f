//! What must fail behind the wall, one attempt after the other.

use std::io::Error;

use libc::c_long;

/// A system call that must be refused.
pub(crate) struct Attempt {
    what: &'static str,
    number: c_long,
    arguments: [c_long; 6],
    expected: i32,
}

impl Attempt {
    /// Tries it on this thread and prints the result.
    pub(crate) fn report(&self, thread: &str) {
        let [a, b, c, d, e, f] = self.arguments;
        // SAFETY: the call is refused. If it is not, it gets numbers or nulls where the kernel wants memory.
        let answer = unsafe { libc::syscall(self.number, a, b, c, d, e, f) };
        let errno = Error::last_os_error().raw_os_error();
        let outcome = match (answer, errno) {
            (-1, Some(errno)) if errno == self.expected => "refused".to_owned(),
            (-1, errno) => format!("fails otherwise ({errno:?})"),
            _ => "SUCCEEDS".to_owned(),
        };
        println!("{thread}: {}: {outcome}", self.what);
    }
}

/// All attempts.
pub(crate) fn attempts() -> Vec<Attempt> {
    let mut all = Vec::new();
    let mut add = |what, number, arguments: &[i64], expected| {
        let mut padded = [0; 6];
        padded[..arguments.len()].copy_from_slice(arguments);
        all.push(Attempt { what, number, arguments: padded, expected });
    };
    let parent = i64::from(nix::unistd::getppid().as_raw());
    let itself = i64::from(std::process::id());
    for (what, number) in [
        ("exec", libc::SYS_execve),
        ("execveat", libc::SYS_execveat),
        ("ptrace", libc::SYS_ptrace),
        ("process_vm_readv", libc::SYS_process_vm_readv),
        ("process_vm_writev", libc::SYS_process_vm_writev),
        ("mount", libc::SYS_mount),
        ("umount", libc::SYS_umount2),
        ("open_tree", libc::SYS_open_tree),
        ("move_mount", libc::SYS_move_mount),
        ("fsopen", libc::SYS_fsopen),
        ("mount_setattr", libc::SYS_mount_setattr),
        ("pivot_root", libc::SYS_pivot_root),
        ("chroot", libc::SYS_chroot),
        ("setns", libc::SYS_setns),
        ("bpf", libc::SYS_bpf),
        ("io_uring_setup", libc::SYS_io_uring_setup),
        ("keyctl", libc::SYS_keyctl),
        ("add_key", libc::SYS_add_key),
        ("request_key", libc::SYS_request_key),
        ("perf_event_open", libc::SYS_perf_event_open),
        ("userfaultfd", libc::SYS_userfaultfd),
        ("pidfd_open", libc::SYS_pidfd_open),
        ("pidfd_getfd", libc::SYS_pidfd_getfd),
        ("pidfd_send_signal", libc::SYS_pidfd_send_signal),
        ("open_by_handle_at", libc::SYS_open_by_handle_at),
        ("kcmp", libc::SYS_kcmp),
        ("personality", libc::SYS_personality),
        ("kexec_load", libc::SYS_kexec_load),
        ("init_module", libc::SYS_init_module),
        ("finit_module", libc::SYS_finit_module),
        ("memfd_create", libc::SYS_memfd_create),
        ("memfd_secret", 447),
        ("seccomp", libc::SYS_seccomp),
        ("clone3", libc::SYS_clone3),
        ("setuid", libc::SYS_setuid),
        ("capset", libc::SYS_capset),
        ("mknodat", libc::SYS_mknodat),
        ("fchmodat", libc::SYS_fchmodat),
        ("fchownat", libc::SYS_fchownat),
        ("setxattr", libc::SYS_setxattr),
        ("shmget", libc::SYS_shmget),
        ("mq_open", libc::SYS_mq_open),
        ("splice", libc::SYS_splice),
        ("vmsplice", libc::SYS_vmsplice),
        ("pkey_mprotect", libc::SYS_pkey_mprotect),
        ("a call that there is not", 9999),
    ] {
        add(what, number, &[], libc::ENOSYS);
    }
    add("unshare", libc::SYS_unshare, &[i64::from(libc::CLONE_NEWUSER)], libc::ENOSYS);
    add("socketpair", libc::SYS_socketpair, &[i64::from(libc::AF_UNIX), i64::from(libc::SOCK_STREAM)], libc::ENOSYS);
    add("kill of another process", libc::SYS_kill, &[parent, 0], libc::ENOSYS);
    add("tgkill of another process", libc::SYS_tgkill, &[parent, parent, 0], libc::EPERM);
    add("fork", libc::SYS_clone, &[i64::from(libc::SIGCHLD)], libc::EPERM);
    let namespace = i64::from(libc::CLONE_THREAD | libc::CLONE_NEWUSER);
    add("a thread in a new namespace", libc::SYS_clone, &[namespace], libc::EPERM);
    add("limits of another process", libc::SYS_prlimit64, &[parent, 0, 0, 0], libc::EPERM);
    add("advice about another process", libc::SYS_process_madvise, &[0, 0, 0, 4, 0], libc::ENOSYS);
    add("prctl", libc::SYS_prctl, &[i64::from(libc::PR_SET_DUMPABLE), 1], libc::EPERM);
    let anonymous = i64::from(libc::MAP_PRIVATE | libc::MAP_ANONYMOUS);
    for (what, protection) in [
        ("executable memory", libc::PROT_READ | libc::PROT_EXEC),
        ("writable executable memory", libc::PROT_READ | libc::PROT_WRITE | libc::PROT_EXEC),
    ] {
        add(what, libc::SYS_mmap, &[0, 4096, i64::from(protection), anonymous, -1, 0], libc::EPERM);
        add(what, libc::SYS_mprotect, &[0, 4096, i64::from(protection)], libc::EPERM);
    }
    for (what, family, kind, protocol) in [
        ("a Unix socket", libc::AF_UNIX, libc::SOCK_STREAM, 0),
        ("a netlink socket", libc::AF_NETLINK, libc::SOCK_RAW, 0),
        ("a packet socket", libc::AF_PACKET, libc::SOCK_RAW, 0),
        ("a vsock socket", libc::AF_VSOCK, libc::SOCK_STREAM, 0),
        ("a crypto socket", libc::AF_ALG, libc::SOCK_SEQPACKET, 0),
        ("a raw socket", libc::AF_INET, libc::SOCK_RAW, libc::IPPROTO_ICMP),
        ("a ping socket", libc::AF_INET, libc::SOCK_DGRAM, libc::IPPROTO_ICMP),
        ("an SCTP socket", libc::AF_INET6, libc::SOCK_STREAM, libc::IPPROTO_SCTP),
    ] {
        add(what, libc::SYS_socket, &[i64::from(family), i64::from(kind), i64::from(protocol)], libc::EAFNOSUPPORT);
    }
    let filter = &[-1, i64::from(libc::SOL_SOCKET), i64::from(libc::SO_ATTACH_FILTER)];
    add("a filter on a socket", libc::SYS_setsockopt, filter, libc::ENOPROTOOPT);
    add("signals from a descriptor", libc::SYS_fcntl, &[0, i64::from(libc::F_SETOWN), itself], libc::EPERM);
    for (what, request) in [
        ("typing into a terminal", libc::TIOCSTI),
        ("another's terminal", libc::TIOCSCTTY),
        ("the console's menu", libc::TIOCLINUX),
        ("the settings of a terminal", libc::TCSETS),
        ("the size of a terminal", libc::TIOCSWINSZ),
        ("the group at a terminal", libc::TIOCSPGRP),
        ("the other end of a terminal", libc::TIOCGPTPEER),
    ] {
        add(what, libc::SYS_ioctl, &[0, i64::try_from(request).unwrap()], libc::ENOTTY);
    }
    all
}

/// Asks for the process id as a program of 32 bits does.
pub(crate) fn call_as_i386() {
    #[cfg(target_arch = "x86_64")]
    // SAFETY: `getpid` changes nothing; the kernel keeps all registers but the answer's, and r8 to r11.
    unsafe {
        std::arch::asm!("int 0x80", inout("eax") 20 => _, out("r8") _, out("r9") _, out("r10") _, out("r11") _);
    }
}

/// Asks for the process id as a program of x32 does.
pub(crate) fn call_as_x32() {
    // SAFETY: `getpid` changes nothing.
    unsafe { libc::syscall(0x4000_0000 + libc::SYS_getpid) };
}
