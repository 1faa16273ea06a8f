//! A process of a container, from its description to its exit.

use std::os::fd::AsFd;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::{Duration, SystemTime};

use oci_spec::runtime::Process as ProcessSpec;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use crate::error::{Context, Error, Kind, Result};
use crate::events::Exit;
use crate::host::console;
use crate::host::process::Child;
use crate::pod::state::State;
use crate::pod::streams::Attached;
use crate::request::StdioPaths;

/// A process of a container: its first one, or one that was started beside it.
pub(crate) struct Process {
    pub(crate) exec_id: String,
    pub(crate) stdio: StdioPaths,
    state: watch::Sender<State>,
    /// Set once, and held until the process is deleted: its pidfd keeps the pid from being taken for another's.
    child: OnceLock<Child>,
    attached: Mutex<Attached>,
    /// Cancelled when it is to end before it was made.
    pub(crate) unwanted: CancellationToken,
    /// Somebody asked the shim to kill it.
    is_killed: AtomicBool,
    /// The pid to show for a sandbox, which has no process of its own: the shim's.
    shown_pid: Option<i32>,
    /// What to run, for a further process.
    spec: Option<ProcessSpec>,
}

impl Process {
    /// A process that exists.
    pub(crate) fn created(exec_id: &str, stdio: StdioPaths, child: Child, attached: Attached) -> Self {
        let process = Self::added(exec_id, stdio);
        process.state.send_replace(State::Created);
        process.attach(child, attached);
        process
    }

    /// A process that Start makes from a checkpoint.
    pub(crate) fn checkpointed(stdio: StdioPaths) -> Self {
        let process = Self::added("", stdio);
        process.state.send_replace(State::Created);
        process
    }

    fn added(exec_id: &str, stdio: StdioPaths) -> Self {
        Self {
            exec_id: exec_id.into(),
            stdio,
            state: watch::Sender::new(State::Added),
            child: OnceLock::new(),
            attached: Mutex::new(Attached::Detached),
            unwanted: CancellationToken::new(),
            is_killed: AtomicBool::new(false),
            shown_pid: None,
            spec: None,
        }
    }

    /// A further process that is only described yet.
    pub(crate) fn described(exec_id: &str, stdio: StdioPaths, spec: ProcessSpec) -> Self {
        Self { spec: Some(spec), ..Self::added(exec_id, stdio) }
    }

    /// The description of a further process.
    pub(crate) fn spec(&self) -> Option<&ProcessSpec> {
        self.spec.as_ref()
    }

    /// Claims the start of a described process, which only one caller gets.
    pub(crate) fn begin(&self) -> Result<()> {
        let mut before = State::Added;
        self.state.send_modify(|state| {
            before = *state;
            if before == State::Added {
                *state = State::Starting;
            }
        });
        before.check_start()
    }

    /// The sandbox, whose place the shim itself takes.
    pub(crate) fn held_by_the_shim(stdio: StdioPaths) -> Self {
        let pid = nix::unistd::getpid().as_raw();
        let process = Self { shown_pid: Some(pid), ..Self::added("", stdio) };
        process.state.send_replace(State::Created);
        process
    }

    /// Takes over the process that was made for this description.
    pub(crate) fn attach(&self, child: Child, attached: Attached) {
        *self.attached() = attached;
        // A description is started once: its state has been checked under the container's lock.
        drop(self.child.set(child));
    }

    pub(crate) fn state(&self) -> State {
        *self.state.borrow()
    }

    pub(crate) fn set_state(&self, state: State) {
        self.state.send_replace(state);
    }

    /// The pid; 0 before there is a process.
    pub(crate) fn pid(&self) -> i32 {
        self.child.get().map(Child::pid).or(self.shown_pid).unwrap_or(0)
    }

    /// The child of the shim that it is, once there is one.
    pub(crate) fn child(&self) -> Option<&Child> {
        self.child.get()
    }

    /// Waits for the exit.
    pub(crate) async fn wait(&self) -> Result<Exit> {
        let mut states = self.state.subscribe();
        let state = states
            .wait_for(|state| state.exit().is_some())
            .await
            .doing(|| "cannot wait for the process to end".into())?;
        state.exit().ok_or_else(|| Error::new(Kind::Host, "a process that has ended has no exit status"))
    }

    /// Waits until the process is no longer being started.
    pub(crate) async fn wait_until_made(&self) -> Result<()> {
        let mut states = self.state.subscribe();
        let made = states.wait_for(|state| *state != State::Starting).await;
        made.map(drop).doing(|| "cannot wait for the process to be made".into())
    }

    /// Waits for the process itself and returns its exit; to be called once, by its owner.
    pub(crate) async fn reap(&self) -> Exit {
        let code = match self.child.get() {
            Some(child) => child.wait().await.unwrap_or_else(|error| {
                log::error!("cannot wait for process {}: {error}", child.pid());
                skiff_protocol::EXIT_ENGINE
            }),
            None => skiff_protocol::EXIT_ENGINE,
        };
        Exit { code, at: SystemTime::now() }
    }

    /// Sends `signal` to the process.
    pub(crate) fn signal(&self, signal: i32) -> Result<()> {
        let gone = || Error::new(Kind::NotFound, "the process has already ended");
        if self.state().exit().is_some() {
            return Err(gone());
        }
        if signal == libc::SIGKILL && self.state() == State::Starting {
            self.unwanted.cancel();
            return Ok(());
        }
        let Some(child) = self.child.get() else {
            return Err(Error::new(Kind::Conflict, "the process has not been started"));
        };
        if signal == libc::SIGKILL {
            self.is_killed.store(true, Ordering::Relaxed);
        }
        if child.signal(signal).doing(|| format!("cannot send signal {signal}"))? { Ok(()) } else { Err(gone()) }
    }

    /// Whether somebody asked the shim to kill it.
    pub(crate) fn is_killed(&self) -> bool {
        self.is_killed.load(Ordering::Relaxed)
    }

    /// Closes the shim's end of the input.
    pub(crate) fn close_stdin(&self) {
        match &*self.attached() {
            Attached::Files(holds) => holds.close_stdin(),
            Attached::Terminal(terminal) => terminal.close_stdin(),
            Attached::Detached => {}
        }
    }

    /// Sets the size of the terminal, in characters.
    pub(crate) fn resize(&self, width: u16, height: u16) -> Result<()> {
        match &*self.attached() {
            Attached::Terminal(terminal) => {
                console::resize(terminal.as_fd(), width, height).doing(|| "cannot resize the terminal".into())
            }
            Attached::Files(_) | Attached::Detached => Err(Error::new(Kind::Conflict, "the process has no terminal")),
        }
    }

    /// Waits until what it wrote to its terminal has been delivered, but no longer than `limit`. Once it has ended only: what is
    /// typed afterwards is not copied.
    pub(crate) async fn delivered(&self, limit: Duration) {
        let copies = match &*self.attached() {
            Attached::Terminal(terminal) => terminal.copies(),
            Attached::Files(_) | Attached::Detached => return,
        };
        if tokio::time::timeout(limit, copies.shutdown()).await.is_err() {
            log::debug!("nobody takes the output of a terminal");
        }
    }

    /// Lets go of the streams, after the output has been delivered.
    pub(crate) async fn detach(&self) {
        let attached = std::mem::replace(&mut *self.attached(), Attached::Detached);
        if let Attached::Terminal(terminal) = attached {
            terminal.finish().await;
        }
    }

    fn attached(&self) -> MutexGuard<'_, Attached> {
        self.attached.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
