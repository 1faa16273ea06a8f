//! The states of a process of a container, and what may happen in each.

use crate::error::{Error, Kind, Result};
use crate::events::Exit;

/// The state of a process.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum State {
    /// A further process that is described, not made.
    Added,
    /// A further process that is being made.
    Starting,
    /// Made, and waiting to be started.
    Created,
    Running,
    Paused,
    Stopped(Exit),
}

impl State {
    pub(crate) fn name(self) -> &'static str {
        match self {
            State::Added => "added",
            State::Starting => "starting",
            State::Created => "created",
            State::Running => "running",
            State::Paused => "paused",
            State::Stopped(_) => "stopped",
        }
    }

    /// The exit, once there is one.
    pub(crate) fn exit(self) -> Option<Exit> {
        match self {
            State::Stopped(exit) => Some(exit),
            State::Added | State::Starting | State::Created | State::Running | State::Paused => None,
        }
    }

    /// May it be started?
    pub(crate) fn check_start(self) -> Result<()> {
        self.allow("start", matches!(self, State::Added | State::Created))
    }

    /// May it be paused?
    pub(crate) fn check_pause(self) -> Result<()> {
        self.allow("pause", self == State::Running)
    }

    /// May it be resumed?
    pub(crate) fn check_resume(self) -> Result<()> {
        self.allow("resume", self == State::Paused)
    }

    /// May a checkpoint of it be made?
    pub(crate) fn check_checkpoint(self) -> Result<()> {
        self.allow("checkpoint", matches!(self, State::Running | State::Paused))
    }

    /// May it be deleted? What was made and never started is ended first, and what is being made is undone.
    pub(crate) fn check_delete(self) -> Result<()> {
        self.allow("delete", matches!(self, State::Added | State::Starting | State::Created | State::Stopped(_)))
    }

    /// May further processes be started beside it?
    pub(crate) fn check_exec(self) -> Result<()> {
        self.allow("start a process in", self == State::Running)
    }

    /// Does it have processes to list?
    pub(crate) fn check_pids(self) -> Result<()> {
        self.allow("list the processes of", self.exit().is_none())
    }

    fn allow(self, verb: &str, allowed: bool) -> Result<()> {
        if allowed {
            return Ok(());
        }
        Err(Error::new(Kind::Conflict, format!("cannot {verb} a container that is {}", self.name())))
    }
}

#[cfg(test)]
mod tests {
    use std::time::SystemTime;

    use super::*;

    #[test]
    fn each_state_allows_what_it_should() {
        let stopped = State::Stopped(Exit { code: 0, at: SystemTime::UNIX_EPOCH });
        //                       start  pause  resume checkpoint delete exec pids
        for (state, expected) in [
            (State::Added, [true, false, false, false, true, false, true]),
            (State::Starting, [false, false, false, false, true, false, true]),
            (State::Created, [true, false, false, false, true, false, true]),
            (State::Running, [false, true, false, true, false, true, true]),
            (State::Paused, [false, false, true, true, false, false, true]),
            (stopped, [false, false, false, false, true, false, false]),
        ] {
            let allowed = [
                state.check_start(),
                state.check_pause(),
                state.check_resume(),
                state.check_checkpoint(),
                state.check_delete(),
                state.check_exec(),
                state.check_pids(),
            ]
            .map(|check| check.is_ok());
            assert_eq!(allowed, expected, "{state:?}");
        }
    }

    #[test]
    fn a_refusal_is_a_sentence() {
        let stopped = State::Stopped(Exit { code: 0, at: SystemTime::UNIX_EPOCH });
        assert_eq!(stopped.check_pause().unwrap_err().to_string(), "cannot pause a container that is stopped");
    }
}
