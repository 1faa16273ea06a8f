//! A process that does nothing and takes next to no memory: it stands in a cgroup and in namespaces for others to find.
//!
//! Its program is a page of machine code, executed from memory. A program of the usual kind would take three times as much, for a
//! runtime that it does not need.

use std::ffi::CStr;
use std::fs::File;
use std::io::{self, Write};
use std::os::fd::AsRawFd;

use nix::errno::Errno;
use nix::sched::{CloneFlags, clone};
use nix::sys::memfd::{MFdFlags, memfd_create};
use nix::sys::signal::Signal;

/// Where the program is loaded.
const ADDRESS: u64 = 0x40_0000;
/// Where its code begins in the file: after the file's header and two program headers.
const CODE_OFFSET: u64 = 64 + 2 * 56;
/// Where its name is in the file.
const NAME_OFFSET: u64 = CODE_OFFSET + 64;
/// The longest name that the kernel keeps, with its end.
const NAME_BYTES_MAX: usize = 16;
/// The user and group `nobody`, which own nothing.
const NOBODY: libc::c_long = 65534;
/// The size of the child's stack until it executes its program, in bytes.
const STACK_BYTES: usize = 16 << 10;
/// `MFD_EXEC` of Linux 6.3: the file may be executed even where files in memory by default may not.
const MFD_EXEC: u32 = 0x10;

/// `prctl(PR_SET_NAME, name)`, then `pause()` for ever.
#[cfg(target_arch = "x86_64")]
const MACHINE: (u16, &[u8]) = (
    62,
    &[
        0xbf, 0x0f, 0, 0, 0, // mov edi, PR_SET_NAME
        0xbe, 0xf0, 0, 0x40, 0, // mov esi, ADDRESS + NAME_OFFSET
        0xb8, 0x9d, 0, 0, 0, // mov eax, SYS_prctl
        0x0f, 0x05, // syscall
        0xb8, 0x22, 0, 0, 0, // mov eax, SYS_pause
        0x0f, 0x05, // syscall
        0xeb, 0xf7, // jmp to the third instruction from here
    ],
);

/// `prctl(PR_SET_NAME, name)`, then `ppoll()` of nothing for ever.
#[cfg(target_arch = "aarch64")]
const MACHINE: (u16, &[u8]) = (
    183,
    &[
        0xe0, 0x01, 0x80, 0xd2, // mov x0, PR_SET_NAME
        0x01, 0x08, 0xa0, 0xd2, // movz x1, ADDRESS >> 16, lsl 16
        0x01, 0x1e, 0x80, 0xf2, // movk x1, NAME_OFFSET
        0xe8, 0x14, 0x80, 0xd2, // mov x8, SYS_prctl
        0x01, 0x00, 0x00, 0xd4, // svc 0
        0x00, 0x00, 0x80, 0xd2, // mov x0, 0
        0x01, 0x00, 0x80, 0xd2, // mov x1, 0
        0x02, 0x00, 0x80, 0xd2, // mov x2, 0
        0x03, 0x00, 0x80, 0xd2, // mov x3, 0
        0x04, 0x00, 0x80, 0xd2, // mov x4, 0
        0x28, 0x09, 0x80, 0xd2, // mov x8, SYS_ppoll
        0x01, 0x00, 0x00, 0xd4, // svc 0
        0xf9, 0xff, 0xff, 0x17, // b to the seventh instruction before
    ],
);

/// Starts one in the calling thread's namespaces, as the user `nobody`, without files or capabilities. It is called `name` (15
/// bytes are kept), and is killed when the calling thread ends. Returns its process id.
///
/// # Errors
/// Those of `memfd_create(2)` and `clone(2)`. If the program cannot be executed, the child exits with 255.
pub fn start(name: &CStr) -> io::Result<i32> {
    let program = program(name)?;
    let arguments = [name.as_ptr(), std::ptr::null()];
    let environment = [std::ptr::null::<libc::c_char>()];
    let child = || {
        // SAFETY: the child has a table of descriptors of its own; async-signal-safe. Kernels before 5.11 cannot.
        unsafe { libc::syscall(libc::SYS_close_range, 0, libc::c_uint::MAX, libc::CLOSE_RANGE_CLOEXEC) };
        for stream in 0..3 {
            // SAFETY: the child has a table of descriptors of its own; async-signal-safe.
            unsafe { libc::close(stream) };
        }
        // It keeps no directory in use.
        // SAFETY: a C string; async-signal-safe.
        unsafe { libc::chdir(c"/".as_ptr()) };
        // The C library's functions would change all threads of the parent.
        // SAFETY: no groups are passed; the call changes the calling task alone.
        unsafe { libc::syscall(libc::SYS_setgroups, 0, std::ptr::null::<libc::gid_t>()) };
        // SAFETY: integers; the call changes the calling task alone.
        unsafe { libc::syscall(libc::SYS_setresgid, NOBODY, NOBODY, NOBODY) };
        // SAFETY: integers; the call changes the calling task alone.
        unsafe { libc::syscall(libc::SYS_setresuid, NOBODY, NOBODY, NOBODY) };
        // SAFETY: prctl with integers; async-signal-safe.
        unsafe { libc::prctl(libc::PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) };
        // A change of the user clears it.
        // SAFETY: prctl with integers; async-signal-safe.
        unsafe { libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL) };
        // SAFETY: the strings and the null-terminated arrays live until the parent goes on, which is after this.
        unsafe {
            libc::syscall(
                libc::SYS_execveat,
                program.as_raw_fd(),
                c"".as_ptr(),
                arguments.as_ptr(),
                environment.as_ptr(),
                libc::AT_EMPTY_PATH,
            )
        };
        isize::from(u8::MAX)
    };
    let mut stack = vec![0_u8; STACK_BYTES];
    // With CLONE_VFORK the parent waits until the child has executed, so sharing the memory is safe and cheap.
    let flags = CloneFlags::CLONE_VM | CloneFlags::CLONE_VFORK;
    // SAFETY: the child makes system calls on a stack of its own and allocates nothing.
    let pid = unsafe { clone(Box::new(child), &mut stack, flags, Some(Signal::SIGCHLD as i32)) }?;
    Ok(pid.as_raw())
}

/// The program, in memory.
fn program(name: &CStr) -> io::Result<File> {
    let memory = |flags| memfd_create(c"skiff-standin", MFdFlags::MFD_CLOEXEC | flags);
    let file = match memory(MFdFlags::from_bits_retain(MFD_EXEC)) {
        Err(Errno::EINVAL) => memory(MFdFlags::empty()),
        made => made,
    };
    let mut file = File::from(file?);
    file.write_all(&image(name))?;
    Ok(file)
}

/// The program as an ELF file: its headers, its code and its name.
fn image(name: &CStr) -> Vec<u8> {
    let (machine, code) = MACHINE;
    let mut image = Vec::with_capacity(512);
    image.extend([0x7f, b'E', b'L', b'F', 2, 1, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0]);
    // An executable file of version 1, and where it is entered.
    words(&mut image, &[2, machine, 1, 0]);
    longs(&mut image, &[ADDRESS + CODE_OFFSET, 64, 0]);
    // No flags; the sizes of the header and of each of two program headers; no sections.
    words(&mut image, &[0, 0, 64, 56, 2, 64, 0, 0]);
    let length = NAME_OFFSET + NAME_BYTES_MAX as u64;
    // PT_LOAD, readable and executable: the whole file.
    words(&mut image, &[1, 0, 5, 0]);
    longs(&mut image, &[0, ADDRESS, ADDRESS, length, length, 0x1000]);
    // PT_GNU_STACK, readable and writable. Its type is 0x6474_e551.
    words(&mut image, &[0xe551, 0x6474, 6, 0]);
    longs(&mut image, &[0, 0, 0, 0, 0, 16]);
    image.extend(code);
    image.resize(usize::try_from(NAME_OFFSET).unwrap_or(usize::MAX), 0);
    image.extend(name.to_bytes().iter().take(NAME_BYTES_MAX - 1));
    image.resize(usize::try_from(length).unwrap_or(usize::MAX), 0);
    image
}

fn words(image: &mut Vec<u8>, words: &[u16]) {
    image.extend(words.iter().flat_map(|word| word.to_le_bytes()));
}

fn longs(image: &mut Vec<u8>, longs: &[u64]) {
    image.extend(longs.iter().flat_map(|long| long.to_le_bytes()));
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::time::{Duration, Instant};

    use nix::sys::signal::kill;
    use nix::sys::wait::{WaitStatus, waitpid};
    use nix::unistd::Pid;

    use super::*;

    fn status(pid: i32, line: &str) -> String {
        let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
        let value = status.lines().find_map(|text| text.strip_prefix(line));
        value.unwrap_or_default().split_whitespace().collect::<Vec<_>>().join(" ")
    }

    #[test]
    fn it_stands_there_with_nothing_and_ends_on_sigkill() {
        let pid = start(c"a-stand-in-with-a-name").unwrap();
        let deadline = Instant::now() + Duration::from_secs(60);
        while status(pid, "Name:") != "a-stand-in-with" {
            assert!(Instant::now() < deadline, "{}", status(pid, "Name:"));
            std::thread::yield_now();
        }
        assert_eq!(status(pid, "Uid:"), "65534 65534 65534 65534");
        assert_eq!((status(pid, "Groups:"), status(pid, "CapEff:")), (String::new(), "0000000000000000".into()));
        assert_eq!(status(pid, "NoNewPrivs:"), "1");
        assert_eq!(fs::read_dir(format!("/proc/{pid}/fd")).unwrap().count(), 0);
        assert_eq!(fs::read_link(format!("/proc/{pid}/cwd")).unwrap().as_os_str(), "/");
        let kilobytes: u64 = status(pid, "VmRSS:").trim_end_matches(" kB").parse().unwrap();
        assert!(kilobytes < 64, "{kilobytes} kB");
        kill(Pid::from_raw(pid), Signal::SIGKILL).unwrap();
        assert_eq!(
            waitpid(Pid::from_raw(pid), None),
            Ok(WaitStatus::Signaled(Pid::from_raw(pid), Signal::SIGKILL, false))
        );
    }

    #[test]
    fn it_ends_with_the_thread_that_started_it() {
        let pid = std::thread::spawn(|| start(c"short").unwrap()).join().unwrap();
        assert!(matches!(waitpid(Pid::from_raw(pid), None), Ok(WaitStatus::Signaled(_, Signal::SIGKILL, _))));
    }
}
