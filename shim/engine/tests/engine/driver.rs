//! Runs the engine as the shim does: a socket pair, a plan, code that `skiff compile` made, and a pipe for the replies.

use std::ffi::{CStr, CString};
use std::fs::File;
use std::io::{BufRead, BufReader, PipeReader, Read};
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::OnceLock;
use std::time::Instant;

use nix::mount::{MsFlags, mount};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sched::{CloneFlags, CpuSet, sched_getaffinity, sched_setaffinity, unshare};
use nix::sys::resource::{Resource, setrlimit};
use nix::unistd::Pid;
use skiff_protocol::{
    Account, CONTROL_FD, ENGINE_FD, EnginePlan, Limits, MemoryLimit, Message, OnTrap, Preopen, Refusal, Reply, Task,
    let_run, send_message,
};

use crate::collected::Collected;
use crate::compiled::{ENGINE, compile, guests_folder};
use crate::watch::{PATIENCE, pause, wait_for};

/// A container to be: what the shim would have made of a pod.
pub(crate) struct Guest {
    code: PathBuf,
    plan: EnginePlan,
    own_environment: Vec<(String, String)>,
    limit: Option<PathBuf>,
    binds: Vec<(CString, CString)>,
    user: Option<u32>,
    one_processor: bool,
    files: Option<u64>,
    account: File,
    calls: Option<File>,
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
            one_processor: false,
            files: None,
            account: Account::create().unwrap(),
            calls: None,
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

    /// Runs on one processor.
    pub(crate) fn one_processor(mut self) -> Self {
        self.one_processor = true;
        self
    }

    /// May have so many files open.
    pub(crate) fn files(mut self, most: u64) -> Self {
        self.files = Some(most);
        self
    }

    /// Runs in a pod, where each signal may be the one that stops the container.
    pub(crate) fn in_a_pod(mut self) -> Self {
        self.plan.each_signal_stops = true;
        self
    }

    /// Nobody looks into the container.
    pub(crate) fn looks_are_off(mut self) -> Self {
        self.plan.looks_are_off = true;
        self
    }

    /// Runs under these limits.
    pub(crate) fn limits(mut self, limits: Limits) -> Self {
        self.plan.limits = limits;
        self
    }

    /// No guest, but a process that was made for an exec and has this task.
    pub(crate) fn task(task: Task) -> Self {
        let mut guest = Self::of_code("/app/guest.wasm", Path::new("/dev/null"));
        guest.plan.task = task;
        guest
    }

    /// Does this when a call ends the live instance.
    pub(crate) fn on_trap(mut self, on_trap: OnTrap) -> Self {
        self.plan.on_trap = on_trap;
        self
    }

    /// Passes the call socket: a listening one to a guest, a connected one to a task.
    pub(crate) fn calls(mut self, socket: impl Into<OwnedFd>) -> Self {
        self.calls = Some(File::from(socket.into()));
        self
    }

    /// Where the engine keeps the account of its memory.
    pub(crate) fn account(&self) -> File {
        self.account.try_clone().unwrap()
    }

    /// Has a file for its last words.
    pub(crate) fn termination_log(mut self, path: &str) -> Self {
        self.plan.termination_log = Some(path.to_owned());
        self
    }

    /// Has a file for the core dump of a trap.
    pub(crate) fn core_dump(mut self, path: &str) -> Self {
        self.plan.core_dump = Some(path.to_owned());
        self
    }

    /// Knows that these servers speak HTTP/2 without TLS.
    pub(crate) fn http2(mut self, authorities: &[&str]) -> Self {
        self.plan.http2_authorities = authorities.iter().map(|one| (*one).to_owned()).collect();
        self
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
            code: (self.plan.task == Task::Run).then(|| self.code()),
            calls: self.calls.as_ref().map(|socket| socket.try_clone().unwrap()),
            account: self.account.try_clone().unwrap(),
            replies: File::from(OwnedFd::from(replies)),
            memory_limits: self.limit.iter().map(|path| memory_limit(path)).collect(),
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
        let (binds, user, files) = (self.binds, self.user, self.files);
        let processors = self.one_processor.then(first_processor);
        let into_place = move || {
            if let Some(processors) = &processors {
                sched_setaffinity(Pid::from_raw(0), processors)?;
            }
            if let Some(files) = files {
                setrlimit(Resource::RLIMIT_NOFILE, files / 2, files)?;
            }
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

    /// Runs a guest that is expected not to start, and returns why.
    pub(crate) fn refused(self) -> Refusal {
        let mut running = self.start();
        match running.reply() {
            Reply::Refused(refusal) => {
                if !matches!(refusal, Refusal::Incompatible(_)) {
                    running.socket.shutdown(std::net::Shutdown::Both).unwrap();
                    assert_eq!(running.end().code, 125);
                }
                refusal
            }
            reply => panic!("the engine says {reply:?}: {:?}", running.end()),
        }
    }

    /// Runs a guest that is at fault itself, and returns the sentence for the pod's owner.
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

    /// Hears nothing any more, like a shim that has waited long enough.
    pub(crate) fn hang_up(&mut self) {
        self.replies = None;
    }

    /// Whether the engine has closed its end for replies, after what it said.
    pub(crate) fn has_hung_up(&mut self) -> bool {
        let mut rest = String::new();
        self.replies.as_mut().unwrap().read_to_string(&mut rest).unwrap();
        rest.is_empty()
    }

    /// The engine's next reply after the one that the guest is loaded.
    pub(crate) fn reply(&mut self) -> Reply {
        loop {
            match self.next_reply() {
                Reply::Loaded => {}
                reply => return reply,
            }
        }
    }

    /// The engine's next reply. A guest that is loaded may run then.
    pub(crate) fn next_reply(&mut self) -> Reply {
        let reply = self.said_next();
        if reply == Reply::Loaded {
            // It may have refused the guest meanwhile.
            let _listens = let_run(&self.socket);
        }
        reply
    }

    /// The engine's next reply, and nothing else.
    pub(crate) fn said_next(&mut self) -> Reply {
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
        // SAFETY: the child has not been waited for, so the number is its own. nix has no real-time signals.
        assert_eq!(unsafe { libc::kill(self.child.id().try_into().unwrap(), signal) }, 0);
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
        // Nobody may have read yet that the guest is loaded.
        let _listens = let_run(&self.socket);
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

/// One of the processors that this process may use.
/// A limit of which no file in memory takes anything.
fn memory_limit(path: &Path) -> MemoryLimit {
    let [limit, stat] = [path, Path::new("/dev/null")].map(|path| File::open(path).unwrap());
    MemoryLimit { limit, stat }
}

fn first_processor() -> CpuSet {
    let all = sched_getaffinity(Pid::from_raw(0)).unwrap();
    let first = (0..CpuSet::count()).find(|number| all.is_set(*number).unwrap()).unwrap();
    let mut one = CpuSet::new();
    one.set(first).unwrap();
    one
}

fn path_text(path: &Path) -> CString {
    CString::new(path.to_str().unwrap()).unwrap()
}

fn code_of(status: ExitStatus) -> i32 {
    status.code().unwrap_or_else(|| panic!("a signal ended the engine itself: {status}"))
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
