//! The control socket between shim and engine: a pair of stream sockets.
//!
//! The shim sends a [`Message`] (descriptors only: the plan travels in a file), the engine answers with lines of JSON,
//! each a [`Reply`]: `Loaded`, then `Ready` or `Refused`, or the latter alone; and closes its end. After
//! [`Refusal::Incompatible`] it waits for another message instead.

use std::fs::File;
use std::io::{self, IoSlice, IoSliceMut, Read, Seek, SeekFrom, Write};
use std::os::fd::{AsFd, AsRawFd, FromRawFd, OwnedFd, RawFd};

use nix::sys::memfd::{MFdFlags, memfd_create};
use nix::sys::socket::{ControlMessage, ControlMessageOwned, MsgFlags, recvmsg, sendmsg};
use serde::{Deserialize, Serialize};

use crate::EnginePlan;

/// The most memory limit files that a message carries.
pub const LIMIT_FILES_MAX: usize = 16;
/// The plan, the compiled code and the account come first.
const FILES_MAX: usize = 3 + LIMIT_FILES_MAX;

/// What the shim hands to the engine.
#[derive(Debug)]
pub struct Message {
    /// The container's plan.
    pub plan: EnginePlan,
    /// The compiled code, opened for reading.
    pub code: File,
    /// Where the engine keeps its [`Account`](crate::Account), opened for reading and writing.
    pub account: File,
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
    let mut fds: Vec<RawFd> = vec![plan.as_raw_fd(), message.code.as_raw_fd(), message.account.as_raw_fd()];
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
    let (Some(mut plan), Some(code), Some(account)) = (files.next(), files.next(), files.next()) else {
        return Err(io::Error::new(io::ErrorKind::InvalidData, "a message without plan, code and account"));
    };
    let mut text = Vec::new();
    plan.read_to_end(&mut text)?;
    Ok(Message { plan: serde_json::from_slice(&text)?, code, account, memory_limits: files.collect() })
}

impl Reply {
    /// Writes the reply as one line.
    ///
    /// # Errors
    /// Those of writing to `writer`.
    pub fn write_to(&self, mut writer: impl Write) -> io::Result<()> {
        let mut line = serde_json::to_vec(self)?;
        line.push(b'\n');
        writer.write_all(&line)
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
}
