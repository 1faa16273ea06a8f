//! The asking side of the call socket: sends a question, passes input on, and does what the answer says: writes to stdout and stderr,
//! and ends.

use std::io::{self, ErrorKind, Read, Write};
use std::os::unix::net::UnixStream;
use std::thread::Builder;

use skiff_protocol::{FRAME_BYTES_MAX, Frame, Question, bytes_and_mi, exit_code_of_signal};

use crate::shown::why;
use crate::stdio::target::Target;
use crate::stdio::write::{NamedOutput, Whole};

const STACK_BYTES: usize = 128 << 10;

/// What the guest's engine is given besides the question.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Input {
    /// The stdin of this process, as far as it is asked for before the answer ends.
    Stdin,
    /// Nothing.
    None,
}

/// Asks a question over `connection`, writes the answer's output to `output`, and returns the exit code that it says.
///
/// # Errors
/// A sentence if there is no answer, or not the whole of it.
pub(crate) fn ask(
    connection: UnixStream,
    question: &Question,
    input: Input,
    output: NamedOutput,
) -> Result<i32, String> {
    let text = serde_json::to_vec(question).map_err(|error| format!("cannot ask: {error}"))?;
    if text.len() > FRAME_BYTES_MAX {
        let most = bytes_and_mi(FRAME_BYTES_MAX as u64);
        return Err(format!("the arguments are longer than {most}: send expressions through stdin"));
    }
    Frame::write(Frame::QUESTION, &text, &connection).map_err(|error| gone(&error))?;
    match input {
        Input::Stdin => pass_on_stdin(&connection).map_err(|error| format!("cannot read stdin: {error}"))?,
        // A side that has already answered takes no more input. Its answer still counts.
        Input::None => drop(Frame::write(Frame::INPUT, &[], &connection)),
    }
    hear(connection, output)
}

fn gone(error: &io::Error) -> String {
    format!("the guest's engine closed the connection before it had answered ({error})")
}

/// Sends stdin until its end or that of the connection, on a thread of its own: nobody waits for it. The socket holds a few frames, and
/// no more is read before somebody takes them.
fn pass_on_stdin(connection: &UnixStream) -> io::Result<()> {
    let connection = connection.try_clone()?;
    let thread = Builder::new().name("stdin".to_owned()).stack_size(STACK_BYTES);
    thread.spawn(move || {
        let mut buffer = vec![0; FRAME_BYTES_MAX];
        loop {
            let length = match io::stdin().read(&mut buffer) {
                Err(error) if error.kind() == ErrorKind::Interrupted => continue,
                // A stdin that cannot be read has ended.
                read => read.unwrap_or(0),
            };
            let sent = Frame::write(Frame::INPUT, buffer.get(..length).unwrap_or_default(), &connection);
            if length == 0 || sent.is_err() {
                return;
            }
        }
    })?;
    Ok(())
}

/// Does what the answer says, to its end.
fn hear(mut connection: UnixStream, NamedOutput { mut writer, name }: NamedOutput) -> Result<i32, String> {
    let mut content = Vec::new();
    loop {
        let frame = Frame::read(&mut connection, &mut content).map_err(|error| gone(&error))?;
        let written = match (frame.kind, content.as_slice()) {
            (Frame::OUTPUT, bytes) => writer.write_all(bytes),
            (Frame::ERROR, bytes) => Whole(Target::Stderr).write_all(bytes),
            (Frame::EXIT, [code]) => return flushed(writer.flush(), i32::from(*code), &name),
            _ => return Err("what the guest's engine said is not an answer".to_owned()),
        };
        if let Err(error) = written {
            return flushed(Err(error), 0, &name);
        }
    }
}

/// The exit code once output of this name is written. Nobody reads a broken pipe: that ends a process quietly, like one that SIGPIPE ends.
fn flushed(written: io::Result<()>, code: i32, name: &str) -> Result<i32, String> {
    match written {
        Ok(()) => Ok(code),
        Err(error) if error.kind() == ErrorKind::BrokenPipe => Ok(exit_code_of_signal(libc::SIGPIPE)),
        Err(error) => Err(format!("cannot write {name}: {}", why(&error))),
    }
}
