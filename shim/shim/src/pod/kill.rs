//! Signals for a container's processes, and the ends that they bring about.

use std::time::SystemTime;

use skiff_protocol::exit_code_of_signal;

use crate::error::{Context, Error, Kind, Result};
use crate::pod::container::{Body, Container, Made};
use crate::pod::member::Member;
use crate::pod::state::{Exit, State};

impl Container {
    /// Sends `signal` to a process, or to all of the container.
    pub(crate) async fn kill(&self, member: &Member, signal: i32, all: bool) -> Result<()> {
        let Some(made) = self.body.made() else { return self.stop_sandbox(signal).await };
        if all && member.exec_id.is_empty() {
            // The first process must not see the others die and end by itself.
            if signal == libc::SIGKILL {
                member.signal(signal)?;
            }
            self.signal_all(made, signal).await?;
        } else {
            member.signal(signal)?;
        }
        // A frozen process cannot die; SIGKILL must not wait for a resume.
        if signal == libc::SIGKILL && member.state() == State::Paused {
            made.launcher.resume().await?;
        }
        Ok(())
    }

    /// Signals every process of the container, on a thread of its own: it may make new ones faster than they are found.
    pub(super) async fn signal_all(&self, made: &Made, signal: i32) -> Result<()> {
        let cgroup = made.cgroup.clone();
        let signalled = tokio::task::spawn_blocking(move || match signal {
            libc::SIGKILL => cgroup.kill_all(),
            other => cgroup.signal_all(other),
        });
        let signalled = signalled.await.map_err(std::io::Error::other).flatten();
        signalled.doing(|| format!("cannot send signal {signal} to container `{}`", self.id))
    }

    /// Ends the sandbox of a pod that has lost its shared pid namespace, unless it has ended already.
    pub(super) async fn lost_its_pids(&self) {
        let ended = match &self.body {
            Body::Sandbox(_) => self.stop_sandbox(libc::SIGKILL).await,
            Body::Native(_) | Body::Wasm(..) => self.kill(&self.init, libc::SIGKILL, false).await,
        };
        match ended {
            Err(error) if error.kind() != Kind::NotFound => log::error!("{}", crate::error::chain(&error)),
            _ended => {}
        }
    }

    async fn stop_sandbox(&self, signal: i32) -> Result<()> {
        let _changing = self.changing.lock().await;
        if self.init.state().exit().is_some() {
            return Err(Error::new(Kind::NotFound, "the process has ended already"));
        }
        // The pause program, whose place this is, ends well when it is asked to.
        let code = match signal {
            0 => return Ok(()),
            libc::SIGTERM | libc::SIGINT => 0,
            other => exit_code_of_signal(other),
        };
        self.ended(&self.init, Exit { code, at: SystemTime::now() }).await;
        Ok(())
    }
}
