//! `skiff coredump`: a wasm core dump of a core module that goes on. It stands still while it is dumped; whoever takes the dump too slowly
//! gets none, and the guest goes on.

use std::io::{self, BufWriter, ErrorKind, Write};
use std::sync::mpsc::{Receiver, RecvTimeoutError, SyncSender, sync_channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use skiff_protocol::bytes_and_mi;
use wasmtime::WasmBacktrace;

use crate::answer::Answer;
use crate::coredump::write;
use crate::load::Code;
use crate::shared::Shared;

/// How often the guest is asked to stand still, until it does.
const ROUND: Duration = Duration::from_millis(10);
/// How long a guest that waits in a call of the host is waited for.
const PATIENCE: Duration = Duration::from_secs(5);
/// How long the guest stands still for whoever takes nothing of the dump meanwhile.
const STALL: Duration = Duration::from_secs(5);
/// How long the dump may take, from its first byte.
const TIME: Duration = Duration::from_secs(60);
/// How much of the dump is passed on at once, in bytes, and how many such parts wait to be sent.
const PART_BYTES: usize = 64 << 10;
const PARTS: usize = 4;

/// Answers with a dump.
///
/// # Errors
/// Those of [`Answer`]; `TimedOut` if the dump takes too long.
pub(super) fn dump(answer: &mut Answer, shared: &Shared) -> io::Result<u8> {
    if !matches!(shared.glass.visits.code(), Some(Code::Module(_))) {
        answer.complain(
            "a component cannot be dumped, only a core module: the host cannot reach the memories inside of a component; `skiff backtrace` shows \
             where it is, and `skiff memory` what its memories take",
        )?;
        return Ok(1);
    }
    let Ok(_turn) = shared.glass.dumping.try_lock() else {
        answer.complain("cannot dump the guest: another dump is under way")?;
        return Ok(1);
    };
    let (sender, parts) = sync_channel(PARTS);
    let (sender, name) = (Mutex::new(Some(sender)), shared.plan.module.clone());
    let visiting = shared.glass.visits.begin(Arc::new(move |store, _| {
        // The first guest that stands still is dumped.
        let sender = sender.lock().unwrap_or_else(PoisonError::into_inner).take();
        if let Some(sender) = sender {
            let mut output = BufWriter::with_capacity(PART_BYTES, Parts(sender));
            // Whoever takes the dump is gone: then nobody misses the rest.
            let backtrace = WasmBacktrace::force_capture(&store);
            drop(write(store, &name, &backtrace, &mut output).and_then(|()| output.flush()));
        }
    }));
    let Some(first) = first_part(&parts, || visiting.call()) else {
        let seconds = PATIENCE.as_secs();
        answer.complain(&format!(
            "the guest waits in a call of the host in which it cannot be dumped, and did not come back from it within {seconds} s"
        ))?;
        return Ok(1);
    };
    let end = Instant::now() + TIME;
    let mut bytes = 0;
    for part in std::iter::once(first).chain(parts) {
        bytes += part.len() as u64;
        answer.end_by(end.min(Instant::now() + STALL));
        answer.output(&part)?;
    }
    answer.complain(&format!("the core dump takes {}", bytes_and_mi(bytes)))?;
    Ok(0)
}

/// Waits for the first part of a dump; `ask` has the guest stand still.
fn first_part(parts: &Receiver<Vec<u8>>, ask: impl Fn()) -> Option<Vec<u8>> {
    let begun = Instant::now();
    while begun.elapsed() < PATIENCE {
        ask();
        match parts.recv_timeout(ROUND) {
            Ok(part) => return Some(part),
            Err(RecvTimeoutError::Timeout) => {}
            Err(RecvTimeoutError::Disconnected) => return None,
        }
    }
    None
}

/// Where a guest's thread writes its dump to.
struct Parts(SyncSender<Vec<u8>>);

impl Write for Parts {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.send(bytes.to_vec()).map_err(|_| ErrorKind::BrokenPipe)?;
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}
