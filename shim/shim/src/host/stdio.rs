//! Standard streams of a process. The container gets containerd's fifos themselves; nothing is copied.
//!
//! The shim only holds them open. It holds a reader of each output, so that a guest that writes while containerd restarts
//! waits instead of failing, and nothing that it wrote is lost. It holds a writer of the input until containerd reports
//! that the input is closed. containerd sees the end of an output when the last process that writes to it has ended.

use std::fs::{File, OpenOptions};
use std::io::{self, Write};
use std::os::fd::AsFd;
use std::os::unix::fs::{FileTypeExt, OpenOptionsExt};
use std::path::Path;
use std::sync::{Mutex, PoisonError};

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

use crate::host::logging_program::{self, Owner};
use crate::request::StdioPaths;

/// Whether a logging program takes the output of `paths`; then opening them waits for it.
pub(crate) fn has_program(paths: &StdioPaths) -> bool {
    logging_program::is_address(&paths.stdout)
}

/// Where the shim itself speaks to a process's owner: on its stderr, or beside the output of its terminal. The output ends only
/// after this is dropped.
#[derive(Debug)]
pub(crate) struct Voice {
    file: File,
    /// A terminal's output arrives as the kernel has made it, with the ends of lines of a terminal.
    line_end: &'static str,
}

impl Voice {
    /// Speaks on `stderr`.
    ///
    /// # Errors
    /// Those of `dup(2)`.
    pub(crate) fn on(stderr: &File) -> io::Result<Self> {
        Ok(Self { file: stderr.try_clone()?, line_end: "\n" })
    }

    /// Speaks where containerd reads a terminal's output: the terminal itself is gone when its process has ended.
    ///
    /// # Errors
    /// Those of opening, with the path.
    pub(crate) fn beside_terminal(output: &str) -> io::Result<Self> {
        // Opening a fifo for both reading and writing does not wait for a reader.
        let opened = OpenOptions::new().read(true).write(true).custom_flags(libc::O_NONBLOCK).open(output);
        Ok(Self { file: opened.map_err(|error| named(output, &error))?, line_end: "\r\n" })
    }

    /// Speaks to the logging program that takes a terminal's output through this pipe.
    ///
    /// # Errors
    /// Those of `dup(2)`.
    pub(crate) fn beside_terminal_of(program: &File) -> io::Result<Self> {
        Ok(Self { file: program.try_clone()?, line_end: "\r\n" })
    }

    /// Says one line. Never waits for a reader.
    ///
    /// # Errors
    /// Those of writing; `WouldBlock` when there is no room for it.
    pub(crate) fn say(&self, line: &str) -> io::Result<()> {
        let mut polled = [PollFd::new(self.file.as_fd(), PollFlags::POLLOUT)];
        if poll(&mut polled, PollTimeout::ZERO)? == 0 {
            return Err(io::ErrorKind::WouldBlock.into());
        }
        (&self.file).write_all(format!("{line}{}", self.line_end).as_bytes())
    }
}

/// The ends of the streams that the process gets.
#[derive(Debug)]
pub(crate) struct ChildStdio {
    pub(crate) stdin: File,
    pub(crate) stdout: File,
    pub(crate) stderr: File,
}

/// The ends of the streams that the shim holds. Dropping this closes them.
#[derive(Debug, Default)]
pub(crate) struct Holds {
    stdin: Mutex<Option<File>>,
    _outputs: Vec<File>,
}

impl Holds {
    /// Closes the shim's end of the input: the process reads end of file once containerd has closed it too.
    pub(crate) fn close_stdin(&self) {
        self.stdin.lock().unwrap_or_else(PoisonError::into_inner).take();
    }
}

/// Opens the streams of a process without a terminal. Never waits for containerd, but waits until a logging program is
/// ready.
///
/// # Errors
/// `Unsupported` for an unknown kind of address; those of opening, with the address.
pub(crate) fn open(paths: &StdioPaths, owner: &Owner) -> io::Result<(ChildStdio, Holds)> {
    let (stdin, hold) = open_input(&paths.stdin).map_err(|error| named(&paths.stdin, &error))?;
    if has_program(paths) {
        let (stdout, stderr) =
            logging_program::start(&paths.stdout, owner).map_err(|error| named(&paths.stdout, &error))?;
        return Ok((ChildStdio { stdin, stdout, stderr }, Holds { stdin: Mutex::new(hold), _outputs: Vec::new() }));
    }
    let mut outputs = Vec::new();
    let mut output = |path: &str| match open_output(path) {
        Ok((file, hold)) => {
            outputs.extend(hold);
            Ok(file)
        }
        Err(error) => Err(named(path, &error)),
    };
    let stdout = output(&paths.stdout)?;
    let stderr = output(&paths.stderr)?;
    Ok((ChildStdio { stdin, stdout, stderr }, Holds { stdin: Mutex::new(hold), _outputs: outputs }))
}

fn named(path: &str, error: &io::Error) -> io::Error {
    io::Error::new(error.kind(), format!("cannot open the stream `{path}`: {error}"))
}

fn open_input(path: &str) -> io::Result<(File, Option<File>)> {
    if path.is_empty() {
        return Ok((File::open("/dev/null")?, None));
    }
    // Opening a fifo for both reading and writing does not block. It is held until the two real ends are open.
    let bridge = OpenOptions::new().read(true).write(true).open(path)?;
    let child = File::open(path)?;
    let hold =
        bridge.metadata()?.file_type().is_fifo().then(|| OpenOptions::new().write(true).open(path)).transpose()?;
    Ok((child, hold))
}

fn open_output(path: &str) -> io::Result<(File, Option<File>)> {
    if path.is_empty() {
        return Ok((OpenOptions::new().write(true).open("/dev/null")?, None));
    }
    if let Some(file) = path.strip_prefix("file://") {
        if let Some(parent) = Path::new(file).parent() {
            std::fs::create_dir_all(parent)?;
        }
        return Ok((OpenOptions::new().append(true).create(true).mode(0o640).open(file)?, None));
    }
    if let Some((scheme, _)) = path.split_once("://") {
        return Err(io::Error::new(
            io::ErrorKind::Unsupported,
            format!("streams of the kind `{scheme}` are not supported"),
        ));
    }
    let hold = OpenOptions::new().read(true).custom_flags(libc::O_NONBLOCK).open(path)?;
    let child = OpenOptions::new().write(true).open(path)?;
    Ok((child, Some(hold)))
}

#[cfg(test)]
mod tests {
    use std::io::{Read, Write};
    use std::path::PathBuf;

    use nix::sys::stat::Mode;

    use super::*;

    struct Fifos {
        directory: tempfile::TempDir,
    }

    impl Fifos {
        fn new() -> Self {
            let directory = tempfile::tempdir().unwrap();
            for name in ["in", "out", "err"] {
                nix::unistd::mkfifo(&directory.path().join(name), Mode::S_IRWXU).unwrap();
            }
            Self { directory }
        }

        fn path(&self, name: &str) -> PathBuf {
            self.directory.path().join(name)
        }

        fn paths(&self) -> StdioPaths {
            let text = |name| self.path(name).to_str().unwrap().to_string();
            StdioPaths { stdin: text("in"), stdout: text("out"), stderr: text("err"), terminal: false }
        }
    }

    #[test]
    fn what_was_written_while_nobody_read_arrives_and_then_the_stream_ends() {
        let fifos = Fifos::new();
        let (mut child, _holds) = open(&fifos.paths(), &Owner::default()).unwrap();
        child.stdout.write_all(b"before a reader").unwrap();
        let mut reader = OpenOptions::new().read(true).custom_flags(libc::O_NONBLOCK).open(fifos.path("out")).unwrap();
        drop(child);
        let mut text = String::new();
        reader.read_to_string(&mut text).unwrap();
        assert_eq!(text, "before a reader");
    }

    #[test]
    fn the_input_ends_only_when_both_writers_are_gone() {
        let fifos = Fifos::new();
        let (mut child, holds) = open(&fifos.paths(), &Owner::default()).unwrap();
        let mut writer = OpenOptions::new().write(true).open(fifos.path("in")).unwrap();
        writer.write_all(b"input").unwrap();
        drop(writer);
        let mut buffer = [0; 5];
        child.stdin.read_exact(&mut buffer).unwrap();
        holds.close_stdin();
        assert_eq!(child.stdin.read(&mut buffer).unwrap(), 0);
    }

    #[test]
    fn what_the_shim_says_of_a_terminal_arrives_with_its_output() {
        let fifos = Fifos::new();
        let path = fifos.path("out");
        let voice = Voice::beside_terminal(path.to_str().unwrap()).unwrap();
        voice.say("skiff: before a reader").unwrap();
        let mut reader = OpenOptions::new().read(true).custom_flags(libc::O_NONBLOCK).open(&path).unwrap();
        let mut terminal = OpenOptions::new().write(true).open(&path).unwrap();
        terminal.write_all(b"output\r\n").unwrap();
        drop(terminal);
        voice.say("skiff: after it").unwrap();
        drop(voice);
        let mut text = String::new();
        reader.read_to_string(&mut text).unwrap();
        assert_eq!(text, "skiff: before a reader\r\noutput\r\nskiff: after it\r\n");
    }

    #[test]
    fn the_shim_does_not_wait_for_room() {
        let fifos = Fifos::new();
        let voice = Voice::beside_terminal(fifos.path("out").to_str().unwrap()).unwrap();
        let filled = std::iter::repeat_with(|| voice.say(&"x".repeat(1000))).find_map(Result::err).unwrap();
        assert_eq!(filled.kind(), io::ErrorKind::WouldBlock);
    }

    #[test]
    fn a_missing_fifo_is_named() {
        let paths = StdioPaths { stdout: "/nowhere/out".into(), ..StdioPaths::default() };
        assert!(open(&paths, &Owner::default()).unwrap_err().to_string().contains("`/nowhere/out`"));
        assert!(Voice::beside_terminal("/nowhere/out").unwrap_err().to_string().contains("`/nowhere/out`"));
    }
}
