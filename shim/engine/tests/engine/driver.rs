//! Runs the engine as the shim does: a socket pair, a plan, code that `skiff compile` made, and a pipe for the replies.

use std::collections::HashMap;
use std::ffi::{CStr, CString};
use std::fs::File;
use std::io::{BufRead, BufReader, PipeReader, Read, Write};
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::{Arc, Mutex, OnceLock};
use std::time::{Duration, Instant};

use nix::mount::{MsFlags, mount};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sched::{CloneFlags, unshare};
use skiff_protocol::{
    Account, CONTROL_FD, ENGINE_FD, EnginePlan, Limits, Message, Preopen, Refusal, Reply, send_message,
};

const ENGINE: &str = env!("CARGO_BIN_EXE_skiff-engine");
/// Longer than anything takes on a busy machine.
const PATIENCE: Duration = Duration::from_secs(60);

/// A container to be: what the shim would have made of a pod.
pub(crate) struct Guest {
    code: PathBuf,
    plan: EnginePlan,
    own_environment: Vec<(String, String)>,
    limit: Option<PathBuf>,
    binds: Vec<(CString, CString)>,
    user: Option<u32>,
    account: File,
    stdin: Stdio,
    stdout: Stdio,
    stderr: Stdio,
}

/// A started engine.
pub(crate) struct Running {
    pub(crate) child: Child,
    pub(crate) socket: UnixStream,
    replies: Option<BufReader<PipeReader>>,
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
            own_environment: Vec::new(),
            limit: None,
            binds: Vec::new(),
            user: None,
            account: Account::create().unwrap(),
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
        self.plan.env.push(format!("{name}={value}"));
        self
    }

    /// Puts a variable into the environment of the engine itself.
    pub(crate) fn own_env(mut self, name: &str, value: &str) -> Self {
        self.own_environment.push((name.to_owned(), value.to_owned()));
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

    /// Puts these files into a container's `/etc`. Only root can: the engine gets a mount namespace of its own.
    pub(crate) fn etc(self, files: &[&Path]) -> Self {
        files.iter().fold(self, |guest, file| guest.bind(file, &Path::new("/etc").join(file.file_name().unwrap())))
    }

    /// Mounts what is at one path at another one. Only root can: the engine gets a mount namespace of its own.
    pub(crate) fn bind(mut self, what: &Path, place: &Path) -> Self {
        self.binds.push((path_text(what), path_text(place)));
        self
    }

    /// Runs as this user. Only root can.
    pub(crate) fn user(mut self, id: u32) -> Self {
        self.user = Some(id);
        self
    }

    /// Runs with as many processors.
    pub(crate) fn processors(mut self, count: usize) -> Self {
        self.plan.processors = Some(count);
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

    pub(crate) fn stderr(mut self, stderr: impl Into<Stdio>) -> Self {
        self.stderr = stderr.into();
        self
    }

    /// The compiled code.
    pub(crate) fn code(&self) -> File {
        File::open(&self.code).unwrap()
    }

    /// What the shim sends, and where it hears of it.
    pub(crate) fn message(&self) -> (Message, PipeReader) {
        let (heard, replies) = std::io::pipe().unwrap();
        let message = Message {
            plan: self.plan.clone(),
            code: self.code(),
            account: self.account.try_clone().unwrap(),
            replies: File::from(OwnedFd::from(replies)),
            memory_limits: self.limit.iter().map(|path| File::open(path).unwrap()).collect(),
        };
        (message, heard)
    }

    /// Starts an engine and sends it the message.
    pub(crate) fn start(self) -> Running {
        let message = self.message();
        let mut running = self.spawn();
        running.send(message);
        running
    }

    /// Starts an engine that is sent nothing.
    pub(crate) fn spawn(self) -> Running {
        reserve_descriptors();
        let (shim, engine) = UnixStream::pair().unwrap();
        shim.set_read_timeout(Some(PATIENCE)).unwrap();
        // Another user may not be able to follow the path: there it is executed as the shim's runtime does.
        let engine_file = self.user.map(|_| File::open(ENGINE).unwrap());
        let mut command = Command::new(if engine_file.is_some() { "/proc/self/fd/3" } else { ENGINE });
        command.env_clear().envs(self.own_environment).stdin(self.stdin).stdout(self.stdout).stderr(self.stderr);
        let number = engine.as_raw_fd();
        let (binds, user) = (self.binds, self.user);
        let into_place = move || {
            if !binds.is_empty() {
                unshare(CloneFlags::CLONE_NEWNS)?;
                let private = MsFlags::MS_REC | MsFlags::MS_PRIVATE;
                mount(None::<&CStr>, c"/", None::<&CStr>, private, None::<&CStr>)?;
            }
            for (what, place) in &binds {
                mount(Some(what.as_c_str()), place.as_c_str(), None::<&CStr>, MsFlags::MS_BIND, None::<&CStr>)?;
            }
            // A number that was in use for a moment while others were reserved may be the wanted one itself.
            let placed = if number == CONTROL_FD {
                // SAFETY: the descriptor is open; only its flags change.
                unsafe { libc::fcntl(number, libc::F_SETFD, 0) }
            } else {
                // SAFETY: the target was reserved above, so nothing that std itself has open is closed.
                unsafe { libc::dup2(number, CONTROL_FD) }
            };
            if placed == -1 {
                return Err(std::io::Error::last_os_error());
            }
            if let (Some(user), Some(engine)) = (user, &engine_file) {
                // SAFETY: the number is reserved, and not used by std.
                unsafe { libc::dup2(engine.as_raw_fd(), ENGINE_FD) };
                nix::unistd::setuid(user.into())?;
            }
            Ok(())
        };
        // SAFETY: the closure makes system calls only, and allocates nothing.
        unsafe { command.pre_exec(into_place) };
        let mut child = command.spawn().unwrap();
        let stdout = child.stdout.take().map(Collected::of);
        let stderr = child.stderr.take().map(Collected::of);
        Running { child, socket: shim, replies: None, stdout, stderr }
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
    /// Sends a message; from now on its replies are heard.
    pub(crate) fn send(&mut self, (message, heard): (Message, PipeReader)) {
        send_message(&self.socket, &message).unwrap();
        self.replies = Some(BufReader::new(heard));
    }

    /// Hears nothing any more, as a shim that has waited long enough.
    pub(crate) fn hang_up(&mut self) {
        self.replies = None;
    }

    /// Whether the engine has closed its end for replies, after what it said.
    pub(crate) fn has_hung_up(&mut self) -> bool {
        let mut rest = String::new();
        self.replies.as_mut().unwrap().read_to_string(&mut rest).unwrap();
        rest.is_empty()
    }

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
        let replies = self.replies.as_mut().unwrap();
        let pipe = replies.get_ref();
        let mut readable = [PollFd::new(pipe.as_fd(), PollFlags::POLLIN)];
        let patience = PollTimeout::try_from(PATIENCE).unwrap();
        let is_ready = !replies.buffer().is_empty() || poll(&mut readable, patience).unwrap() > 0;
        assert!(is_ready, "no reply; {}", self.stderr());
        let read = self.replies.as_mut().unwrap().read_line(&mut line);
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

fn path_text(path: &Path) -> CString {
    CString::new(path.to_str().unwrap()).unwrap()
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

/// What the kernel says of a process, by the name of the line.
pub(crate) fn status_of(process: u32, line: &str) -> String {
    let status = std::fs::read_to_string(format!("/proc/{process}/status")).unwrap();
    let value = status.lines().find_map(|known| known.strip_prefix(line)).unwrap_or_default();
    value.trim().to_owned()
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
    assert!(output.status.success(), "the guests in `{language}` cannot be built");
    PathBuf::from(String::from_utf8(output.stdout).unwrap().lines().last().unwrap())
}
