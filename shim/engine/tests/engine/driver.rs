//! Runs the engine as the shim does: a socket pair, a plan, code that `skiff compile` made, and the reply.

use std::collections::HashMap;
use std::fs::File;
use std::io::{BufRead, BufReader, Read, Write};
use std::os::fd::AsRawFd;
use std::os::unix::net::UnixStream;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::{Arc, Mutex, OnceLock};
use std::time::{Duration, Instant};

use skiff_plan::{CONTROL_FD, EnginePlan, Limits, Message, Preopen, Refusal, Reply, send_message};

const ENGINE: &str = env!("CARGO_BIN_EXE_skiff-engine");
/// Longer than anything takes on a busy machine.
const PATIENCE: Duration = Duration::from_secs(60);

/// A container to be: what the shim would have made of a pod.
pub(crate) struct Guest {
    code: PathBuf,
    plan: EnginePlan,
    environment: Vec<(String, String)>,
    limit: Option<PathBuf>,
    account: File,
    stdin: Stdio,
    stdout: Stdio,
    stderr: Stdio,
}

/// A started engine.
pub(crate) struct Running {
    pub(crate) child: Child,
    pub(crate) socket: UnixStream,
    replies: BufReader<UnixStream>,
    stdout: Option<Collected>,
    stderr: Option<Collected>,
}

/// An engine that has ended.
#[derive(Debug)]
pub(crate) struct Ended {
    pub(crate) code: i32,
    pub(crate) stdout: String,
    pub(crate) stderr: String,
}

impl Guest {
    /// A guest of `test/guests`, by its name.
    pub(crate) fn named(name: &str) -> Self {
        Self::compiled(name, &std::fs::read(guests_folder(name).join(format!("{name}.wasm"))).unwrap())
    }

    /// A guest in the text format.
    pub(crate) fn text(text: &str) -> Self {
        Self::compiled("guest", &wat::parse_str(text).unwrap())
    }

    fn compiled(name: &str, wasm: &[u8]) -> Self {
        let code = compile(wasm).unwrap_or_else(|| panic!("`skiff compile` failed for `{name}`"));
        Self::of_code(&format!("/app/{name}.wasm"), &code)
    }

    /// Whether a module in the text format compiles and starts.
    pub(crate) fn starts(text: &str) -> bool {
        let code = compile(&wat::parse_str(text).unwrap());
        code.is_some_and(|code| Self::of_code("/app/guest.wasm", &code).start().reply() == Reply::Ready)
    }

    /// A guest of a file that is taken for compiled code.
    pub(crate) fn of_code(module: &str, code: &Path) -> Self {
        let args = vec![module.to_owned()];
        Self {
            code: code.to_owned(),
            plan: EnginePlan { module: module.to_owned(), args, cwd: "/".to_owned(), ..EnginePlan::default() },
            environment: Vec::new(),
            limit: None,
            account: tempfile::tempfile().unwrap(),
            stdin: Stdio::null(),
            stdout: Stdio::piped(),
            stderr: Stdio::piped(),
        }
    }

    pub(crate) fn args(mut self, args: &[&str]) -> Self {
        self.plan.args.extend(args.iter().map(|arg| (*arg).to_owned()));
        self
    }

    pub(crate) fn function(mut self, name: &str) -> Self {
        self.plan.function = Some(name.to_owned());
        self
    }

    pub(crate) fn cwd(mut self, cwd: &str) -> Self {
        cwd.clone_into(&mut self.plan.cwd);
        self
    }

    pub(crate) fn env(mut self, name: &str, value: &str) -> Self {
        self.environment.push((name.to_owned(), value.to_owned()));
        self
    }

    pub(crate) fn preopen(mut self, host: &Path, guest: &str, read_only: bool) -> Self {
        let host = host.to_str().unwrap().to_owned();
        self.plan.preopens.push(Preopen { host, guest: guest.to_owned(), read_only });
        self
    }

    /// Runs under the memory limit that `file` holds.
    pub(crate) fn limit(mut self, file: &Path) -> Self {
        self.limit = Some(file.to_owned());
        self
    }

    /// Runs under these limits.
    pub(crate) fn limits(mut self, limits: Limits) -> Self {
        self.plan.limits = limits;
        self
    }

    /// Where the engine keeps the account of its memory.
    pub(crate) fn account(&self) -> File {
        self.account.try_clone().unwrap()
    }

    pub(crate) fn stdin(mut self, stdin: impl Into<Stdio>) -> Self {
        self.stdin = stdin.into();
        self
    }

    pub(crate) fn stdout(mut self, stdout: impl Into<Stdio>) -> Self {
        self.stdout = stdout.into();
        self
    }

    /// What the shim sends.
    pub(crate) fn message(&self) -> Message {
        Message {
            plan: self.plan.clone(),
            code: File::open(&self.code).unwrap(),
            account: self.account.try_clone().unwrap(),
            memory_limits: self.limit.iter().map(|path| File::open(path).unwrap()).collect(),
        }
    }

    /// Starts an engine and sends it the message.
    pub(crate) fn start(self) -> Running {
        let message = self.message();
        let running = self.spawn();
        send_message(&running.socket, &message).unwrap();
        running
    }

    /// Starts an engine that is sent nothing.
    pub(crate) fn spawn(self) -> Running {
        reserve_descriptors();
        let (shim, engine) = UnixStream::pair().unwrap();
        shim.set_read_timeout(Some(PATIENCE)).unwrap();
        let mut command = Command::new(ENGINE);
        command.env_clear().envs(self.environment).stdin(self.stdin).stdout(self.stdout).stderr(self.stderr);
        let number = engine.as_raw_fd();
        let into_place = move || {
            // A number that was in use for a moment while others were reserved may be the wanted one itself.
            let placed = if number == CONTROL_FD {
                // SAFETY: the descriptor is open; only its flags change.
                unsafe { libc::fcntl(number, libc::F_SETFD, 0) }
            } else {
                // SAFETY: the target was reserved above, so nothing that std itself has open is closed.
                unsafe { libc::dup2(number, CONTROL_FD) }
            };
            if placed == -1 { Err(std::io::Error::last_os_error()) } else { Ok(()) }
        };
        // SAFETY: the closure calls `dup2` or `fcntl` only, which are async-signal-safe.
        unsafe { command.pre_exec(into_place) };
        let mut child = command.spawn().unwrap();
        let stdout = child.stdout.take().map(Collected::of);
        let stderr = child.stderr.take().map(Collected::of);
        let replies = BufReader::new(shim.try_clone().unwrap());
        Running { child, socket: shim, replies, stdout, stderr }
    }

    /// Runs a guest that is expected to start, to its end.
    pub(crate) fn run(self) -> Ended {
        let mut running = self.start();
        assert_eq!(running.reply(), Reply::Ready);
        running.end()
    }

    /// Runs a guest that is expected not to start; answers why.
    pub(crate) fn refused(self) -> Refusal {
        let mut running = self.start();
        match running.reply() {
            Reply::Refused(refusal) => {
                if !matches!(refusal, Refusal::Incompatible(_)) {
                    assert_eq!(running.end().code, 125);
                }
                refusal
            }
            reply => panic!("the engine says {reply:?}: {:?}", running.end()),
        }
    }

    /// Runs a guest that is at fault itself; answers the sentence for the pod's owner.
    pub(crate) fn refused_as_guest(self) -> String {
        match self.refused() {
            Refusal::Guest(sentence) => {
                assert!(!sentence.contains('\n'), "{sentence:?}");
                sentence
            }
            other => panic!("{other:?}"),
        }
    }
}

impl Running {
    /// The engine's next reply, but for that the guest is loaded.
    pub(crate) fn reply(&mut self) -> Reply {
        loop {
            match self.next_reply() {
                Reply::Loaded => {}
                reply => return reply,
            }
        }
    }

    /// The engine's next reply.
    pub(crate) fn next_reply(&mut self) -> Reply {
        let mut line = String::new();
        let read = self.replies.read_line(&mut line);
        match Reply::parse(&line) {
            Ok(reply) => reply,
            Err(_) => panic!("no reply ({read:?}): {line:?}; {}", self.stderr()),
        }
    }

    pub(crate) fn ready(mut self) -> Self {
        assert_eq!(self.reply(), Reply::Ready);
        self
    }

    pub(crate) fn signal(&self, signal: libc::c_int) {
        // SAFETY: the process is a child of this one and not yet waited for.
        assert_eq!(unsafe { libc::kill(libc::pid_t::try_from(self.child.id()).unwrap(), signal) }, 0);
    }

    pub(crate) fn stdout(&self) -> String {
        self.stdout.as_ref().map(Collected::text).unwrap_or_default()
    }

    pub(crate) fn stderr(&self) -> String {
        self.stderr.as_ref().map(Collected::text).unwrap_or_default()
    }

    /// Waits until the guest's stdout says `text`.
    pub(crate) fn said(self, text: &str) -> Self {
        wait_for(text, || self.stdout().contains(text));
        self
    }

    /// Waits for the engine's end.
    pub(crate) fn end(&mut self) -> Ended {
        let deadline = Instant::now() + PATIENCE;
        let status = loop {
            match self.child.try_wait().unwrap() {
                Some(status) => break status,
                None if Instant::now() > deadline => panic!("the engine does not end; {}", self.stderr()),
                None => pause(),
            }
        };
        let stdout = self.stdout.take().map(Collected::whole).unwrap_or_default();
        let stderr = self.stderr.take().map(Collected::whole).unwrap_or_default();
        Ended { code: code_of(status), stdout, stderr }
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        if self.child.try_wait().is_ok_and(|status| status.is_none()) {
            self.child.kill().ok();
            self.child.wait().ok();
        }
    }
}

fn code_of(status: ExitStatus) -> i32 {
    status.code().unwrap_or_else(|| panic!("a signal ended the engine itself: {status}"))
}

/// What a stream has said so far, read by a thread.
struct Collected {
    bytes: Arc<Mutex<Vec<u8>>>,
    thread: std::thread::JoinHandle<()>,
}

impl Collected {
    fn of(mut stream: impl Read + Send + 'static) -> Self {
        let bytes = Arc::new(Mutex::new(Vec::new()));
        let sink = Arc::clone(&bytes);
        let thread = std::thread::spawn(move || {
            let mut block = [0; 4096];
            while let Ok(length @ 1..) = stream.read(&mut block) {
                sink.lock().unwrap().extend_from_slice(&block[..length]);
            }
        });
        Self { bytes, thread }
    }

    fn text(&self) -> String {
        String::from_utf8_lossy(&self.bytes.lock().unwrap()).into_owned()
    }

    fn whole(self) -> String {
        self.thread.join().unwrap();
        let bytes = self.bytes.lock().unwrap();
        String::from_utf8_lossy(&bytes).into_owned()
    }
}

/// Waits for a condition.
pub(crate) fn wait_for(what: &str, mut condition: impl FnMut() -> bool) {
    let deadline = Instant::now() + PATIENCE;
    while !condition() {
        assert!(Instant::now() < deadline, "waited in vain for: {what}");
        pause();
    }
}

/// Lets others run between two looks at a condition.
pub(crate) fn pause() {
    std::thread::park_timeout(Duration::from_millis(2));
}

/// A file that holds a memory limit.
pub(crate) fn limit_file(bytes: u64) -> tempfile::NamedTempFile {
    let mut file = tempfile::NamedTempFile::new().unwrap();
    writeln!(file, "{bytes}").unwrap();
    file
}

/// Puts another limit into a file of [`limit_file`].
pub(crate) fn set_limit(file: &tempfile::NamedTempFile, text: &str) {
    // As long as what was there, so that no reader sees half a number.
    std::fs::write(file.path(), format!("{text:<10}\n")).unwrap();
}

/// A port that was free a moment ago.
pub(crate) fn free_port() -> u16 {
    std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port()
}

/// How many bytes wait in a pipe.
pub(crate) fn waiting_bytes(reader: &std::io::PipeReader) -> usize {
    let mut count: libc::c_int = 0;
    // SAFETY: the descriptor is open, and the call writes one number to a local.
    assert_eq!(unsafe { libc::ioctl(reader.as_raw_fd(), libc::FIONREAD, &raw mut count) }, 0);
    usize::try_from(count).unwrap()
}

/// Keeps the numbers 3 and 4 from being given to anything that this process opens.
fn reserve_descriptors() {
    static RESERVED: OnceLock<Vec<File>> = OnceLock::new();
    RESERVED.get_or_init(|| {
        let mut files = Vec::new();
        while files.last().is_none_or(|file: &File| file.as_raw_fd() <= CONTROL_FD) {
            files.push(File::open("/dev/null").unwrap());
        }
        files
    });
}

/// Compiles with the `skiff` beside the engine, each guest once; `None` when the compiler refuses it.
fn compile(wasm: &[u8]) -> Option<PathBuf> {
    type Known = Mutex<HashMap<Vec<u8>, Option<PathBuf>>>;
    static CODE: OnceLock<(tempfile::TempDir, Known)> = OnceLock::new();
    let (folder, known) = CODE.get_or_init(|| (tempfile::tempdir().unwrap(), Mutex::default()));
    let mut known = known.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
    let path = folder.path().join(format!("{}.cwasm", known.len()));
    known.entry(wasm.to_vec()).or_insert_with(|| compile_to(wasm, &path).then_some(path)).clone()
}

fn compile_to(wasm: &[u8], path: &Path) -> bool {
    let skiff = Path::new(ENGINE).with_file_name("skiff");
    assert!(skiff.exists(), "these tests compile with `{}`: build the package `skiff` first", skiff.display());
    let mut child =
        Command::new(skiff).arg("compile").stdin(Stdio::piped()).stdout(File::create(path).unwrap()).spawn().unwrap();
    child.stdin.take().unwrap().write_all(wasm).unwrap();
    child.wait().unwrap().success()
}

/// The folder of the guest `name`, built by the toolchain of its language.
fn guests_folder(name: &str) -> PathBuf {
    static FOLDERS: OnceLock<Mutex<HashMap<String, PathBuf>>> = OnceLock::new();
    let language = name.split('-').next().unwrap().to_owned();
    let mut folders = FOLDERS.get_or_init(Mutex::default).lock().unwrap();
    folders.entry(language.clone()).or_insert_with(|| build_guests(&language)).clone()
}

fn build_guests(language: &str) -> PathBuf {
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../test/guests/build.sh");
    let output = Command::new("bash").arg(script).arg(language).stderr(Stdio::inherit()).output().unwrap();
    assert!(output.status.success(), "the guests in `{language}` could not be built");
    PathBuf::from(String::from_utf8(output.stdout).unwrap().lines().last().unwrap())
}
