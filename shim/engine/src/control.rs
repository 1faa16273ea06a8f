//! The engine's ends of the channels between it and the shim, and what it inherits from the shim.

use std::ffi::CString;
use std::fs::File;
use std::io;
use std::os::unix::net::UnixStream;
use std::sync::Arc;

use skiff_linux::descriptors;
use skiff_protocol::{CONTROL_FD, ENGINE_FD, Message, Refusal, Reply};

use crate::report::Reporter;

/// The control socket. Messages and the word to run come through it, and nothing goes back. Invariant: no guest code runs while
/// it is open.
pub(crate) struct Control(UnixStream);

impl Control {
    /// Takes over the socket from the process that executed the engine, and closes everything else that it inherited: the
    /// engine's own file, and whatever was left open by accident.
    ///
    /// # Errors
    /// If descriptor [`CONTROL_FD`] is not open.
    pub(crate) fn inherit() -> io::Result<Self> {
        let socket = UnixStream::from(descriptors::inherit(CONTROL_FD)?);
        // Closing fails if there is nothing, as in a test that starts the engine by its path. Then there is nothing to do.
        let _closed = nix::unistd::close(ENGINE_FD);
        // Kernels before 5.9 cannot; runtimes leave nothing there.
        let _closed = descriptors::close_from(CONTROL_FD.cast_unsigned() + 1);
        Ok(Self(socket))
    }

    /// Waits until the guest that was loaded may run, and closes the socket.
    ///
    /// # Errors
    /// `UnexpectedEof` if the shim is gone.
    pub(crate) fn wait_to_run(self) -> io::Result<()> {
        skiff_protocol::wait_to_run(&self.0)
    }

    /// Waits for the next message of the shim.
    ///
    /// # Errors
    /// Those of [`skiff_protocol::receive_message`].
    pub(crate) fn receive(&self) -> io::Result<Message> {
        loop {
            match skiff_protocol::receive_message(&self.0) {
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                received => return received,
            }
        }
    }
}

/// The pipe for the replies to one message. It is the engine's only link to the shim while its guest starts.
pub(crate) struct Replies {
    pipe: File,
    reporter: Arc<Reporter>,
}

impl Replies {
    /// Replies through the pipe that came with a message.
    pub(crate) fn new(pipe: File, reporter: &Arc<Reporter>) -> Self {
        Self { pipe, reporter: Arc::clone(reporter) }
    }

    /// Says that the code is loaded.
    ///
    /// # Errors
    /// If the shim is gone.
    pub(crate) fn loaded(&self) -> io::Result<()> {
        Reply::Loaded.write_to(&self.pipe)
    }

    /// Says that the guest is about to run, and closes the pipe.
    ///
    /// # Errors
    /// Those of writing, unless the shim no longer waits: it has reported a guest with a long start function as started.
    pub(crate) fn ready(self) -> io::Result<()> {
        match Reply::Ready.write_to(&self.pipe) {
            Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Ok(()),
            written => written,
        }
    }

    /// Says why the guest does not run: to the shim, or on stderr if the shim no longer waits.
    ///
    /// # Errors
    /// Those of writing.
    pub(crate) fn refuse(&self, refusal: Refusal) -> io::Result<()> {
        let reply = Reply::Refused(refusal);
        match (reply.write_to(&self.pipe), reply) {
            (Err(error), Reply::Refused(Refusal::Guest(sentence) | Refusal::Host(sentence)))
                if error.kind() == io::ErrorKind::BrokenPipe =>
            {
                self.reporter.end(&sentence, "");
                Ok(())
            }
            (written, _) => written,
        }
    }
}

/// Names the process, for `ps` and the kernel's messages. The kernel keeps 15 bytes.
pub(crate) fn name_process(name: &str) {
    if let Ok(name) = CString::new(name) {
        // A name is a convenience: a kernel that refuses it changes nothing.
        let _named = nix::sys::prctl::set_name(&name);
    }
}
