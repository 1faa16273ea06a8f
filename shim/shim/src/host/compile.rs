//! Compiling: one `skiff compile` process, confined, per module that the cache does not hold yet.

use std::cell::OnceCell;
use std::fs::File;
use std::future;
use std::io::{self, ErrorKind, Seek};
use std::process::{ExitStatus, Stdio};
use std::sync::LazyLock;
use std::time::Duration;

use nix::errno::Errno;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use skiff_protocol::Fault;
use skiff_protocol::names::SKIFF;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::process::{Child, ChildStderr, ChildStdin, Command};
use tokio::sync::{mpsc, watch};
use tokio_util::sync::CancellationToken;

use crate::error::{Context, Error, Kind, Result};
use crate::host::cache::{Failure, Lasting};
use crate::host::engine::beside_the_shim;
use crate::host::module::{Digester, Source};
use crate::host::process::{OomScore, wait_within, work_for_a_pod};

/// Replaces the module's name in a remembered failure, so that another tenant with the same module does not learn this
/// tenant's names.
pub(crate) const NAME: &str = "\0";
/// How long reading the whole module again may take: meanwhile nobody else can use this pod's slot or compile the same
/// module.
const FEED_LIMIT: Duration = Duration::from_secs(30);
/// Longer than the compiler's own limit.
const LIMIT: Duration = Duration::from_secs(660);
/// How long the compiler's supervisor may take to end the compiler and remove its cgroup.
const END_WITHIN: Duration = Duration::from_secs(5);
/// The most that is read from the compiler's stderr, in bytes.
const SAID_BYTES_MAX: u64 = 64 << 10;

/// Whether a compilation, with both of its tries, is still wanted.
pub(crate) struct Want<'a> {
    /// Cancelled when the container is no longer wanted.
    unwanted: &'a CancellationToken,
    /// Whether others wait for the same code.
    is_awaited: &'a dyn Fn() -> bool,
    /// Set once the compilation goes on only for others, until their code is in the cache.
    for_others: OnceCell<ForOthers>,
}

/// How the compiler is run.
#[derive(Clone, Copy)]
struct Effort {
    memory_bytes: u64,
    /// Whether it has only one thread.
    alone: bool,
}

impl<'a> Want<'a> {
    pub(crate) fn new(unwanted: &'a CancellationToken, is_awaited: &'a dyn Fn() -> bool) -> Self {
        Self { unwanted, is_awaited, for_others: OnceCell::new() }
    }

    /// Waits until the container is no longer wanted: in vain if that was noticed, and the compilation goes on for others.
    async fn ended(&self) {
        if self.for_others.get().is_some() {
            future::pending::<()>().await;
        }
        self.unwanted.cancelled().await;
    }
}

/// How many compilations go on only for others.
static FOR_OTHERS: LazyLock<watch::Sender<usize>> = LazyLock::new(watch::Sender::default);

/// One compilation that goes on only for others.
struct ForOthers;

impl ForOthers {
    fn begin() -> Self {
        FOR_OTHERS.send_modify(|count| *count += 1);
        Self
    }
}

impl Drop for ForOthers {
    fn drop(&mut self) {
        FOR_OTHERS.send_modify(|count| *count -= 1);
    }
}

/// Waits until no compilation for others is left, at most as long as the two tries of one may take.
pub(crate) async fn finish_for_others() {
    let mut count = FOR_OTHERS.subscribe();
    if tokio::time::timeout(2 * LIMIT, count.wait_for(|count| *count == 0)).await.is_err() {
        log::warn!("a compilation for another pod has not ended");
    }
}

/// Compiles the module of `source` (named `name` in messages) into `code` and returns the sha256 of the bytes that it
/// compiled. Blocks, in the context of a runtime, until the compiler ends or nobody wants the code any more. A module that takes
/// more than `memory_bytes` with a thread for each processor is tried once more with one thread, so that a node with many
/// processors compiles what one with few does.
///
/// # Errors
/// `Invalid` with the compiler's sentence when the module is at fault or does not fit the compiler's limits.
pub(crate) fn compile(
    source: &Source,
    name: &str,
    code: &File,
    memory_bytes: u64,
    want: &Want<'_>,
) -> std::result::Result<String, Failure<Error>> {
    let passing = |error| Failure { error, lasting: None };
    let try_with = |effort| tokio::runtime::Handle::current().block_on(run(source, name, code, effort, want));
    let mut ran = try_with(Effort { memory_bytes, alone: false }).map_err(passing)?;
    if Fault::of_exit(ran.1.code()) == Some(Fault::Memory) {
        log::info!(step = "compile"; "compiling `{name}` again with one thread: it took more memory than it may");
        let emptied = empty(code).doing(|| "cannot empty the file for the code".into());
        emptied.map_err(passing)?;
        ran = try_with(Effort { memory_bytes, alone: true }).map_err(passing)?;
    }
    let (digest, status, said) = ran;
    if status.success() {
        let cut = || passing(Error::new(Kind::Host, format!("the compiler did not read all of `{name}`")));
        return digest.ok_or_else(cut);
    }
    let sentence = said.lines().last().unwrap_or_default().trim().trim_start_matches("skiff: ");
    let sentence =
        if sentence.is_empty() { format!("compiling `{name}` ended with {status}") } else { sentence.to_owned() };
    Err(match Fault::of_exit(status.code()) {
        None | Some(Fault::Host) => {
            passing(Error::host(format!("cannot compile `{name}`"), io::Error::other(sentence)))
        }
        Some(fault @ (Fault::Guest | Fault::Limit | Fault::Memory)) => {
            let memory_bytes = (fault == Fault::Memory).then_some(memory_bytes);
            let remembered = sentence.replace(&format!("`{name}`"), NAME);
            let lasting = digest.map(|digest| Lasting { digest, sentence: remembered, memory_bytes });
            Failure { error: Error::invalid(sentence), lasting }
        }
    })
}

/// Forgets what a compiler wrote before it failed: the next one shares the file's offset with it.
fn empty(mut code: &File) -> io::Result<()> {
    code.set_len(0)?;
    code.rewind()
}

/// The digest of the module, if the compiler was given all of it; how the compiler ended; and what it wrote to stderr.
type Ran = (Option<String>, ExitStatus, String);

async fn run(source: &Source, name: &str, code: &File, effort: Effort, want: &Want<'_>) -> Result<Ran> {
    let mut child = spawn(name, code, effort)?;
    let (stdin, stderr) = (child.stdin.take(), child.stderr.take());
    let fed = tokio::select! {
        fed = tokio::time::timeout(FEED_LIMIT, feed(source, stdin)) => fed.unwrap_or_else(|_| Err(too_slow())),
        // The compiler ended early, and its exit code says why. Without this wait it would be reaped as an orphan.
        _ended = child.wait() => Ok(None),
        () = want.ended() => Err(io::Error::other("its container is no longer wanted")),
    };
    let digest = match fed {
        Ok(fed) => fed.map(|(digest, bytes)| {
            let megabytes = bytes.div_ceil(1_000_000);
            log::info!(step = "compile"; "compiling `{name}`, {megabytes} MB: once per node");
            digest
        }),
        Err(error) => {
            end(&mut child).await.doing(|| "cannot end a compiler".into())?;
            return Err(Error::host(format!("cannot read `{name}`"), error));
        }
    };
    let ended = wait_while_wanted(&mut child, want).await.doing(|| format!("cannot compile `{name}`"))?;
    let Some(status) = ended else {
        end(&mut child).await.doing(|| "cannot end a compiler".into())?;
        return Err(Error::new(
            Kind::Conflict,
            format!("stopped compiling `{name}`: its container is no longer wanted"),
        ));
    };
    Ok((digest, status, said(stderr).await))
}

fn too_slow() -> io::Error {
    io::Error::new(ErrorKind::TimedOut, format!("reading it took more than {} s", FEED_LIMIT.as_secs()))
}

/// Waits for the compiler, which has its whole input. Returns `None` when nobody wants its code any more.
async fn wait_while_wanted(child: &mut Child, want: &Want<'_>) -> io::Result<Option<ExitStatus>> {
    tokio::select! {
        ended = wait_within(child, LIMIT) => return ended.map(Some),
        () = want.ended() => {}
    }
    if !(want.is_awaited)() {
        return Ok(None);
    }
    want.for_others.get_or_init(ForOthers::begin);
    wait_within(child, LIMIT).await.map(Some)
}

fn spawn(name: &str, code: &File, effort: Effort) -> Result<Child> {
    let program = beside_the_shim(SKIFF).doing(|| "cannot find the compiler".into())?;
    let mut command = Command::new(&program);
    // On SIGTERM the compiler's supervisor ends the compiler and removes its cgroup.
    work_for_a_pod(command.as_std_mut(), libc::SIGTERM, OomScore::First);
    let code = code.try_clone().doing(|| "cannot pass a file to the compiler".into())?;
    let memory_bytes = effort.memory_bytes.to_string();
    command.args([
        "compile",
        "--confine",
        "--cgroup",
        "skiff-compile",
        "--name",
        name,
        "--memory-bytes",
        &memory_bytes,
    ]);
    if effort.alone {
        command.args(["--threads", "1"]);
    }
    command.stdin(Stdio::piped()).stdout(code).stderr(Stdio::piped()).kill_on_drop(true);
    command.spawn().doing(|| format!("cannot run the compiler `{}`", program.display()))
}

/// Writes the module to the compiler and returns the digest of what was written, and its size in bytes; `None` when it did not
/// read everything.
async fn feed(source: &Source, stdin: Option<ChildStdin>) -> io::Result<Option<(String, u64)>> {
    let mut stdin = stdin.ok_or_else(|| io::Error::other("the compiler has no input"))?;
    let read = source.pieces()?;
    let (sender, mut pieces) = mpsc::channel(1);
    // The reader does not run on the runtime.
    drop(tokio::task::spawn_blocking(move || read.iter().all(|piece| sender.blocking_send(piece).is_ok())));
    let mut digester = Digester::default();
    let mut bytes = 0;
    while let Some(piece) = pieces.recv().await {
        let piece = piece?;
        match stdin.write_all(&piece).await {
            // The compiler has ended, and its exit code says why.
            Err(error) if error.kind() == ErrorKind::BrokenPipe => return Ok(None),
            written => written?,
        }
        digester.add(&piece);
        bytes += piece.len() as u64;
    }
    Ok(Some((digester.finish(), bytes)))
}

async fn said(stderr: Option<ChildStderr>) -> String {
    let mut said = Vec::new();
    if let Some(stderr) = stderr
        && let Err(error) = stderr.take(SAID_BYTES_MAX).read_to_end(&mut said).await
    {
        log::debug!("cannot read the compiler's messages: {error}");
    }
    String::from_utf8_lossy(&said).into_owned()
}

/// Asks the supervisor to end the compiler, and kills it if it does not.
async fn end(child: &mut Child) -> io::Result<()> {
    if let Some(pid) = child.id().and_then(|pid| i32::try_from(pid).ok()) {
        match kill(Pid::from_raw(pid), Signal::SIGTERM) {
            Ok(()) | Err(Errno::ESRCH) => {}
            Err(error) => return Err(error.into()),
        }
    }
    match wait_within(child, END_WITHIN).await {
        Err(error) if error.kind() != ErrorKind::TimedOut => Err(error),
        _ended => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;
    use std::io::{Read, Write};

    use super::*;

    #[test]
    fn what_a_failed_compiler_wrote_is_forgotten() {
        let mut code = tempfile::tempfile().unwrap();
        let written = code.try_clone().and_then(|mut code| code.write_all(b"half of the code"));
        written.and_then(|()| empty(&code)).unwrap();
        code.try_clone().unwrap().write_all(b"code").unwrap();
        code.rewind().unwrap();
        let mut text = String::new();
        code.read_to_string(&mut text).unwrap();
        assert_eq!(text, "code");
    }

    #[tokio::test]
    async fn a_compilation_for_others_does_not_end_with_its_container() {
        let unwanted = CancellationToken::new();
        unwanted.cancel();
        let mut child = Command::new("cat").stdin(Stdio::piped()).spawn().unwrap();
        // The first try does not end before it is noticed that the container is gone.
        let input = Cell::new(child.stdin.take());
        let is_awaited = || input.take().is_some();
        let want = Want::new(&unwanted, &is_awaited);
        want.ended().await;
        assert!(wait_while_wanted(&mut child, &want).await.unwrap().unwrap().success());
        // The second try.
        tokio::select! {
            biased;
            () = want.ended() => panic!("it was given up"),
            () = future::ready(()) => {}
        }
        let count = FOR_OTHERS.subscribe();
        assert_eq!(*count.borrow(), 1);
        drop(want);
        assert_eq!(*count.borrow(), 0);
    }
}
