//! What an engine is to do, on its way into it: handed over, and reported ready or refused.

use std::fs::File;
use std::io::{self, ErrorKind, pipe};
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::time::Duration;

use skiff_protocol::{EnginePlan, MemoryLimit, Message, REPLY_BYTES_MAX, Refusal, Reply, let_run, send_message};
use tokio::io::{AsyncBufReadExt, AsyncRead, AsyncReadExt, BufReader};
use tokio::net::unix::pipe::Receiver;
use tokio_util::sync::CancellationToken;

use crate::code::Compiled;
use crate::error::{Context, Error, Kind, Result};
use crate::host::process::Child;

/// How long a loaded guest may take before it counts as started without a word: its own start function may run for ever.
const START_FUNCTION_LIMIT: Duration = Duration::from_secs(1);
/// How long a reply may take to arrive once it has begun.
const REPLY_LIMIT: Duration = Duration::from_secs(1);

/// What an engine is given.
pub(super) struct Given {
    /// The code of its guest, unless it is to run none.
    pub(super) code: Option<Compiled>,
    pub(super) plan: EnginePlan,
    pub(super) account: Arc<File>,
    pub(super) memory_limits: Vec<MemoryLimit>,
    /// The call socket, or a connection to it.
    pub(super) calls: Option<File>,
}

/// What was given to an engine that waits to be started.
pub(super) struct Handover {
    given: Given,
    control: UnixStream,
    replies: Replies<BufReader<Receiver>>,
}

/// The two ends of a control socket: the shim's and the engine's.
pub(super) fn control_socket() -> Result<(UnixStream, OwnedFd)> {
    let (ours, theirs) = UnixStream::pair().doing(|| "cannot make a control socket".into())?;
    Ok((ours, theirs.into()))
}

impl Handover {
    /// Hands over what is `given`; the engine reads it once it is executed, and goes on until it has loaded the guest.
    pub(super) fn send(given: Given, control: UnixStream) -> Result<Self> {
        let replies = send(&given, &control)?;
        Ok(Self { given, control, replies })
    }

    /// Lets the engine, which is `process`, run the guest, and waits until it says that it is about to, or has run it to its end. It may take up
    /// to `limit` for its first answer.
    ///
    /// # Errors
    /// `Invalid` with the engine's sentence when it refuses the guest; the host's if it does not answer.
    pub(super) async fn wait_until_ready(self, process: &Child, limit: Duration) -> Result<()> {
        // Its end closes the pipe, unless somebody else has got hold of it.
        let gone = async {
            process.ended().await;
            tokio::time::sleep(REPLY_LIMIT).await;
        };
        let (reply, control, mut replies) = tokio::select! {
            first = self.first_reply(process, limit) => first?,
            () = gone => return Err(Error::new(Kind::Host, ENDED)),
        };
        if reply == Reply::Loaded {
            // One that has ended, or has refused the guest meanwhile, does not listen. Its next reply says so.
            let _listens = let_run(&control);
        }
        drop(control);
        replies.outcome(reply, START_FUNCTION_LIMIT).await
    }

    /// The engine's first reply to code that it can load, the control socket, and what its further replies come through.
    async fn first_reply(
        mut self,
        process: &Child,
        limit: Duration,
    ) -> Result<(Reply, UnixStream, Replies<BufReader<Receiver>>)> {
        let mut reply = self.replies.next_within(limit).await?;
        if let Some(Reply::Refused(Refusal::Incompatible(why))) = reply {
            log::info!("compiling `{}` again: {why}", self.given.plan.module);
            self = self.recompiled(process).await?;
            reply = self.replies.next_within(limit).await?;
        }
        let reply = reply.ok_or_else(|| Error::new(Kind::Host, ENDED))?;
        Ok((reply, self.control, self.replies))
    }

    /// Compiles the module again and sends it; not for an engine that has ended meanwhile.
    async fn recompiled(mut self, process: &Child) -> Result<Self> {
        let unwanted = CancellationToken::new();
        let _unwanted_when_dropped = unwanted.clone().drop_guard();
        let again = tokio::task::spawn_blocking(move || match &mut self.given.code {
            Some(code) => code.recompile(&unwanted).map(|()| self),
            None => Err(Error::new(Kind::Host, "the engine refused code that it was not given")),
        });
        self = tokio::select! {
            again = again => again.doing(|| "cannot compile".into())??,
            () = process.ended() => return Err(Error::new(Kind::Host, ENDED)),
        };
        // From here on the engine may well end: it runs the guest.
        self.replies = send(&self.given, &self.control)?;
        Ok(self)
    }
}

/// Sends what the engine needs, with the way for its replies.
fn send(given: &Given, control: &UnixStream) -> Result<Replies<BufReader<Receiver>>> {
    let passed = |file: &File| file.try_clone().doing(|| "cannot pass a file to the engine".into());
    let passed_limit =
        |known: &MemoryLimit| Ok(MemoryLimit { limit: passed(&known.limit)?, stat: passed(&known.stat)? });
    let (ours, theirs) = pipe().doing(|| "cannot make a pipe for the engine".into())?;
    let message = Message {
        plan: given.plan.clone(),
        code: given.code.as_ref().map(|code| passed(code.file())).transpose()?,
        calls: given.calls.as_ref().map(passed).transpose()?,
        account: passed(&given.account)?,
        replies: OwnedFd::from(theirs).into(),
        memory_limits: given.memory_limits.iter().map(passed_limit).collect::<Result<_>>()?,
    };
    send_message(control, &message).doing(|| "cannot send the plan to the engine".into())?;
    let ours = Receiver::from_owned_fd(ours.into()).doing(|| "cannot read from the engine".into())?;
    Ok(Replies(BufReader::new(ours)))
}

const ENDED: &str = "the engine ended before it had loaded the guest";

/// What the engine says, line by line. Whoever has taken the engine over may say anything: a line is bounded, in length and
/// in time.
struct Replies<R>(R);

impl<R: AsyncBufReadExt + AsyncRead + Unpin> Replies<R> {
    /// Waits for the next one, however long a loaded node lets the engine wait: one that dies closes the pipe, and there is
    /// none.
    async fn next(&mut self) -> Result<Option<Reply>> {
        let failed = |error| Error::host("cannot read from the engine", error);
        if self.0.fill_buf().await.map_err(failed)?.is_empty() {
            return Ok(None);
        }
        let mut line = Vec::new();
        let mut bounded = (&mut self.0).take(REPLY_BYTES_MAX as u64);
        let read = tokio::time::timeout(REPLY_LIMIT, bounded.read_until(b'\n', &mut line)).await;
        read.unwrap_or_else(|_| Err(ErrorKind::TimedOut.into())).map_err(failed)?;
        let text = str::from_utf8(&line).map_err(io::Error::other);
        text.and_then(Reply::parse).map(Some).doing(|| "cannot parse the engine's reply".into())
    }

    /// The same, but for no longer than `limit`.
    async fn next_within(&mut self, limit: Duration) -> Result<Option<Reply>> {
        let silent = || format!("the engine has not answered within {} s", limit.as_secs());
        let next = tokio::time::timeout(limit, self.next()).await;
        next.unwrap_or_else(|_| Err(Error::new(Kind::Host, silent())))
    }

    /// What became of the guest after `reply`: it is started, or still in its start function after `limit`, or ended there, or
    /// refused.
    async fn outcome(&mut self, reply: Reply, limit: Duration) -> Result<()> {
        let reply = match reply {
            Reply::Loaded => match tokio::time::timeout(limit, self.next()).await {
                Err(_still_in_its_start_function) => return Ok(()),
                Ok(reply) => match reply? {
                    // Its run time, a signal or the kernel ended the engine in the start function. Its exit code says which.
                    None => return Ok(()),
                    Some(reply) => reply,
                },
            },
            reply @ (Reply::Ready | Reply::Refused(_)) => reply,
        };
        match reply {
            Reply::Ready => Ok(()),
            Reply::Refused(refusal) => Err(refused(refusal)),
            Reply::Loaded => Err(Error::new(Kind::Host, "the engine loaded the guest twice")),
        }
    }
}

fn refused(refusal: Refusal) -> Error {
    match refusal {
        Refusal::Guest(sentence) => Error::invalid(sentence),
        Refusal::Host(sentence) => Error::new(Kind::Host, sentence),
        Refusal::Incompatible(sentence) => {
            Error::new(Kind::Host, format!("freshly compiled code was refused: {sentence}"))
        }
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use super::*;

    const LONG: Duration = Duration::from_secs(60);

    fn runtime() -> tokio::runtime::Runtime {
        tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap()
    }

    /// The engine's end of a pipe, and the shim's.
    fn replies() -> (io::PipeWriter, Replies<BufReader<Receiver>>) {
        let (ours, theirs) = pipe().unwrap();
        (theirs, Replies(BufReader::new(Receiver::from_owned_fd(ours.into()).unwrap())))
    }

    /// What Start returns when the engine says this, late, and lives on or ends.
    fn outcome(limit: Duration, said: &[Reply], is_alive: bool) -> std::result::Result<(), String> {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        let outcome = runtime.block_on(async {
            let (mut engine, mut read) = replies();
            let engine = async {
                // The shim reads by now.
                tokio::task::yield_now().await;
                said.iter().for_each(|reply| reply.write_to(&mut engine).unwrap());
                is_alive.then_some(engine)
            };
            let (first, _engine) = tokio::join!(read.next(), engine);
            read.outcome(first?.expect("a reply"), limit).await
        });
        outcome.map_err(|error| error.to_string())
    }

    /// What the shim makes of these bytes, after which the engine says no more and lives on, or ends.
    fn next(said: &[u8], is_alive: bool) -> std::result::Result<Option<Reply>, String> {
        runtime().block_on(async {
            let (mut engine, mut read) = replies();
            // As much as the pipe holds.
            engine.write_all(said).unwrap();
            let engine = is_alive.then_some(engine);
            let reply = read.next().await;
            drop(engine);
            reply.map_err(|error| crate::error::chain(&error))
        })
    }

    #[test]
    fn an_engine_is_waited_for_until_it_has_loaded_the_guest() {
        let refused = || Reply::Refused(Refusal::Guest("no `_start`".into()));
        assert_eq!(outcome(Duration::ZERO, &[refused()], true), Err("no `_start`".into()));
        assert_eq!(outcome(LONG, &[Reply::Loaded, refused()], true), Err("no `_start`".into()));
        assert_eq!(outcome(LONG, &[Reply::Loaded, refused()], false), Err("no `_start`".into()));
        assert_eq!(outcome(LONG, &[Reply::Loaded, Reply::Ready], true), Ok(()));
    }

    #[test]
    fn a_loaded_guest_may_stay_in_its_start_function() {
        assert_eq!(outcome(Duration::ZERO, &[Reply::Loaded], true), Ok(()));
    }

    #[test]
    fn a_loaded_guest_may_end_in_its_start_function() {
        assert_eq!(outcome(LONG, &[Reply::Loaded], false), Ok(()));
    }

    #[test]
    fn an_engine_that_dies_says_nothing() {
        assert_eq!(next(b"", false), Ok(None));
    }

    #[test]
    fn an_engine_that_is_stopped_is_waited_for_as_long_as_it_may_take() {
        runtime().block_on(async {
            let (_engine, mut read) = replies();
            let error = read.next_within(Duration::from_millis(1)).await.unwrap_err();
            assert_eq!(error.to_string(), "the engine has not answered within 0 s");
        });
    }

    #[test]
    fn what_an_engine_says_is_bounded_in_length_and_time() {
        assert_eq!(next(b"\"ready\"\n", true), Ok(Some(Reply::Ready)));
        assert!(next(b"\"rea", true).unwrap_err().contains("timed out"), "a line that does not end");
        assert!(next(b"\"rea", false).unwrap_err().contains("cannot parse"), "a line that is cut");
        assert!(next(b"\xff\n", true).unwrap_err().contains("cannot parse"), "no text");
        let endless = vec![b'x'; REPLY_BYTES_MAX];
        assert!(next(&endless, true).unwrap_err().contains("cannot parse"), "a line that is longer than one may be");
    }
}
