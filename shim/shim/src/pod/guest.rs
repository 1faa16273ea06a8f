//! A guest on its way into the engine: found, compiled, handed over, and reported ready or refused.

use std::fs::File;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream as StdStream;
use std::time::Duration;

use skiff_plan::{EnginePlan, Message, Refusal, Reply, send_message};
use tokio::io::{AsyncBufReadExt, BufReader};
use tokio::net::UnixStream;

use crate::error::{Context, Error, Kind, Result};
use crate::host::cache::{Cache, CacheError, digest_of};
use crate::host::compile::compile;
use crate::settings::Settings;

/// How long a loaded guest may take before it counts as started without a word: its own start function may run for ever.
const START_FUNCTION_LIMIT: Duration = Duration::from_secs(1);
/// A module that is larger than this is refused, in bytes.
const MODULE_SIZE_MAX: u64 = 1 << 30;

/// A module and its compiled code.
pub(crate) struct Module {
    name: String,
    wasm: File,
    digest: String,
    cache: Cache,
    code: File,
}

impl Module {
    /// Takes the compiled code of `wasm` from the cache, compiling it when it is not there. `expected` is the digest that
    /// the image gives for it. Blocks.
    ///
    /// # Errors
    /// `Invalid` with one sentence when the module is at fault.
    pub(crate) fn load(name: &str, wasm: File, expected: Option<&str>, settings: &Settings) -> Result<Self> {
        let (digest, size) = digest_of(&wasm).doing(|| format!("could not read `{name}`"))?;
        if size > MODULE_SIZE_MAX {
            return Err(Error::invalid(format!(
                "`{name}` has {size} bytes, more than the {MODULE_SIZE_MAX} that a module may have"
            )));
        }
        if let Some(expected) = expected
            && expected != digest
        {
            return Err(Error::invalid(format!(
                "the layer of `{name}` has the digest {digest}, but the image says {expected}"
            )));
        }
        let cache = Cache::open(&settings.cache_dir, settings.cache_max_bytes)
            .doing(|| "could not use the cache of compiled code".into())?;
        let code = compiled(&cache, &digest, &wasm, name)?;
        Ok(Self { name: name.into(), wasm, digest, cache, code })
    }

    /// Compiles once more: the engine has refused the code that the cache had.
    fn reload(&mut self) -> Result<()> {
        self.cache.discard(&self.digest).doing(|| "could not remove stale compiled code".into())?;
        self.code = compiled(&self.cache, &self.digest, &self.wasm, &self.name)?;
        Ok(())
    }
}

fn compiled(cache: &Cache, digest: &str, wasm: &File, name: &str) -> Result<File> {
    cache.get_or_compile(digest, |code| compile(wasm, name, code)).map_err(|error| match error {
        CacheError::Compile(error) => error,
        CacheError::Host(error) => Error::host(format!("could not keep the compiled code of `{name}`"), error),
    })
}

/// A guest whose engine waits to be started.
pub(crate) struct Guest {
    module: Module,
    plan: EnginePlan,
    account: File,
    memory_limits: Vec<File>,
    control: StdStream,
}

/// The two ends of a control socket: the shim's and the engine's.
pub(crate) fn control_socket() -> Result<(StdStream, OwnedFd)> {
    let (ours, theirs) = StdStream::pair().doing(|| "could not make a control socket".into())?;
    Ok((ours, theirs.into()))
}

impl Guest {
    /// Hands the guest over; the engine takes it up once it is started.
    pub(crate) fn hand_over(
        module: Module,
        plan: EnginePlan,
        account: File,
        memory_limits: Vec<File>,
        control: StdStream,
    ) -> Result<Self> {
        let guest = Self { module, plan, account, memory_limits, control };
        guest.send()?;
        Ok(guest)
    }

    fn send(&self) -> Result<()> {
        let passed = |file: &File| file.try_clone().doing(|| "could not pass a file to the engine".into());
        let message = Message {
            plan: self.plan.clone(),
            code: passed(&self.module.code)?,
            account: passed(&self.account)?,
            memory_limits: self.memory_limits.iter().map(passed).collect::<Result<_>>()?,
        };
        send_message(&self.control, &message).doing(|| "could not send the plan to the engine".into())
    }

    /// Waits until the engine says that the guest is about to run.
    ///
    /// # Errors
    /// `Invalid` with the engine's sentence when it refuses the guest.
    pub(crate) async fn wait_until_ready(mut self) -> Result<()> {
        let mut replies = Replies::of(&self.control)?;
        let mut reply = replies.next().await?;
        if let Reply::Refused(Refusal::Incompatible(why)) = reply {
            log::info!("`{}` is compiled again: {why}", self.module.name);
            self =
                tokio::task::spawn_blocking(move || self.recompile()).await.doing(|| "could not compile".into())??;
            reply = replies.next().await?;
        }
        replies.outcome(reply, START_FUNCTION_LIMIT).await
    }

    fn recompile(mut self) -> Result<Self> {
        self.module.reload()?;
        self.send()?;
        Ok(self)
    }
}

/// What the engine says, line by line.
struct Replies(BufReader<UnixStream>);

impl Replies {
    fn of(control: &StdStream) -> Result<Self> {
        let socket = control.try_clone().doing(|| "could not read from the engine".into())?;
        socket.set_nonblocking(true).doing(|| "could not read from the engine".into())?;
        let socket = UnixStream::from_std(socket).doing(|| "could not read from the engine".into())?;
        Ok(Self(BufReader::new(socket)))
    }

    /// Waits for the next one, however long a loaded node lets the engine wait: one that dies closes the socket.
    async fn next(&mut self) -> Result<Reply> {
        let mut line = String::new();
        match self.0.read_line(&mut line).await {
            Ok(0) => Err(Error::new(Kind::Host, "the engine ended before the guest was ready")),
            Ok(_) => Reply::parse(&line).doing(|| "the engine's answer was not understood".into()),
            Err(error) => Err(Error::host("could not read from the engine", error)),
        }
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
    use super::*;

    const LONG: Duration = Duration::from_secs(60);

    /// What Start answers when the engine says this, late, and lives on.
    fn outcome(limit: Duration, replies: &[Reply]) -> std::result::Result<(), String> {
        let (shim, mut engine) = StdStream::pair().unwrap();
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        let outcome = runtime.block_on(async {
            let mut read = Replies::of(&shim)?;
            let engine = async {
                // The shim reads by now.
                tokio::task::yield_now().await;
                replies.iter().for_each(|reply| reply.write_to(&mut engine).unwrap());
            };
            let (first, ()) = tokio::join!(read.next(), engine);
            read.outcome(first?, limit).await
        });
        outcome.map_err(|error| error.to_string())
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
        let (shim, engine) = StdStream::pair().unwrap();
        drop(engine);
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        let reply = runtime.block_on(async { Replies::of(&shim)?.next().await });
        assert_eq!(reply.unwrap_err().to_string(), "the engine ended before the guest was ready");
    }
}
