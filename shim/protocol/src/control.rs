//! What goes to the engine and what comes back: two ways, so that each can be closed as soon as it is not needed.
//!
//! The shim sends a [`Message`] over the control socket (descriptors only: the plan travels in a file). The engine answers
//! through a pipe that the message brings, with lines of JSON, each a [`Reply`]: `Loaded`, then `Ready` or `Refused`, or
//! the latter alone. It closes the socket once the code is loaded; from then on all that it holds of the shim is the pipe's
//! writing end. After [`Refusal::Incompatible`] it waits for another message instead.

use std::fs::File;
use std::io::{self, IoSlice, IoSliceMut, Read, Seek, SeekFrom, Write};
use std::os::fd::{AsFd, AsRawFd, FromRawFd, OwnedFd, RawFd};

use nix::sys::memfd::{MFdFlags, memfd_create};
use nix::sys::socket::{ControlMessage, ControlMessageOwned, MsgFlags, recvmsg, sendmsg};
use serde::{Deserialize, Serialize};

use crate::EnginePlan;

/// The most memory limit files that a message carries.
pub const LIMIT_FILES_MAX: usize = 16;
/// The plan, the compiled code, the account and the pipe for replies come first.
const FILES_MAX: usize = 4 + LIMIT_FILES_MAX;
/// The longest line that is a [`Reply`], in bytes; the kernel's default size of a pipe.
pub const REPLY_BYTES_MAX: usize = 64 << 10;
/// Room for most plans, so that they are read at once.
const PLAN_BYTES_USUAL: usize = 16 << 10;
/// The longest plan that is read, in bytes.
const PLAN_BYTES_MAX: u64 = 16 << 20;

/// What the shim hands to the engine.
#[derive(Debug)]
pub struct Message {
    /// The container's plan.
    pub plan: EnginePlan,
    /// The compiled code, opened for reading.
    pub code: File,
    /// Where the engine keeps its [`Account`](crate::Account), opened for reading and writing.
    pub account: File,
    /// The writing end of the pipe for replies.
    pub replies: File,
    /// The memory limit files (`memory.max`, v1: `memory.limit_in_bytes`) from the container's cgroup upwards.
    pub memory_limits: Vec<File>,
}

/// What the engine answers.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Reply {
    /// The engine has loaded the compiled code. From here on it may take as long as the guest's own start function.
    Loaded,
    /// The guest is instantiated and about to run.
    Ready,
    /// The guest cannot be started.
    Refused(Refusal),
}

/// Why the engine does not start a guest.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Refusal {
    /// The compiled code is of another engine or processor: it has to be compiled again and sent again.
    Incompatible(String),
    /// The guest itself is at fault; one sentence for the pod's owner.
    Guest(String),
    /// The container or the node is at fault; one sentence for the pod's owner.
    Host(String),
}

/// Sends `message` over `socket`, which must have room for one byte.
///
/// # Errors
/// Those of `memfd_create(2)`, `write(2)` and `sendmsg(2)`; more than [`LIMIT_FILES_MAX`] limits are `InvalidInput`.
pub fn send_message(socket: impl AsFd, message: &Message) -> io::Result<()> {
    if message.memory_limits.len() > LIMIT_FILES_MAX {
        return Err(io::Error::new(io::ErrorKind::InvalidInput, "too many memory limit files"));
    }
    let mut plan = File::from(memfd_create(c"skiff-plan", MFdFlags::MFD_CLOEXEC)?);
    plan.write_all(&serde_json::to_vec(&message.plan)?)?;
    plan.seek(SeekFrom::Start(0))?;
    let mut fds: Vec<RawFd> =
        vec![plan.as_raw_fd(), message.code.as_raw_fd(), message.account.as_raw_fd(), message.replies.as_raw_fd()];
    fds.extend(message.memory_limits.iter().map(AsRawFd::as_raw_fd));
    sendmsg::<()>(
        socket.as_fd().as_raw_fd(),
        &[IoSlice::new(b"P")],
        &[ControlMessage::ScmRights(&fds)],
        MsgFlags::MSG_NOSIGNAL,
        None,
    )?;
    Ok(())
}

/// Waits for a message on `socket`.
///
/// # Errors
/// `UnexpectedEof` when the shim has closed its end; `InvalidData` for a message that is not of this protocol.
pub fn receive_message(socket: impl AsFd) -> io::Result<Message> {
    let mut byte = [0_u8; 1];
    let mut space = nix::cmsg_space!([RawFd; FILES_MAX]);
    let mut iov = [IoSliceMut::new(&mut byte)];
    let received = recvmsg::<()>(socket.as_fd().as_raw_fd(), &mut iov, Some(&mut space), MsgFlags::MSG_CMSG_CLOEXEC)?;
    let mut files = Vec::new();
    for control in received.cmsgs()? {
        if let ControlMessageOwned::ScmRights(fds) = control {
            for fd in fds {
                // SAFETY: the kernel has just made this descriptor for us, and nobody else knows of it.
                files.push(File::from(unsafe { OwnedFd::from_raw_fd(fd) }));
            }
        }
    }
    if received.bytes == 0 {
        return Err(io::Error::new(io::ErrorKind::UnexpectedEof, "the shim is gone"));
    }
    let mut files = files.into_iter();
    let (Some(plan), Some(code), Some(account), Some(replies)) =
        (files.next(), files.next(), files.next(), files.next())
    else {
        return Err(io::Error::new(io::ErrorKind::InvalidData, "a message without plan, code, account and replies"));
    };
    let mut text = Vec::with_capacity(PLAN_BYTES_USUAL);
    plan.take(PLAN_BYTES_MAX).read_to_end(&mut text)?;
    Ok(Message { plan: serde_json::from_slice(&text)?, code, account, replies, memory_limits: files.collect() })
}

impl Reply {
    /// Writes the reply as one line of at most [`REPLY_BYTES_MAX`] bytes: a longer sentence is cut.
    ///
    /// # Errors
    /// Those of writing to `writer`.
    pub fn write_to(&self, mut writer: impl Write) -> io::Result<()> {
        let mut line = serde_json::to_vec(&self.bounded())?;
        line.push(b'\n');
        writer.write_all(&line)
    }

    /// The reply with a sentence that fits into a line whatever its characters are: JSON needs at most six bytes for one.
    fn bounded(&self) -> Self {
        let cut = |text: &String| text[..text.floor_char_boundary(REPLY_BYTES_MAX / 8)].to_owned();
        match self {
            Self::Loaded => Self::Loaded,
            Self::Ready => Self::Ready,
            Self::Refused(refusal) => Self::Refused(match refusal {
                Refusal::Incompatible(text) => Refusal::Incompatible(cut(text)),
                Refusal::Guest(text) => Refusal::Guest(cut(text)),
                Refusal::Host(text) => Refusal::Host(cut(text)),
            }),
        }
    }

    /// Reads a reply from the line that [`Reply::write_to`] made.
    ///
    /// # Errors
    /// `InvalidData` when the line is not a reply.
    pub fn parse(line: &str) -> io::Result<Self> {
        Ok(serde_json::from_str(line)?)
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::net::UnixStream;

    use proptest::collection::vec;
    use proptest::prelude::{Just, ProptestConfig, Strategy, any, prop_assert, prop_oneof, proptest};

    use super::*;
    use crate::Preopen;

    #[test]
    fn a_message_arrives_with_its_files() {
        let (shim, engine) = UnixStream::pair().unwrap();
        let plan = EnginePlan {
            module: "/hello.wasm".into(),
            function: Some("run".into()),
            args: vec!["/hello.wasm".into(), "x".repeat(1 << 20)],
            cwd: "/".into(),
            preopens: vec![Preopen { host: "/dev/.skiff/root".into(), guest: "/".into(), read_only: false }],
            processors: Some(2),
            ..EnginePlan::default()
        };
        let message = Message {
            plan: plan.clone(),
            code: File::open("/proc/self/exe").unwrap(),
            account: File::open("/dev/null").unwrap(),
            replies: File::open("/dev/null").unwrap(),
            memory_limits: vec![File::open("/dev/null").unwrap()],
        };
        send_message(&shim, &message).unwrap();
        let received = receive_message(&engine).unwrap();
        assert_eq!(received.plan, plan);
        assert_eq!(received.memory_limits.len(), 1);
        drop(shim);
        assert_eq!(receive_message(&engine).unwrap_err().kind(), io::ErrorKind::UnexpectedEof);
    }

    #[test]
    fn a_reply_reads_back() {
        for reply in [Reply::Loaded, Reply::Ready, Reply::Refused(Refusal::Guest("no `_start`\nhere".into()))] {
            let mut line = Vec::new();
            reply.write_to(&mut line).unwrap();
            assert_eq!(Reply::parse(std::str::from_utf8(&line).unwrap()).unwrap(), reply);
        }
    }

    #[test]
    fn a_reply_is_never_longer_than_a_pipe_holds() {
        for character in ["x", "\u{1}", "\"", "\u{10ffff}"] {
            let mut line = Vec::new();
            Reply::Refused(Refusal::Guest(character.repeat(1 << 20))).write_to(&mut line).unwrap();
            assert!(line.len() <= REPLY_BYTES_MAX, "{character:?}: {}", line.len());
            Reply::parse(std::str::from_utf8(&line).unwrap()).unwrap();
        }
    }

    /// Bytes of a stranger: any at all, or a valid text with some bytes replaced, put in or cut off.
    fn bytes_like(valid: Vec<u8>) -> impl Strategy<Value = Vec<u8>> {
        let edits = vec((any::<u16>(), any::<u8>(), 0..3_u8), 0..8);
        let mutated = (Just(valid), edits).prop_map(|(mut bytes, edits)| {
            for (at, byte, edit) in edits {
                let at = usize::from(at) % (bytes.len() + 1);
                match (edit, bytes.get_mut(at)) {
                    (0, Some(place)) => *place = byte,
                    (1, _) => bytes.insert(at, byte),
                    (_, _) => bytes.truncate(bytes.len().saturating_sub(at / 16)),
                }
            }
            bytes
        });
        prop_oneof![vec(any::<u8>(), 0..256), mutated]
    }

    fn valid_plan() -> Vec<u8> {
        let preopens = vec![Preopen { host: "/a".into(), guest: "/".into(), read_only: true }];
        serde_json::to_vec(&EnginePlan { env: vec!["A=1".into()], preopens, ..EnginePlan::default() }).unwrap()
    }

    fn valid_reply() -> Vec<u8> {
        serde_json::to_vec(&Reply::Refused(Refusal::Guest("no \"such\" \u{1f980}".into()))).unwrap()
    }

    proptest! {
        #![proptest_config(ProptestConfig { cases: 10_000, failure_persistence: None, ..ProptestConfig::default() })]

        #[test]
        fn no_line_that_an_engine_says_does_harm(line in bytes_like(valid_reply())) {
            if let Ok(reply) = Reply::parse(&String::from_utf8_lossy(&line)) {
                let mut again = Vec::new();
                reply.write_to(&mut again).unwrap();
                prop_assert!(again.len() <= REPLY_BYTES_MAX);
            }
        }

        #[test]
        fn no_plan_does_harm(text in bytes_like(valid_plan()), files in 0..8_usize) {
            let (shim, engine) = UnixStream::pair().unwrap();
            let mut plan = File::from(memfd_create(c"plan", MFdFlags::MFD_CLOEXEC).unwrap());
            plan.write_all(&text).unwrap();
            plan.rewind().unwrap();
            let fds = vec![plan.as_raw_fd(); files];
            let rights = [ControlMessage::ScmRights(&fds)];
            let sent = if files == 0 { &[] } else { &rights[..] };
            sendmsg::<()>(shim.as_raw_fd(), &[IoSlice::new(&[0])], sent, MsgFlags::empty(), None).unwrap();
            if let Ok(message) = receive_message(&engine) {
                prop_assert!(message.memory_limits.len() <= LIMIT_FILES_MAX);
            }
        }
    }
}
