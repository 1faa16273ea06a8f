//! How a confined process ended, and the sentence for it.

use std::time::Duration;

use nix::sys::signal::Signal;
use nix::sys::wait::WaitStatus;

use super::cgroup::OutOfMemory;
use super::limits::Limits;
use crate::error::{Error, Fault, Result, one_line};

/// The exit code of a confined process that panicked.
pub(super) const PANICKED: i32 = 101;

/// The exit code of a confined process that used up its processor time.
pub(super) const OUT_OF_TIME: i32 = 102;

/// Why the supervisor ended a process itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Stop {
    /// It took longer than its limit.
    Time,
    /// The supervisor was asked to end.
    Signal,
}

/// How a confined process ended.
#[derive(Clone, Debug)]
pub(super) struct Ending {
    pub(super) status: WaitStatus,
    pub(super) stop: Option<Stop>,
    /// The processor time that it used.
    pub(super) cpu: Duration,
    /// What it wrote to standard error. It is not trusted.
    pub(super) report: String,
}

impl Ending {
    /// The result of the job on the module `name`.
    ///
    /// # Errors
    /// For every end but an exit with 0.
    pub(super) fn explain(&self, limits: &Limits, name: &str, out_of_memory: Option<OutOfMemory>) -> Result<()> {
        match self.stop {
            // The node's fault: a module that computes too long reaches the limit of processor time first.
            Some(Stop::Time) => return Err(Error::host(too_long(name, limits.wall.as_secs(), "time"))),
            Some(Stop::Signal) => return Err(Error::host(format!("compiling `{name}` was interrupted"))),
            None => {}
        }
        match self.status {
            WaitStatus::Exited(_, 0) => Ok(()),
            _ if out_of_memory == Some(OutOfMemory::Shared) => Err(too_little_memory(name)),
            _ if out_of_memory == Some(OutOfMemory::Own) || self.report.contains("memory allocation of") => {
                Err(too_much_memory(name, limits))
            }
            WaitStatus::Exited(_, OUT_OF_TIME) => {
                Err(Error::limit(too_long(name, limits.cpu_seconds, "processor time")))
            }
            WaitStatus::Exited(_, code) => Err(self.explain_exit(code, name)),
            // A process that blocks the limit's signal reaches the hard limit.
            WaitStatus::Signaled(_, Signal::SIGKILL, _) if self.cpu >= Duration::from_secs(limits.cpu_seconds) => {
                Err(Error::limit(too_long(name, limits.cpu_seconds, "processor time")))
            }
            WaitStatus::Signaled(_, Signal::SIGKILL, _) => {
                Err(Error::host(format!("compiling `{name}` was killed from outside")))
            }
            WaitStatus::Signaled(_, signal, _) => {
                Err(Error::guest(format!("`{name}` cannot be compiled: the compiler crashed on it ({signal})")))
            }
            status => Err(Error::host(format!("compiling `{name}` ended unexpectedly: {status:?}"))),
        }
    }

    fn explain_exit(&self, code: i32, name: &str) -> Error {
        let sentence = match one_line(&self.report) {
            text if text.is_empty() => format!("compiling `{name}` ended with code {code} without a reason"),
            text => text,
        };
        match code {
            code if code == i32::from(Fault::Guest.code()) => Error::guest(sentence),
            code if code == i32::from(Fault::Limit.code()) => Error::limit(sentence),
            PANICKED => Error::guest(format!("`{name}` cannot be compiled: the compiler panicked")),
            _ => Error::host(sentence),
        }
    }
}

fn too_long(name: &str, seconds: u64, what: &str) -> String {
    format!("compiling `{name}` exceeds its {what} limit of {seconds} s")
}

fn too_much_memory(name: &str, limits: &Limits) -> Error {
    let mebibytes = limits.memory_bytes >> 20;
    Error::memory(format!("compiling `{name}` exceeds its memory limit of {mebibytes} MiB"))
}

/// Not the module's fault: there may be enough memory another time.
fn too_little_memory(name: &str) -> Error {
    Error::host(format!(
        "compiling `{name}` was stopped: the modules that are being compiled on this node together need more memory than there is"
    ))
}

#[cfg(test)]
mod tests {
    use nix::unistd::Pid;

    use super::*;

    const PID: Pid = Pid::from_raw(1);
    const KILLED: WaitStatus = WaitStatus::Signaled(PID, Signal::SIGKILL, false);
    const ABORTED: WaitStatus = WaitStatus::Signaled(PID, Signal::SIGABRT, false);

    fn exited(code: i32) -> WaitStatus {
        WaitStatus::Exited(PID, code)
    }

    fn check(ending: Ending, out_of_memory: Option<OutOfMemory>, expected: Result<(), (Fault, &str)>) {
        let wall = Duration::from_secs(60);
        let limits = Limits { memory_bytes: 64 << 20, cpu_seconds: 30, wall, output_bytes: 1 << 20, cgroup: None };
        let found = ending.explain(&limits, "a", out_of_memory).map_err(|error| (error.fault(), error.to_string()));
        assert_eq!(found, expected.map_err(|(fault, text)| (fault, text.to_owned())), "{ending:?}");
    }

    fn ending(status: WaitStatus) -> Ending {
        Ending { status, stop: None, cpu: Duration::from_secs(1), report: String::new() }
    }

    #[test]
    fn every_end_has_its_fault_and_sentence() {
        let memory = "compiling `a` exceeds its memory limit of 64 MiB";
        let crashed = "`a` cannot be compiled: the compiler crashed on it (SIGABRT)";
        let report = |status, text: &str| Ending { report: text.into(), ..ending(status) };
        check(ending(exited(0)), None, Ok(()));
        check(report(exited(1), "`a` is\ncorrupt"), None, Err((Fault::Guest, "`a` is corrupt")));
        check(report(exited(2), "no room"), None, Err((Fault::Host, "no room")));
        check(report(exited(3), "too large"), None, Err((Fault::Limit, "too large")));
        check(ending(exited(7)), None, Err((Fault::Host, "compiling `a` ended with code 7 without a reason")));
        check(ending(exited(PANICKED)), None, Err((Fault::Guest, "`a` cannot be compiled: the compiler panicked")));
        check(ending(KILLED), Some(OutOfMemory::Own), Err((Fault::Memory, memory)));
        let shared = "compiling `a` was stopped: the modules that are being compiled on this node together need more memory \
                      than there is";
        check(ending(KILLED), Some(OutOfMemory::Shared), Err((Fault::Host, shared)));
        check(ending(KILLED), None, Err((Fault::Host, "compiling `a` was killed from outside")));
        check(report(ABORTED, "memory allocation of 4096 bytes failed"), None, Err((Fault::Memory, memory)));
        check(ending(ABORTED), None, Err((Fault::Guest, crashed)));
        let time = "compiling `a` exceeds its processor time limit of 30 s";
        check(ending(exited(OUT_OF_TIME)), None, Err((Fault::Limit, time)));
        check(Ending { cpu: Duration::from_secs(30), ..ending(KILLED) }, None, Err((Fault::Limit, time)));
        check(
            Ending { stop: Some(Stop::Time), ..ending(KILLED) },
            None,
            Err((Fault::Host, "compiling `a` exceeds its time limit of 60 s")),
        );
        check(
            Ending { stop: Some(Stop::Signal), ..ending(KILLED) },
            None,
            Err((Fault::Host, "compiling `a` was interrupted")),
        );
    }
}
