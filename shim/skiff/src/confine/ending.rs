//! How a confined process ended, and the sentence for it.

use std::time::Duration;

use nix::sys::signal::Signal;
use nix::sys::wait::WaitStatus;

use super::Limits;
use super::cgroup::OutOfMemory;
use crate::error::{Error, Fault, Result, one_line};

/// The exit code of a confined process that panicked.
pub(super) const PANICKED: i32 = 101;

/// The exit code of a confined process that used up its processor time.
pub(super) const OUT_OF_TIME: i32 = 102;

/// Why the supervisor ended a process itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Stop {
    /// It took longer than it may.
    Time,
    /// The supervisor was asked to end.
    Signal,
}

/// How a confined process ended.
#[derive(Clone, Debug)]
pub(super) struct Ending {
    pub(super) status: WaitStatus,
    pub(super) stop: Option<Stop>,
    /// The processor time that it took.
    pub(super) cpu: Duration,
    /// What it said, which is not trusted to be anything in particular.
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
            // What has blocked the limit's signal meets the hard limit.
            WaitStatus::Signaled(_, Signal::SIGKILL, _) if self.cpu >= Duration::from_secs(limits.cpu_seconds) => {
                Err(Error::limit(too_long(name, limits.cpu_seconds, "processor time")))
            }
            WaitStatus::Signaled(_, Signal::SIGKILL, _) => {
                Err(Error::host(format!("compiling `{name}` was killed from outside")))
            }
            WaitStatus::Signaled(_, signal, _) => {
                Err(Error::guest(format!("`{name}` cannot be compiled: the compiler crashed on it ({signal})")))
            }
            status => Err(Error::host(format!("compiling `{name}` ended in a way of its own: {status:?}"))),
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
            PANICKED => Error::guest(format!("`{name}` cannot be compiled: the compiler gave up on it")),
            _ => Error::host(sentence),
        }
    }
}

fn too_long(name: &str, seconds: u64, what: &str) -> String {
    format!("compiling `{name}` takes more than the {seconds} s of {what} that it may take")
}

fn too_much_memory(name: &str, limits: &Limits) -> Error {
    let mebibytes = limits.memory_bytes >> 20;
    Error::limit(format!("compiling `{name}` needs more than the {mebibytes} MiB of memory that it may use"))
}

/// Not the module's fault: another time there may be enough.
fn too_little_memory(name: &str) -> Error {
    Error::host(format!(
        "compiling `{name}` was ended, since all modules that are compiled on this node together need more memory than there is \
         for them"
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
        let memory = "compiling `a` needs more than the 64 MiB of memory that it may use";
        let crashed = "`a` cannot be compiled: the compiler crashed on it (SIGABRT)";
        let report = |status, text: &str| Ending { report: text.into(), ..ending(status) };
        check(ending(exited(0)), None, Ok(()));
        check(report(exited(1), "`a` is\ncorrupt"), None, Err((Fault::Guest, "`a` is corrupt")));
        check(report(exited(2), "no room"), None, Err((Fault::Host, "no room")));
        check(report(exited(3), "too large"), None, Err((Fault::Limit, "too large")));
        check(ending(exited(7)), None, Err((Fault::Host, "compiling `a` ended with code 7 without a reason")));
        check(
            ending(exited(PANICKED)),
            None,
            Err((Fault::Guest, "`a` cannot be compiled: the compiler gave up on it")),
        );
        check(ending(KILLED), Some(OutOfMemory::Own), Err((Fault::Limit, memory)));
        let shared = "compiling `a` was ended, since all modules that are compiled on this node together need more memory than there is for them";
        check(ending(KILLED), Some(OutOfMemory::Shared), Err((Fault::Host, shared)));
        check(ending(KILLED), None, Err((Fault::Host, "compiling `a` was killed from outside")));
        check(report(ABORTED, "memory allocation of 4096 bytes failed"), None, Err((Fault::Limit, memory)));
        check(ending(ABORTED), None, Err((Fault::Guest, crashed)));
        let time = "compiling `a` takes more than the 30 s of processor time that it may take";
        check(ending(exited(OUT_OF_TIME)), None, Err((Fault::Limit, time)));
        check(Ending { cpu: Duration::from_secs(30), ..ending(KILLED) }, None, Err((Fault::Limit, time)));
        check(
            Ending { stop: Some(Stop::Time), ..ending(KILLED) },
            None,
            Err((Fault::Host, "compiling `a` takes more than the 60 s of time that it may take")),
        );
        check(
            Ending { stop: Some(Stop::Signal), ..ending(KILLED) },
            None,
            Err((Fault::Host, "compiling `a` was interrupted")),
        );
    }
}
