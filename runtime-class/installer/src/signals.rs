//! The signals that ask this process to end. The first process of a container ignores them unless it has handlers.

use tokio::signal::unix::{Signal, SignalKind, signal};

use crate::error::{Context, Result};

/// SIGTERM and SIGINT, from the moment this exists.
pub(crate) struct Ends {
    terminate: Signal,
    interrupt: Signal,
}

impl Ends {
    pub(crate) fn new() -> Result<Self> {
        let doing = "cannot wait for signals";
        Ok(Self {
            terminate: signal(SignalKind::terminate()).or_host(doing)?,
            interrupt: signal(SignalKind::interrupt()).or_host(doing)?,
        })
    }

    /// Waits for one of them.
    pub(crate) async fn one(&mut self) {
        tokio::select! {
            _ = self.terminate.recv() => {}
            _ = self.interrupt.recv() => {}
        }
    }
}
