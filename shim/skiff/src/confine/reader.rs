//! Confines the calling process itself, which asks containerd something and then reads what strangers wrote: bounded before it
//! does anything, and with nothing in sight but one directory before it reads the first file.
//!
//! It has one thread. What it may take is far more than it needs; the bounds of what it reads are its own business.

use std::fs::{self, File};
use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::path::Path;
use std::time::Duration;

use nix::errno::Errno;
use nix::mount::{MsFlags, mount};
use nix::sched::{CloneFlags, unshare};
use nix::sys::prctl;
use nix::sys::resource::{Resource, setrlimit};
use nix::sys::signal::{SaFlags, SigAction, SigHandler, SigSet, Signal, sigaction};
use nix::unistd::{Uid, alarm};

use super::{filter, jail};
use crate::error::{Context, Error, Fault, Result};

/// Address space, in bytes: the program itself, and ten times what it reads.
const MEMORY_BYTES: u64 = 512 << 20;
/// Processor time, in seconds.
const CPU_SECONDS: u64 = 10;
/// Open files: the streams, a connection, what the executor needs, and one file.
const OPEN_FILES: u64 = 32;

/// Bounds the memory, files and time of this process, and offers it to the OOM killer. After `deadline` it is ended with a
/// sentence, whatever it is doing.
///
/// # Errors
/// The host's, named by the step that failed.
pub(crate) fn bound(deadline: Duration) -> Result<()> {
    fs::write("/proc/self/oom_score_adj", "1000").or_host("cannot offer this process to the OOM killer")?;
    end_in_time(deadline).or_host("cannot set a deadline")?;
    for (resource, limit) in [
        (Resource::RLIMIT_AS, MEMORY_BYTES),
        (Resource::RLIMIT_NOFILE, OPEN_FILES),
        (Resource::RLIMIT_CORE, 0),
        (Resource::RLIMIT_MEMLOCK, 0),
        (Resource::RLIMIT_MSGQUEUE, 0),
    ] {
        setrlimit(resource, limit, limit).or_host("cannot set the resource limits")?;
    }
    // Whoever has the answer written into a file gets it.
    if !has_file_as_stream().or_host("cannot look at the standard streams")? {
        setrlimit(Resource::RLIMIT_FSIZE, 0, 0).or_host("cannot set the resource limits")?;
    }
    prctl::set_no_new_privs().or_host("cannot give up new privileges")?;
    prctl::set_dumpable(false).or_host("cannot hide this process")
}

fn has_file_as_stream() -> io::Result<bool> {
    Ok(is_file(io::stdout().as_fd())? || is_file(io::stderr().as_fd())?)
}

fn is_file(stream: BorrowedFd<'_>) -> io::Result<bool> {
    Ok(File::from(stream.try_clone_to_owned()?).metadata()?.is_file())
}

/// Makes `directory` the root of this process, read-only and alone in its mount namespace, and takes its capabilities and all
/// system calls but those to read there.
///
/// The user stays root: the files may be for root only.
///
/// # Errors
/// The host's, named by the step that failed; the process must end then.
pub(crate) fn see_only(directory: &Path) -> Result<()> {
    if !Uid::effective().is_root() {
        return Err(Error::host("reading containerd's content needs root"));
    }
    unshare(CloneFlags::CLONE_NEWNS).or_host("cannot make a mount namespace")?;
    enter(directory).or_host(format!("cannot enter `{}`", directory.display()))?;
    drop_capabilities().or_host("cannot drop the capabilities")?;
    filter::install_for_reader()
}

fn enter(directory: &Path) -> nix::Result<()> {
    const NONE: Option<&str> = None;
    mount(NONE, "/", NONE, MsFlags::MS_REC | MsFlags::MS_PRIVATE, NONE)?;
    mount(Some(directory), "/proc", NONE, MsFlags::MS_BIND, NONE)?;
    let attributes = libc::mount_attr {
        attr_set: libc::MOUNT_ATTR_RDONLY | libc::MOUNT_ATTR_NOSUID | libc::MOUNT_ATTR_NODEV | libc::MOUNT_ATTR_NOEXEC,
        attr_clr: 0,
        propagation: 0,
        userns_fd: 0,
    };
    let (place, size) = (c"/proc", size_of_val(&attributes));
    // SAFETY: the path is a text with its end, and the size is that of the attributes, which the kernel only reads.
    let done = unsafe {
        libc::syscall(libc::SYS_mount_setattr, libc::AT_FDCWD, place.as_ptr(), 0, &raw const attributes, size)
    };
    Errno::result(done)?;
    jail::make_root("/proc")
}

/// Clears all sets of capabilities; being root gives none back without an execve(2), which the filter refuses.
fn drop_capabilities() -> nix::Result<()> {
    /// `_LINUX_CAPABILITY_VERSION_3` of `linux/capability.h`, and this thread.
    const HEADER: [u32; 2] = [0x2008_0522, 0];
    /// Effective, permitted and inheritable, twice 32 bits of each.
    const NONE: [u32; 6] = [0; 6];
    jail::drop_capability_bounds()?;
    // SAFETY: both have the size that the version in the header says, and the kernel only reads them.
    Errno::result(unsafe { libc::syscall(libc::SYS_capset, HEADER.as_ptr(), NONE.as_ptr()) }).map(drop)
}

/// Has the kernel end this process after `deadline`, and after its processor time.
fn end_in_time(deadline: Duration) -> nix::Result<()> {
    let handler = SigAction::new(SigHandler::Handler(end), SaFlags::empty(), SigSet::empty());
    let mut signals = SigSet::empty();
    for signal in [Signal::SIGALRM, Signal::SIGXCPU] {
        // SAFETY: the handler writes a text that is there for ever, and ends the process.
        unsafe { sigaction(signal, &handler) }?;
        signals.add(signal);
    }
    signals.thread_unblock()?;
    setrlimit(Resource::RLIMIT_CPU, CPU_SECONDS, CPU_SECONDS + 1)?;
    alarm::set(u32::try_from(deadline.as_secs()).unwrap_or(u32::MAX));
    Ok(())
}

extern "C" fn end(_: libc::c_int) {
    const SENTENCE: &[u8] = b"skiff: looking at the image takes more than the time that it may take\n";
    // SAFETY: may be called in a handler; the text is there as long as the program.
    unsafe { libc::write(libc::STDERR_FILENO, SENTENCE.as_ptr().cast(), SENTENCE.len()) };
    // SAFETY: may be called in a handler.
    unsafe { libc::_exit(i32::from(Fault::Guest.code())) }
}

#[cfg(test)]
mod tests {
    use std::fs::OpenOptions;
    use std::net::TcpListener;
    use std::time::Instant;

    use nix::sys::wait::{WaitStatus, waitpid};
    use nix::unistd::{ForkResult, fork};

    use super::*;

    /// Runs `job` in a process of its own, and returns its exit code.
    fn in_child(job: impl FnOnce() -> i32) -> i32 {
        // SAFETY: the child runs the job and exits; libc makes the allocator usable in it.
        match unsafe { fork() }.unwrap() {
            ForkResult::Child => {
                let code = job();
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
    fn a_reader_sees_the_files_of_one_directory_and_nothing_else() {
        if !Uid::effective().is_root() {
            println!("not run: confining needs root");
            return;
        }
        let directory = tempfile::tempdir().unwrap();
        fs::write(directory.path().join("blob"), "text").unwrap();
        let code = in_child(|| {
            let checks = |confined: bool| {
                [
                    confined,
                    fs::read_to_string("/blob").is_ok_and(|text| text == "text"),
                    File::open("/etc/passwd").is_err(),
                    File::open("/proc/self/status").is_err(),
                    File::open("/../../../../../../../etc/passwd").is_err(),
                    OpenOptions::new().write(true).open("/blob").is_err(),
                    TcpListener::bind("127.0.0.1:0").is_err(),
                ]
            };
            let is_confined = bound(Duration::from_secs(30)).and_then(|()| see_only(directory.path())).is_ok();
            let failed = checks(is_confined).iter().position(|check| !check);
            failed.map_or(0, |check| i32::try_from(check + 1).unwrap())
        });
        assert_eq!(code, 0, "the number of the check that failed");
    }

    #[test]
    fn a_reader_that_does_not_end_is_ended_whatever_it_does() {
        let start = Instant::now();
        let code = in_child(|| {
            if bound(Duration::from_secs(1)).is_err() {
                return 2;
            }
            loop {
                std::hint::spin_loop();
            }
        });
        assert_eq!(code, 1);
        assert!(start.elapsed() < Duration::from_secs(5), "{:?}", start.elapsed());
    }
}
