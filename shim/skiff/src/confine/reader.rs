//! Confines the calling process itself, which asks containerd for something and then reads what strangers wrote. Its resources
//! are limited before it does anything, and it sees only one directory before it reads the first file.
//!
//! It has one thread. The limits are far above what it needs; bounding what it reads is left to the caller.

use std::fs::{self, File};
use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::path::Path;
use std::time::Duration;

use nix::mount::{MsFlags, mount};
use nix::sched::{CloneFlags, unshare};
use nix::sys::prctl;
use nix::sys::resource::{Resource, setrlimit};
use nix::sys::signal::Signal;
use nix::unistd::{Uid, alarm};
use skiff_linux::mounts::{Attributes, Depth, set_attributes_at};
use skiff_linux::{jail, signals};

use super::filter;
use crate::error::{Context, Error, Fault, Result};

/// Address space, in bytes: the program itself, and ten times what it reads.
const MEMORY_BYTES: u64 = 512 << 20;
/// Processor time, in seconds.
const CPU_SECONDS: u64 = 10;
/// Open files: the streams, a connection, what the executor needs, and one file.
const OPEN_FILES: u64 = 32;
/// The message if reading an image takes too long.
const TOO_LONG: &str = "skiff: reading the image takes too long\n";

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
    // Standard output or error may be a file, which must stay writable.
    if !has_file_as_stream().or_host("cannot look at the standard streams")? {
        setrlimit(Resource::RLIMIT_FSIZE, 0, 0).or_host("cannot set the resource limits")?;
    }
    prctl::set_no_new_privs().or_host("cannot set `no_new_privs`")?;
    prctl::set_dumpable(false).or_host("cannot hide this process")
}

fn has_file_as_stream() -> io::Result<bool> {
    Ok(is_file(io::stdout().as_fd())? || is_file(io::stderr().as_fd())?)
}

fn is_file(stream: BorrowedFd<'_>) -> io::Result<bool> {
    Ok(File::from(stream.try_clone_to_owned()?).metadata()?.is_file())
}

/// Makes `directory` the root of this process, read-only and alone in its mount namespace, and removes its capabilities
/// and all system calls but those for reading there.
///
/// The user stays root, because only root may be able to read the files.
///
/// # Errors
/// The host's, named by the step that failed; the process must end then.
pub(crate) fn see_only(directory: &Path) -> Result<()> {
    if !Uid::effective().is_root() {
        return Err(Error::host("reading containerd's content needs root"));
    }
    unshare(CloneFlags::CLONE_NEWNS).or_host("cannot make a mount namespace")?;
    enter(directory).or_host(format!("cannot enter `{}`", directory.display()))?;
    jail::drop_capabilities().or_host("cannot drop the capabilities")?;
    filter::install_for_reader()
}

fn enter(directory: &Path) -> io::Result<()> {
    const NONE: Option<&str> = None;
    jail::make_mounts_private()?;
    mount(Some(directory), "/proc", NONE, MsFlags::MS_BIND, NONE)?;
    let attributes = Attributes {
        set: libc::MOUNT_ATTR_RDONLY | libc::MOUNT_ATTR_NOSUID | libc::MOUNT_ATTR_NODEV | libc::MOUNT_ATTR_NOEXEC,
        ..Attributes::default()
    };
    set_attributes_at(c"/proc", Depth::Alone, attributes)?;
    jail::make_root("/proc")
}

/// Has the kernel end this process after `deadline`, and after its processor time.
fn end_in_time(deadline: Duration) -> io::Result<()> {
    signals::end_on(&[Signal::SIGALRM, Signal::SIGXCPU], Fault::Guest.code().into(), TOO_LONG)?;
    setrlimit(Resource::RLIMIT_CPU, CPU_SECONDS, CPU_SECONDS + 1)?;
    alarm::set(u32::try_from(deadline.as_secs()).unwrap_or(u32::MAX));
    Ok(())
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
