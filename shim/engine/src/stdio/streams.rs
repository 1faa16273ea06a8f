//! What all output streams of one guest have in common: the pace that they keep together, and who waits for their readers.

use std::io;
use std::os::fd::BorrowedFd;
use std::sync::{Once, OnceLock};
use std::time::{Duration, Instant};

use tokio::io::unix::AsyncFd;

use super::complaint::Complaint;
use super::poll::is_writable;
use super::rate::Rate;
use super::target::Target;
use super::write::{write_blocking, write_into_room};
use crate::clock;

/// How much a guest may write at once.
pub(super) const PERMIT_BYTES: usize = 64 << 10;

/// A descriptor that is watched once somebody waits for it; `None` inside if it cannot be watched.
type Watched = OnceLock<Option<AsyncFd<BorrowedFd<'static>>>>;

/// The output streams of a guest.
pub(crate) struct Streams {
    rate: Option<Rate>,
    complaint: Complaint,
    stdout: Watched,
    stderr: Watched,
    never_waits: Once,
}

impl Streams {
    /// Streams that together write at most `bytes_per_second`, if there is a limit.
    pub(crate) fn new(bytes_per_second: Option<u64>) -> Self {
        Self {
            rate: bytes_per_second.map(|bytes| Rate::new(bytes, Instant::now())),
            complaint: Complaint::default(),
            stdout: OnceLock::new(),
            stderr: OnceLock::new(),
            never_waits: Once::new(),
        }
    }

    /// From now on no write waits for the reader of a terminal, as [`Streams::try_write`] promises.
    pub(super) fn never_wait(&self) {
        self.never_waits
            .call_once(|| [Target::Stdout, Target::Stderr].into_iter().for_each(Target::never_wait_for_terminal));
    }

    /// Whether a command has said on its stderr that it is out of memory.
    pub(crate) fn said_out_of_memory(&self) -> bool {
        self.complaint.is_heard()
    }

    /// Writes some of a command's output, and waits for the pace and for the reader.
    pub(super) fn write_some(&self, target: Target, bytes: &[u8]) -> io::Result<usize> {
        let bytes = self.rate.as_ref().map_or(bytes, |rate| {
            let part = bytes.get(..rate.piece_bytes(PERMIT_BYTES)).unwrap_or(bytes);
            clock::sleep(rate.take(part.len(), Instant::now()));
            part
        });
        let written = write_blocking(target, bytes)?;
        if matches!(target, Target::Stderr) {
            self.complaint.hear(bytes.get(..written).unwrap_or(bytes));
        }
        Ok(written)
    }

    /// Writes what a command's function has returned to stdout.
    pub(crate) fn print(&self, mut text: &[u8]) -> io::Result<()> {
        while !text.is_empty() {
            let written = self.write_some(Target::Stdout, text)?;
            text = text.get(written..).unwrap_or_default();
        }
        Ok(())
    }

    /// Writes some of a server's output; `None` if it would have to wait, for the reader or for the pace.
    pub(super) fn try_write(&self, target: Target, bytes: &[u8]) -> io::Result<Option<usize>> {
        if !self.pace_delay().is_zero() {
            return Ok(None);
        }
        let written = write_into_room(target, bytes)?;
        if let (Some(rate), Some(written)) = (&self.rate, written) {
            rate.take(written, Instant::now());
        }
        Ok(written)
    }

    /// Whether [`Streams::try_write`] would write.
    pub(super) fn has_room(&self, target: Target) -> bool {
        self.pace_delay().is_zero() && is_writable(&target, 0)
    }

    /// Waits until [`Streams::try_write`] may find room.
    pub(super) async fn room(&self, target: Target) {
        tokio::time::sleep(self.pace_delay()).await;
        let watched = match target {
            Target::Stdout => &self.stdout,
            Target::Stderr => &self.stderr,
        };
        let Some(watched) = watched.get_or_init(|| target.watch()) else { return };
        if let Ok(mut guard) = watched.writable().await
            && !is_writable(&target, 0)
        {
            guard.clear_ready();
        }
    }

    /// How long nothing may be written yet.
    fn pace_delay(&self) -> Duration {
        self.rate.as_ref().map_or(Duration::ZERO, |rate| rate.delay(Instant::now()))
    }
}
