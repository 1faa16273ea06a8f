//! The way back to whoever asks the engine of a guest something: the connection of one question, seen from the engine that answers.
//!
//! The other side is a stranger, which may send anything, read nothing and go at any time. It is only waited for on the thread of its
//! own connection, never on one that runs the guest.

use std::io::{self, ErrorKind, Read, Write};
use std::net::Shutdown;
use std::os::fd::AsFd;
use std::os::unix::net::UnixStream;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use skiff_protocol::{FRAME_BYTES_MAX, Frame, Question};

/// How long a connection may take to send its question.
const QUESTION_TIME: Duration = Duration::from_secs(30);
/// How long the asking process may take to end.
const END_TIME: Duration = Duration::from_secs(1);

/// The connection of one question.
pub(crate) struct Answer {
    connection: Connection,
    frame: Vec<u8>,
}

/// A connection on which nothing is waited for beyond a deadline.
struct Connection {
    line: Arc<Line>,
    deadline: Option<Instant>,
}

/// The connection itself, for whoever may have to end it because its other side neither says nor takes anything.
pub(crate) struct Line {
    stream: UnixStream,
    /// Since when its other side is waited for, if it is.
    waiting_since: Mutex<Option<Instant>>,
}

impl Line {
    /// Takes over a connection.
    ///
    /// # Errors
    /// Never in practice.
    pub(crate) fn new(stream: UnixStream) -> io::Result<Arc<Self>> {
        stream.set_nonblocking(true)?;
        Ok(Arc::new(Self { stream, waiting_since: Mutex::default() }))
    }

    /// Since when its other side is waited for, if it is.
    pub(crate) fn waiting_since(&self) -> Option<Instant> {
        *self.waiting_since.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Ends the connection: whoever waits for the other side finds that it is gone.
    pub(crate) fn end(&self) {
        // One that is not connected any more has ended.
        let _ended = self.stream.shutdown(Shutdown::Both);
    }

    fn set_waiting_since(&self, since: Option<Instant>) {
        *self.waiting_since.lock().unwrap_or_else(PoisonError::into_inner) = since;
    }
}

impl Answer {
    /// The way back over a connection.
    pub(crate) fn new(line: Arc<Line>) -> Self {
        Self { connection: Connection { line, deadline: None }, frame: Vec::new() }
    }

    /// Waits for the question, at most for 5 s.
    ///
    /// # Errors
    /// `TimedOut` after that; `InvalidData` for anything but a question.
    pub(crate) fn question(&mut self) -> io::Result<Question> {
        self.connection.deadline = Some(Instant::now() + QUESTION_TIME);
        let frame = Frame::read(&mut self.connection, &mut self.frame)?;
        self.connection.deadline = None;
        match frame.kind {
            Frame::QUESTION => {
                serde_json::from_slice(&self.frame).map_err(|error| io::Error::new(ErrorKind::InvalidData, error))
            }
            _ => Err(io::Error::new(ErrorKind::InvalidData, "not a question")),
        }
    }

    /// Waits for more input, and appends it to `input`. Returns whether there may be more: the last frame is an empty one.
    ///
    /// # Errors
    /// `UnexpectedEof` if the asking side is gone; `InvalidData` for anything but input.
    pub(crate) fn input(&mut self, input: &mut Vec<u8>) -> io::Result<bool> {
        match Frame::read(&mut self.connection, &mut self.frame)?.kind {
            Frame::INPUT => input.extend_from_slice(&self.frame),
            _ => return Err(io::Error::new(ErrorKind::InvalidData, "not input")),
        }
        Ok(!self.frame.is_empty())
    }

    /// Whether [`Answer::input`] would find something at once.
    pub(crate) fn has_input(&self) -> bool {
        self.connection.is_ready(PollFlags::POLLIN)
    }

    /// Whether nobody is there any more to hear the answer.
    pub(crate) fn is_abandoned(&self) -> bool {
        self.connection.is_ready(PollFlags::POLLHUP)
    }

    /// Waits for nothing any more once `deadline` has passed.
    pub(crate) fn end_by(&mut self, deadline: Instant) {
        self.connection.deadline = Some(deadline);
    }

    /// Has the asking process write `bytes` to its stdout. Waits for its reader.
    ///
    /// # Errors
    /// `BrokenPipe` if the asking side is gone.
    pub(crate) fn output(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.send(Frame::OUTPUT, bytes)
    }

    /// Has the asking process write `bytes` to its stderr.
    ///
    /// # Errors
    /// Those of [`Answer::output`].
    pub(crate) fn error(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.send(Frame::ERROR, bytes)
    }

    /// Has the asking process say a sentence on its stderr.
    ///
    /// # Errors
    /// Those of [`Answer::output`].
    pub(crate) fn complain(&mut self, sentence: &str) -> io::Result<()> {
        self.error(format!("skiff: {sentence}\n").as_bytes())
    }

    /// Ends the asking process with this code, and waits for its end, at most for 1 s: where this process is about to end, the other
    /// one would be ended with it.
    ///
    /// # Errors
    /// Those of [`Answer::output`].
    pub(crate) fn end(mut self, code: u8) -> io::Result<()> {
        self.send(Frame::EXIT, &[code])?;
        self.connection.deadline = Some(Instant::now() + END_TIME);
        self.connection.wait(PollFlags::POLLHUP)
    }

    fn send(&mut self, kind: u8, bytes: &[u8]) -> io::Result<()> {
        // Also no bytes are a frame.
        let (first, rest) = bytes.split_at(bytes.len().min(FRAME_BYTES_MAX));
        for part in std::iter::once(first).chain(rest.chunks(FRAME_BYTES_MAX)) {
            self.frame.clear();
            Frame::write(kind, part, &mut self.frame)?;
            self.connection.write_all(&self.frame)?;
        }
        Ok(())
    }
}

impl Connection {
    /// Whether one of `flags` holds now.
    fn is_ready(&self, flags: PollFlags) -> bool {
        poll(&mut [PollFd::new(self.line.stream.as_fd(), flags)], PollTimeout::ZERO).is_ok_and(|ready| ready > 0)
    }

    /// Waits until one of `flags` holds.
    fn wait(&self, flags: PollFlags) -> io::Result<()> {
        let patience = match self.deadline.map(|deadline| deadline.saturating_duration_since(Instant::now())) {
            Some(Duration::ZERO) => return Err(ErrorKind::TimedOut.into()),
            // Rounded up, so that the last millisecond is not spent spinning.
            Some(left) => {
                PollTimeout::try_from(left + Duration::from_millis(1)).map_err(|_| ErrorKind::InvalidInput)?
            }
            None => PollTimeout::NONE,
        };
        self.line.set_waiting_since(Some(Instant::now()));
        let ready = poll(&mut [PollFd::new(self.line.stream.as_fd(), flags)], patience);
        self.line.set_waiting_since(None);
        match ready {
            Ok(_) | Err(Errno::EINTR) => Ok(()),
            Err(error) => Err(error.into()),
        }
    }
}

impl Read for Connection {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        loop {
            match (&self.line.stream).read(buffer) {
                Err(error) if error.kind() == ErrorKind::WouldBlock => self.wait(PollFlags::POLLIN)?,
                read => return read,
            }
        }
    }
}

impl Write for Connection {
    fn write(&mut self, buffer: &[u8]) -> io::Result<usize> {
        loop {
            match (&self.line.stream).write(buffer) {
                Err(error) if error.kind() == ErrorKind::WouldBlock => self.wait(PollFlags::POLLOUT)?,
                written => return written,
            }
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pair() -> (UnixStream, Answer) {
        let (theirs, ours) = UnixStream::pair().unwrap();
        (theirs, Answer::new(Line::new(ours).unwrap()))
    }

    #[test]
    fn a_question_comes_first_and_input_after_it() {
        let (mut asker, mut answer) = pair();
        let question = Question::Invoke(vec!["add(1, 2)".to_owned()]);
        Frame::write(Frame::QUESTION, &serde_json::to_vec(&question).unwrap(), &mut asker).unwrap();
        assert_eq!(answer.question().unwrap(), question);
        assert!(!answer.has_input());
        Frame::write(Frame::INPUT, b"more", &mut asker).unwrap();
        Frame::write(Frame::INPUT, b"", &mut asker).unwrap();
        let mut input = Vec::new();
        assert!(answer.has_input());
        assert!(answer.input(&mut input).unwrap());
        assert!(!answer.input(&mut input).unwrap());
        assert_eq!(input, b"more");
    }

    #[test]
    fn whatever_else_comes_is_an_error() {
        for (kind, content) in
            [(Frame::INPUT, &b"x"[..]), (Frame::QUESTION, b"{"), (Frame::QUESTION, b"\xff"), (7, b"")]
        {
            let (mut asker, mut answer) = pair();
            Frame::write(kind, content, &mut asker).unwrap();
            assert_eq!(answer.question().unwrap_err().kind(), ErrorKind::InvalidData, "{kind}");
        }
    }

    #[test]
    fn whoever_is_gone_is_noticed() {
        let (asker, mut answer) = pair();
        assert!(!answer.is_abandoned());
        drop(asker);
        assert!(answer.is_abandoned());
        assert_eq!(answer.question().unwrap_err().kind(), ErrorKind::UnexpectedEof);
        assert_eq!(answer.output(b"x").unwrap_err().kind(), ErrorKind::BrokenPipe);
    }

    #[test]
    fn an_end_is_one_byte() {
        let (mut asker, mut answer) = pair();
        answer.complain("no").unwrap();
        answer.end(7).unwrap();
        let mut content = Vec::new();
        assert_eq!(Frame::read(&mut asker, &mut content).unwrap().kind, Frame::ERROR);
        assert_eq!(content, b"skiff: no\n");
        assert_eq!(Frame::read(&mut asker, &mut content).unwrap().kind, Frame::EXIT);
        assert_eq!(content, [7]);
    }
}
