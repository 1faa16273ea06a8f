//! The messages between the shim and the engine. Each direction has its own channel, which is closed as soon as it is not
//! needed.
//!
//! The shim sends a [`Message`] over the control socket (descriptors only: the plan is in a file, and says which they are). The engine replies
//! through a pipe that comes with the message, in lines of JSON, each a [`Reply`]: `Loaded`, then `Ready` or `Refused`, or
//! `Refused` alone. An engine that has loaded a guest links it, waits for one more byte on the socket, which lets the guest run, and
//! closes the socket. From then on the pipe's writing end is its only connection to the shim. After [`Refusal::Incompatible`] it waits
//! for another message instead.

use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::os::fd::AsFd;
use std::os::unix::net::UnixStream;

use nix::sys::memfd::{MFdFlags, memfd_create};
use serde::{Deserialize, Serialize};
use skiff_linux::descriptors;

use crate::EnginePlan;

/// The version of this protocol. It changes whenever a program of the previous release would misunderstand a message.
pub const VERSION: u32 = 4;
/// The most memory limit files that a message carries.
pub const LIMIT_FILES_MAX: usize = 16;
/// The plan, the account, the pipe for replies, the compiled code and the call socket come first.
const FILES_MAX: usize = 5 + 2 * LIMIT_FILES_MAX;
/// The longest line that is a [`Reply`], in bytes; the kernel's default size of a pipe.
pub const REPLY_BYTES_MAX: usize = 64 << 10;
/// The initial buffer for a plan, in bytes: most plans fit and are read at once.
const PLAN_BYTES_USUAL: usize = 16 << 10;
/// The longest plan that is read, in bytes.
const PLAN_BYTES_MAX: u64 = 16 << 20;

/// What the shim passes to the engine.
#[derive(Debug)]
pub struct Message {
    /// The container's plan.
    pub plan: EnginePlan,
    /// The compiled code, opened for reading; not for a task that runs none.
    pub code: Option<File>,
    /// The call socket: listening for the engine of a container's guest, connected to it for a task that asks that engine.
    pub calls: Option<File>,
    /// Where the engine keeps its [`Account`](crate::Account), opened for reading and writing.
    pub account: File,
    /// The writing end of the pipe for replies.
    pub replies: File,
    /// The memory limits, from the container's cgroup upwards.
    pub memory_limits: Vec<MemoryLimit>,
}

/// A memory limit, as files that are opened for reading.
#[derive(Debug)]
pub struct MemoryLimit {
    /// The limit itself (`memory.max`, v1: `memory.limit_in_bytes`).
    pub limit: File,
    /// What the memory below it is used for (`memory.stat`).
    pub stat: File,
}

/// What the engine replies.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Reply {
    /// The engine has loaded the compiled code, and waits to run the guest. The next reply may take as long as the guest's own start
    /// function.
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
    /// The compiled code is for another engine or processor: the shim must compile the module again and send another
    /// message.
    Incompatible(String),
    /// The guest is at fault; one sentence for the pod's owner.
    Guest(String),
    /// The container or the node is at fault; one sentence for the pod's owner.
    Host(String),
}

/// Sends `message` over `socket`, which must have room for one byte.
///
/// # Errors
/// Those of `memfd_create(2)`, `write(2)` and `sendmsg(2)`; `InvalidInput` for more than [`LIMIT_FILES_MAX`] limits.
pub fn send_message(socket: impl AsFd, message: &Message) -> io::Result<()> {
    if message.memory_limits.len() > LIMIT_FILES_MAX {
        return Err(io::Error::new(io::ErrorKind::InvalidInput, "too many memory limit files"));
    }
    let mut plan = File::from(memfd_create(c"skiff-plan", MFdFlags::MFD_CLOEXEC)?);
    let (code, calls) = (message.code.as_ref(), message.calls.as_ref());
    let versioned =
        Versioned { version: VERSION, has_code: code.is_some(), has_calls: calls.is_some(), plan: &message.plan };
    plan.write_all(&serde_json::to_vec(&versioned)?)?;
    plan.seek(SeekFrom::Start(0))?;
    let mut files = vec![plan.as_fd(), message.account.as_fd(), message.replies.as_fd()];
    files.extend(code.into_iter().chain(calls).map(AsFd::as_fd));
    files.extend(message.memory_limits.iter().flat_map(|limit| [limit.limit.as_fd(), limit.stat.as_fd()]));
    descriptors::send(socket, b"P", &files)
}

/// Waits for a message on `socket`. A shim of another release gets a refusal through the pipe that came with its message.
///
/// # Errors
/// `UnexpectedEof` when the shim has closed its end; `InvalidData` for a message of another protocol.
pub fn receive_message(socket: impl AsFd) -> io::Result<Message> {
    let (length, files) = descriptors::receive(socket, &mut [0])?;
    if length == 0 {
        return Err(io::Error::new(io::ErrorKind::UnexpectedEof, "the shim is gone"));
    }
    if files.len() > FILES_MAX {
        return Err(io::Error::new(io::ErrorKind::InvalidData, "a message with too many files"));
    }
    let mut files = files.into_iter().map(File::from);
    let (Some(plan), Some(account), Some(replies)) = (files.next(), files.next(), files.next()) else {
        return Err(io::Error::new(io::ErrorKind::InvalidData, "a message without plan, account and replies"));
    };
    let mut text = Vec::with_capacity(PLAN_BYTES_USUAL);
    plan.take(PLAN_BYTES_MAX).read_to_end(&mut text)?;
    if let Some(sentence) = other_release(&text) {
        Reply::Refused(Refusal::Host(sentence.clone())).write_to(&replies)?;
        return Err(io::Error::new(io::ErrorKind::InvalidData, sentence));
    }
    let Versioned { plan, has_code, has_calls, .. } = serde_json::from_slice(&text)?;
    let mut announced = |is_announced: bool| match is_announced {
        false => Ok(None),
        true => match files.next() {
            None => Err(io::Error::new(io::ErrorKind::InvalidData, "a message without a file that it announces")),
            file => Ok(file),
        },
    };
    let (code, calls) = (announced(has_code)?, announced(has_calls)?);
    let mut memory_limits = Vec::new();
    while let Some(limit) = files.next() {
        let stat = files.next();
        let stat =
            stat.ok_or_else(|| io::Error::new(io::ErrorKind::InvalidData, "a memory limit without its statistics"))?;
        memory_limits.push(MemoryLimit { limit, stat });
    }
    Ok(Message { plan, code, calls, account, replies, memory_limits })
}

/// Lets the guest run that the engine at the other end of `socket` has loaded.
///
/// # Errors
/// Those of `write(2)`: the engine has ended, or has refused the guest.
pub fn let_run(mut socket: &UnixStream) -> io::Result<()> {
    socket.write_all(b"G")
}

/// Waits until the shim at the other end of `socket` lets the guest run.
///
/// # Errors
/// `UnexpectedEof` when the shim has closed its end.
pub fn wait_to_run(mut socket: &UnixStream) -> io::Result<()> {
    let gone = |_| io::Error::new(io::ErrorKind::UnexpectedEof, "the shim is gone");
    socket.read_exact(&mut [0]).map_err(gone)
}

/// A plan as it is sent: with the version of the protocol, and whether there are the files that not every message has.
#[derive(Serialize, Deserialize)]
struct Versioned<Plan> {
    version: u32,
    has_code: bool,
    has_calls: bool,
    plan: Plan,
}

/// The sentence about a plan of another version; `None` if the version is ours.
fn other_release(text: &[u8]) -> Option<String> {
    #[derive(Deserialize)]
    struct Version {
        #[serde(default)]
        version: serde_json::Value,
    }
    let Version { version } = serde_json::from_slice(text).ok()?;
    (version != VERSION).then(|| {
        format!(
            "the shim and the engine are of different releases of skiff (protocol {version} and {VERSION}): install the \
             programs of one release into one directory"
        )
    })
}

impl Reply {
    /// Writes the reply as one line of at most [`REPLY_BYTES_MAX`] bytes. A longer sentence is cut.
    ///
    /// # Errors
    /// Those of writing to `writer`.
    pub fn write_to(&self, mut writer: impl Write) -> io::Result<()> {
        let mut line = serde_json::to_vec(&self.bounded())?;
        line.push(b'\n');
        writer.write_all(&line)
    }

    /// The reply, its sentence cut so that it fits into a line whatever its characters: JSON needs at most six bytes for
    /// one.
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

    /// Parses the line that [`Reply::write_to`] wrote.
    ///
    /// # Errors
    /// `InvalidData` when the line is not a reply.
    pub fn parse(line: &str) -> io::Result<Self> {
        Ok(serde_json::from_str(line)?)
    }
}

#[cfg(test)]
mod tests {
    use std::os::fd::BorrowedFd;
    use std::os::unix::net::UnixStream;

    use proptest::collection::vec;
    use proptest::prelude::{Just, ProptestConfig, Strategy, any, prop_assert, prop_oneof, proptest};

    use super::*;
    use crate::Preopen;

    fn null() -> File {
        File::open("/dev/null").unwrap()
    }

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
            code: None,
            calls: Some(File::open("/proc/self/exe").unwrap()),
            account: null(),
            replies: null(),
            memory_limits: vec![MemoryLimit { limit: null(), stat: null() }],
        };
        send_message(&shim, &message).unwrap();
        let received = receive_message(&engine).unwrap();
        assert_eq!(received.plan, plan);
        assert_eq!((received.code.is_some(), received.calls.is_some(), received.memory_limits.len()), (false, true, 1));
        drop(shim);
        assert_eq!(receive_message(&engine).unwrap_err().kind(), io::ErrorKind::UnexpectedEof);
    }

    #[test]
    fn a_plan_of_another_release_is_refused_with_a_sentence() {
        for (text, number) in [(r#"{"module":"/old.wasm"}"#, "null"), (r#"{"version":77,"plan":[]}"#, "77")] {
            let (shim, engine) = UnixStream::pair().unwrap();
            let mut plan = File::from(memfd_create(c"plan", MFdFlags::MFD_CLOEXEC).unwrap());
            plan.write_all(text.as_bytes()).unwrap();
            plan.rewind().unwrap();
            let (mut said, replies) = io::pipe().unwrap();
            let null = File::open("/dev/null").unwrap();
            descriptors::send(&shim, &[0], &[plan.as_fd(), null.as_fd(), replies.as_fd()]).unwrap();
            drop(replies);
            let error = receive_message(&engine).unwrap_err();
            let mut line = String::new();
            said.read_to_string(&mut line).unwrap();
            assert!(error.to_string().contains(&format!("(protocol {number} and {VERSION})")), "{error}");
            assert_eq!(Reply::parse(&line).unwrap(), Reply::Refused(Refusal::Host(error.to_string())));
        }
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

    /// A stranger's bytes: random ones, or a valid text with some bytes replaced, inserted or cut off.
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
        let plan = EnginePlan { env: vec!["A=1".into()], preopens, ..EnginePlan::default() };
        serde_json::to_vec(&Versioned { version: VERSION, has_code: true, has_calls: false, plan }).unwrap()
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
            let files: Vec<BorrowedFd<'_>> = vec![plan.as_fd(); files];
            descriptors::send(&shim, &[0], &files).unwrap();
            if let Ok(message) = receive_message(&engine) {
                prop_assert!(message.memory_limits.len() <= LIMIT_FILES_MAX);
            }
        }
    }
}
