//! What children do between fork and exec, forking without exec, and ending this process.

use std::ffi::CString;
use std::fs;
use std::io;
use std::os::fd::{AsRawFd, OwnedFd, RawFd};
use std::os::unix::process::CommandExt;
use std::process::Command;

use nix::unistd::{ForkResult, fork};

use crate::descriptors::PASSED_MAX;

/// Sends the command's process `signal` when the calling thread ends, and sets its OOM score to `score`
/// (proc_pid_oom_score_adj(5)) instead of the inherited one.
pub fn depend_on_parent(command: &mut Command, signal: i32, score: i16) {
    let score = score.to_string();
    let prepare = move || {
        // SAFETY: prctl with integers; safe between fork and exec.
        unsafe { libc::prctl(libc::PR_SET_PDEATHSIG, signal) };
        // SAFETY: a C string, and flags; safe between fork and exec.
        let file = unsafe { libc::open(c"/proc/self/oom_score_adj".as_ptr(), libc::O_WRONLY | libc::O_CLOEXEC) };
        // If this fails because lowering the score is not allowed, the process keeps the inherited, higher one.
        // SAFETY: the bytes outlive the call; the descriptor, which may be -1, is closed on exec.
        unsafe { libc::write(file, score.as_ptr().cast(), score.len()) };
        Ok(())
    };
    // SAFETY: the closure makes three system calls and allocates nothing.
    unsafe { command.pre_exec(prepare) };
}

/// Gives `files`, at most [`PASSED_MAX`] of them, to the command's process as descriptors `first`, `first + 1`, ….
pub fn pass_descriptors(command: &mut Command, first: RawFd, files: Vec<OwnedFd>) {
    let place = move || {
        // Moves the files out of the way of the wanted numbers first, then to them; `dup2` clears close-on-exec.
        let beyond = first + RawFd::try_from(files.len()).map_err(io::Error::other)?;
        let mut moved = [-1; PASSED_MAX];
        if files.len() > moved.len() {
            return Err(io::ErrorKind::InvalidInput.into());
        }
        for (slot, file) in moved.iter_mut().zip(&files) {
            // SAFETY: fcntl on an open descriptor, with an integer argument; safe between fork and exec.
            *slot = unsafe { libc::fcntl(file.as_raw_fd(), libc::F_DUPFD_CLOEXEC, beyond) };
            if *slot < 0 {
                return Err(io::Error::last_os_error());
            }
        }
        for (wanted, source) in (first..beyond).zip(moved) {
            // SAFETY: both are descriptors of this process; safe between fork and exec.
            if unsafe { libc::dup2(source, wanted) } < 0 {
                return Err(io::Error::last_os_error());
            }
        }
        Ok(())
    };
    // SAFETY: the closure makes two kinds of system calls and allocates nothing.
    unsafe { command.pre_exec(place) };
}

/// Makes `root` the root and working directory of the command's process.
pub fn change_root(command: &mut Command, root: CString) {
    let enter = move || {
        nix::unistd::chroot(root.as_c_str())?;
        nix::unistd::chdir(c"/")?;
        Ok(())
    };
    // SAFETY: the closure makes two system calls with strings made before the fork, and allocates nothing.
    unsafe { command.pre_exec(enter) };
}

/// Forks a process with only one thread, so that the child may do everything that the parent may.
///
/// # Errors
/// An error when the process has more threads; those of `fork(2)`.
pub fn fork_alone() -> io::Result<ForkResult> {
    if fs::read_dir("/proc/self/task")?.count() != 1 {
        return Err(io::Error::other("a process with several threads cannot be forked"));
    }
    // SAFETY: this process has only one thread, so every lock is free in the child.
    Ok(unsafe { fork() }?)
}

/// Ends the process at once, whatever its threads are doing, without running drops or exit handlers. May be called in a
/// signal handler.
pub fn exit_now(code: i32) -> ! {
    // SAFETY: `_exit` is async-signal-safe and runs no code of this process.
    unsafe { libc::_exit(code) }
}

#[cfg(test)]
mod tests {
    use std::fs::File;
    use std::process::Stdio;

    use super::*;

    #[test]
    fn files_get_their_numbers_and_nothing_else_is_passed() {
        let files = || (0..3).map(|_| File::open("/dev/null").unwrap().into()).collect();
        let mut command = Command::new("sh");
        command.args(["-c", "ls /proc/$$/fd"]).stdout(Stdio::piped());
        pass_descriptors(&mut command, 5, files());
        let said = String::from_utf8(command.output().unwrap().stdout).unwrap();
        let passed: Vec<i32> = said.lines().filter_map(|line| line.parse().ok()).filter(|number| *number > 4).collect();
        assert!([5, 6, 7].iter().all(|number| passed.contains(number)), "{said}");
    }

    #[test]
    fn a_child_has_its_own_oom_score() {
        let mut command = Command::new("cat");
        command.arg("/proc/self/oom_score_adj");
        depend_on_parent(&mut command, libc::SIGKILL, 700);
        assert_eq!(command.output().unwrap().stdout, b"700\n");
    }

    #[test]
    fn a_process_with_threads_is_not_forked() {
        let (stop, stopped) = std::sync::mpsc::channel::<()>();
        let other = std::thread::spawn(move || stopped.recv());
        assert!(fork_alone().is_err());
        drop(stop);
        other.join().unwrap().unwrap_err();
    }
}
