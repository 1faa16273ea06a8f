//! The first stage of a process: started by the shim, told what to do, and watched until it has executed the process's program.

use std::fs::File;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream as BlockingStream;
use std::path::PathBuf;
use std::time::Duration;

use nix::sched::{CloneFlags, setns};
use skiff_linux::namespaces::execute_with;
use skiff_protocol::launch::{CONSOLE_FD, FIRST_STAGE, JOINED_FD, STAGE_FD, Stage, read_line, write_line};
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::UnixStream;

use crate::error::{Context, Error, Kind, Result};
use crate::host::process::{Child, FIRST_PASSED};
use crate::launch::launcher::Attachment;
use crate::launch::runc::LIMIT;

/// The longest report, in bytes.
const REPORT_BYTES_MAX: u64 = 64 << 10;

/// How a first stage is started.
pub(super) struct Start {
    /// The engine's program.
    pub(super) program: File,
    pub(super) attachment: Attachment,
    /// What the process gets as descriptors 3, 4, ….
    pub(super) preserved: Vec<OwnedFd>,
    /// The cgroup of version 2 that it begins in.
    pub(super) cgroup: Option<File>,
    /// The process whose container it joins; otherwise it gets mounts and process ids of its own.
    pub(super) joined: Option<OwnedFd>,
    /// What is done with its process before it is told anything.
    pub(super) entering: Option<Entering>,
}

/// Something that is done with the process of this number, and may wait.
pub(super) type Entering = Box<dyn FnOnce(u32) -> io::Result<()> + Send>;

/// A first stage. As long as its process has no other owner, it is killed if this is dropped.
struct Started {
    child: Option<Child>,
    stage: BufReader<UnixStream>,
}

impl Start {
    /// Starts it, tells it what to do and waits until it has executed the process's program. If that fails, it is ended.
    ///
    /// # Errors
    /// The host's, and the sentence of the first stage.
    pub(super) async fn lead(self, stage: &Stage) -> Result<Child> {
        let mut started = self.start().await?;
        let led = match started.tell(stage).await {
            Ok(()) => started.executed().await,
            told => told,
        };
        if let Err(error) = led {
            started.end().await;
            return Err(error);
        }
        started.child.take().ok_or_else(|| Error::new(Kind::Host, "the first stage has no process"))
    }

    /// Starts it, in the node's namespaces. Waits for the execution of the program, on a thread of its own: whichever thread does
    /// this makes its later children in the same namespace of process ids.
    ///
    /// # Errors
    /// The host's.
    async fn start(self) -> Result<Started> {
        let (ours, theirs) = BlockingStream::pair().doing(|| "cannot make a socket for the first stage".into())?;
        let runtime = tokio::runtime::Handle::current();
        let (done, started) = tokio::sync::oneshot::channel();
        let thread = std::thread::Builder::new().name("first-stage".into()).spawn(move || {
            let _registers_with = runtime.enter();
            // If nobody waits for it any more, it is dropped and so killed.
            drop(done.send(self.start_here(ours, &theirs)));
        });
        thread.doing(|| "cannot start a thread for the first stage".into())?;
        // Another process of the container may stop it before it has executed its program.
        let started = within(LIMIT, async { started.await.map_err(io::Error::other)? }).await;
        started.doing(|| "cannot start the first stage".into())
    }

    fn start_here(self, ours: BlockingStream, theirs: &BlockingStream) -> io::Result<Started> {
        let (streams, console) = connect(self.attachment)?;
        let mut files: Vec<(BorrowedFd<'_>, i32)> = streams.iter().map(AsFd::as_fd).zip(0..).collect();
        files.extend(self.preserved.iter().map(AsFd::as_fd).zip(FIRST_PASSED..STAGE_FD));
        files.push((theirs.as_fd(), STAGE_FD));
        files.extend(self.joined.as_ref().map(|process| (process.as_fd(), JOINED_FD)));
        files.extend(console.as_ref().map(|console| (console.as_fd(), CONSOLE_FD)));
        let namespaces = match &self.joined {
            None => CloneFlags::CLONE_NEWNS | CloneFlags::CLONE_NEWPID,
            Some(process) => {
                setns(process, CloneFlags::CLONE_NEWPID)?;
                CloneFlags::empty()
            }
        };
        let name = std::ffi::CString::new(FIRST_STAGE)?;
        let pid = execute_with(self.program.as_fd(), &name, &files, namespaces, self.cgroup.as_ref().map(AsFd::as_fd))?;
        let child = Child::of_child(pid)?;
        ours.set_nonblocking(true)?;
        let started = Started { child: Some(child), stage: BufReader::new(UnixStream::from_std(ours)?) };
        self.entering.map_or(Ok(()), |enter| enter(pid.cast_unsigned()))?;
        Ok(started)
    }
}

/// The streams that a first stage begins with, and the connection over which it sends a terminal.
fn connect(attachment: Attachment) -> io::Result<([OwnedFd; 3], Option<OwnedFd>)> {
    let console = |path: PathBuf| BlockingStream::connect(path).map(OwnedFd::from);
    match attachment {
        Attachment::Files(stdio) => Ok(([stdio.stdin.into(), stdio.stdout.into(), stdio.stderr.into()], None)),
        Attachment::Console(path) => {
            let null = || File::options().read(true).write(true).open("/dev/null").map(OwnedFd::from);
            Ok(([null()?, null()?, null()?], Some(console(path)?)))
        }
    }
}

impl Started {
    /// Tells it what to do.
    async fn tell(&mut self, stage: &Stage) -> Result<()> {
        let mut line = Vec::new();
        let written = write_line(stage, &mut line);
        written.doing(|| "cannot write down the steps of the first stage".into())?;
        let told = within(LIMIT, self.stage.get_mut().write_all(&line)).await;
        told.doing(|| "cannot tell the first stage what to do".into())
    }

    /// Waits until it has executed the program, or has ended.
    async fn executed(&mut self) -> Result<()> {
        let mut line = Vec::new();
        let mut bounded = (&mut self.stage).take(REPORT_BYTES_MAX);
        let read = within(LIMIT, bounded.read_until(b'\n', &mut line)).await;
        let sentence = read.and_then(|_| read_line::<String>(line.as_slice()));
        match sentence.doing(|| "cannot read what the first stage reports".into())? {
            None => Ok(()),
            Some(sentence) => Err(Error::new(Kind::Host, sentence)),
        }
    }

    /// Kills and reaps it.
    async fn end(mut self) {
        if let Some(child) = self.child.take()
            && tokio::time::timeout(LIMIT, child.end()).await.is_err()
        {
            log::warn!("process {} does not end", child.pid());
        }
    }
}

impl Drop for Started {
    fn drop(&mut self) {
        if let Some(child) = &self.child
            && let Err(error) = child.signal(libc::SIGKILL)
        {
            log::warn!("cannot end process {}: {error}", child.pid());
        }
    }
}

async fn within<T>(limit: Duration, done: impl Future<Output = io::Result<T>>) -> io::Result<T> {
    tokio::time::timeout(limit, done).await.unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into()))
}
