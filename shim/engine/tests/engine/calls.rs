//! Questions over the call socket: processes that ask, engines that answer, and what they do to each other.

use std::io::Write;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::PathBuf;

use skiff_protocol::{FRAME_BYTES_MAX, Frame, Question, Task};
use tempfile::TempDir;

use crate::driver::{Ended, Guest};

/// A call socket as the shim makes one.
pub(crate) struct CallSocket {
    folder: TempDir,
}

impl CallSocket {
    /// A call socket, and `guest` listening on it.
    pub(crate) fn of(guest: Guest) -> (Self, Guest) {
        let folder = tempfile::tempdir().unwrap();
        let socket = Self { folder };
        let listener = UnixListener::bind(socket.path()).unwrap();
        (socket, guest.calls(listener))
    }

    fn path(&self) -> PathBuf {
        self.folder.path().join("calls")
    }

    /// A connection, as the shim makes one for an exec.
    pub(crate) fn connect(&self) -> UnixStream {
        UnixStream::connect(self.path()).unwrap()
    }

    /// A process for an exec.
    pub(crate) fn asks(&self, task: Task) -> Guest {
        Guest::task(task).calls(self.connect())
    }
}

pub(crate) fn words(words: &[&str]) -> Vec<String> {
    words.iter().map(|word| (*word).to_owned()).collect()
}

fn look(args: &[&str]) -> Task {
    Task::Look(words(args))
}

/// Has an engine ask, and plays the engine that is asked: it gets the question and says `answer`.
fn answered_with(answer: &[(u8, &[u8])]) -> Ended {
    let (theirs, mut ours) = UnixStream::pair().unwrap();
    let mut running = Guest::task(look(&["ps"])).calls(theirs).start().ready();
    let mut content = Vec::new();
    assert_eq!(Frame::read(&mut ours, &mut content).unwrap().kind, Frame::QUESTION);
    assert_eq!(serde_json::from_slice::<Question>(&content).unwrap(), Question::Look(words(&["ps"])));
    for (kind, content) in answer {
        Frame::write(*kind, content, &mut ours).unwrap();
    }
    drop(ours);
    running.end()
}

#[test]
fn what_is_nothing_to_run_is_told_and_ends_with_127() {
    let ended = Guest::task(Task::Refuse("there is no `sh` here".to_owned())).run();
    assert_eq!((ended.code, ended.stderr.as_str()), (127, "skiff: there is no `sh` here\n"));
}

#[test]
fn who_has_nobody_to_ask_says_so() {
    for task in [look(&["ps"]), Task::Invoke(words(&["add(1, 2)"]))] {
        let ended = Guest::task(task).run();
        assert_eq!((ended.code, ended.stdout.as_str()), (1, ""));
        assert!(ended.stderr.contains("there is nobody to ask"), "{}", ended.stderr);
    }
}

#[test]
fn an_answer_is_written_where_it_says_and_ends_with_its_code() {
    let long = vec![b'x'; FRAME_BYTES_MAX * 3];
    let ended = answered_with(&[(Frame::OUTPUT, b"one\n"), (Frame::ERROR, b"two\n"), (Frame::EXIT, &[42])]);
    assert_eq!((ended.code, ended.stdout.as_str(), ended.stderr.as_str()), (42, "one\n", "two\n"));
    let ended = answered_with(&[(Frame::OUTPUT, &long), (Frame::EXIT, &[0])]);
    assert_eq!((ended.code, ended.stdout.len()), (0, long.len()));
}

#[test]
fn an_answer_that_is_none_ends_with_a_sentence() {
    for (answer, sentence) in [
        (&[][..], "closed the connection before it had answered"),
        (&[(Frame::OUTPUT, &b"half"[..])], "closed the connection before it had answered"),
        (&[(Frame::EXIT, b"")], "is not an answer"),
        (&[(Frame::EXIT, b"12")], "is not an answer"),
        (&[(Frame::QUESTION, b"{}")], "is not an answer"),
        (&[(0, b"")], "is not an answer"),
    ] {
        let ended = answered_with(answer);
        assert_eq!(ended.code, 1, "{answer:?}");
        assert!(ended.stderr.contains(sentence), "{answer:?}: {}", ended.stderr);
    }
}

#[test]
fn a_running_guest_answers_and_goes_on() {
    let (socket, guest) = CallSocket::of(Guest::named("c-sleep"));
    let _running = guest.start().ready();
    for _ in 0..3 {
        let ended = socket.asks(look(&["no-such-command"])).run();
        assert_eq!(ended.code, 2, "{}", ended.stderr);
        assert!(ended.stderr.contains("no-such-command"), "{}", ended.stderr);
    }
}

#[test]
fn a_connection_that_asks_nothing_sensible_is_closed() {
    let (socket, guest) = CallSocket::of(Guest::named("c-sleep"));
    let _running = guest.start().ready();
    for bytes in [&b"Q\xff\xff\xff\xff"[..], b"I\0\0\0\0", b"Q\x02\0\0\0{}", b"Q\x02\0\0\0\xff\xff"] {
        let mut connection = socket.connect();
        connection.write_all(bytes).unwrap();
        assert!(Frame::read(&mut connection, &mut Vec::new()).is_err(), "{bytes:?}");
    }
    assert_eq!(socket.asks(look(&["no-such-command"])).run().code, 2);
}
