//! A guest on its way into the engine: handed over, and reported ready or refused.

use std::fs::File;
use std::io::{self, ErrorKind, pipe};
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::time::Duration;

use skiff_protocol::{EnginePlan, Message, REPLY_BYTES_MAX, Refusal, Reply, send_message};
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

/// A guest whose engine waits to be started.
pub(super) struct Handover {
    code: Compiled,
    plan: EnginePlan,
    account: Arc<File>,
    memory_limits: Vec<File>,
    control: UnixStream,
    replies: Replies<BufReader<Receiver>>,
}

/// The two ends of a control socket: the shim's and the engine's.
pub(super) fn control_socket() -> Result<(UnixStream, OwnedFd)> {
    let (ours, theirs) = UnixStream::pair().doing(|| "cannot make a control socket".into())?;
    Ok((ours, theirs.into()))
}

impl Handover {
    /// Hands the guest over; the engine reads it once it is started.
    pub(super) fn send(
        code: Compiled,
        plan: EnginePlan,
        account: Arc<File>,
        memory_limits: Vec<File>,
        control: UnixStream,
    ) -> Result<Self> {
        let replies = send(&code, &plan, &account, &memory_limits, &control)?;
        Ok(Self { code, plan, account, memory_limits, control, replies })
    }

    /// Waits until the engine, which is `process`, says that the guest is about to run.
    ///
    /// # Errors
    /// `Invalid` with the engine's sentence when it refuses the guest.
    pub(super) async fn wait_until_ready(self, process: &Child) -> Result<()> {
        // Its end closes the pipe, unless somebody else has got hold of it.
        let gone = async {
            process.ended().await;
            tokio::time::sleep(REPLY_LIMIT).await;
        };
        tokio::select! {
            ready = self.ready(process) => ready,
            () = gone => Err(Error::new(Kind::Host, ENDED)),
        }
    }

    async fn ready(mut self, process: &Child) -> Result<()> {
        let mut reply = self.replies.next().await?;
        if let Reply::Refused(Refusal::Incompatible(why)) = reply {
            log::info!("compiling `{}` again: {why}", self.code.name());
            self = self.recompiled(process).await?;
            reply = self.replies.next().await?;
        }
        self.replies.outcome(reply, START_FUNCTION_LIMIT).await
    }

    /// Compiles the module again and sends it; not for an engine that has ended meanwhile.
    async fn recompiled(mut self, process: &Child) -> Result<Self> {
        let unwanted = CancellationToken::new();
        let _unwanted_when_dropped = unwanted.clone().drop_guard();
        let again = tokio::task::spawn_blocking(move || self.code.recompile(&unwanted).map(|()| self));
        self = tokio::select! {
            again = again => again.doing(|| "cannot compile".into())??,
            () = process.ended() => return Err(Error::new(Kind::Host, ENDED)),
        };
        // From here on the engine may well end: it runs the guest.
        self.replies = send(&self.code, &self.plan, &self.account, &self.memory_limits, &self.control)?;
        Ok(self)
    }
}

/// Sends what the engine needs, with the way for its replies.
fn send(
    code: &Compiled,
    plan: &EnginePlan,
    account: &File,
    memory_limits: &[File],
    control: &UnixStream,
) -> Result<Replies<BufReader<Receiver>>> {
    let passed = |file: &File| file.try_clone().doing(|| "cannot pass a file to the engine".into());
    let (ours, theirs) = pipe().doing(|| "cannot make a pipe for the engine".into())?;
    let message = Message {
        plan: plan.clone(),
        code: passed(code.file())?,
        account: passed(account)?,
        replies: OwnedFd::from(theirs).into(),
        memory_limits: memory_limits.iter().map(passed).collect::<Result<_>>()?,
    };
    send_message(control, &message).doing(|| "cannot send the plan to the engine".into())?;
    let ours = Receiver::from_owned_fd(ours.into()).doing(|| "cannot read from the engine".into())?;
    Ok(Replies(BufReader::new(ours)))
}

const ENDED: &str = "the engine ended before the guest was ready";

/// What the engine says, line by line. Whoever has taken the engine over may say anything: a line is bounded, in length and
/// in time.
struct Replies<R>(R);

impl<R: AsyncBufReadExt + AsyncRead + Unpin> Replies<R> {
    /// Waits for the next one, however long a loaded node lets the engine wait: one that dies closes the pipe.
    async fn next(&mut self) -> Result<Reply> {
        let failed = |error| Error::host("cannot read from the engine", error);
        if self.0.fill_buf().await.map_err(failed)?.is_empty() {
            return Err(Error::new(Kind::Host, ENDED));
        }
        let mut line = Vec::new();
        let mut bounded = (&mut self.0).take(REPLY_BYTES_MAX as u64);
        let read = tokio::time::timeout(REPLY_LIMIT, bounded.read_until(b'\n', &mut line)).await;
        read.unwrap_or_else(|_| Err(ErrorKind::TimedOut.into())).map_err(failed)?;
        let text = str::from_utf8(&line).map_err(io::Error::other);
        text.and_then(Reply::parse).doing(|| "cannot parse the engine's reply".into())
    }

    /// What became of the guest after `reply`: it is started, or still in its start function after `limit`, or refused.
    async fn outcome(&mut self, reply: Reply, limit: Duration) -> Result<()> {
        let reply = match reply {
            Reply::Loaded => match tokio::time::timeout(limit, self.next()).await {
                Err(_still_in_its_start_function) => return Ok(()),
                Ok(reply) => reply?,
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

    /// What Start returns when the engine says this, late, and lives on.
    fn outcome(limit: Duration, said: &[Reply]) -> std::result::Result<(), String> {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        let outcome = runtime.block_on(async {
            let (mut engine, mut read) = replies();
            let engine = async {
                // The shim reads by now.
                tokio::task::yield_now().await;
                said.iter().for_each(|reply| reply.write_to(&mut engine).unwrap());
                engine
            };
            let (first, _engine) = tokio::join!(read.next(), engine);
            read.outcome(first?, limit).await
        });
        outcome.map_err(|error| error.to_string())
    }

    /// What the shim makes of these bytes, after which the engine says no more and lives on, or ends.
    fn next(said: &[u8], is_alive: bool) -> std::result::Result<Reply, String> {
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
        assert_eq!(outcome(Duration::ZERO, &[refused()]), Err("no `_start`".into()));
        assert_eq!(outcome(LONG, &[Reply::Loaded, refused()]), Err("no `_start`".into()));
        assert_eq!(outcome(LONG, &[Reply::Loaded, Reply::Ready]), Ok(()));
    }

    #[test]
    fn a_loaded_guest_may_stay_in_its_start_function() {
        assert_eq!(outcome(Duration::ZERO, &[Reply::Loaded]), Ok(()));
    }

    #[test]
    fn an_engine_that_dies_is_no_started_guest() {
        assert_eq!(next(b"", false), Err(ENDED.into()));
    }

    #[test]
    fn what_an_engine_says_is_bounded_in_length_and_time() {
        assert_eq!(next(b"\"ready\"\n", true), Ok(Reply::Ready));
        assert!(next(b"\"rea", true).unwrap_err().contains("timed out"), "a line that does not end");
        assert!(next(b"\"rea", false).unwrap_err().contains("cannot parse"), "a line that is cut");
        assert!(next(b"\xff\n", true).unwrap_err().contains("cannot parse"), "no text");
        let endless = vec![b'x'; REPLY_BYTES_MAX];
        assert!(next(&endless, true).unwrap_err().contains("cannot parse"), "a line that is longer than one may be");
    }
}
