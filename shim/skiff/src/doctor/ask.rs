//! Running a program of the node for what it prints, within bounds.

use std::io::{self, Error, ErrorKind, Read};
use std::process::{Command, Stdio};
use std::sync::mpsc;
use std::thread;
use std::time::Duration;

/// How long a program may take, also on a busy node.
pub(super) const LIMIT: Duration = Duration::from_secs(30);
/// The most that is read of what it prints, in bytes.
const PRINTED_BYTES_MAX: u64 = 16 << 20;

/// What the program prints on stdout. It is ended as soon as it has closed that, or has taken `limit`.
///
/// # Errors
/// Those of running it; `TimedOut`.
pub(super) fn ask(command: &mut Command, limit: Duration) -> io::Result<String> {
    let mut child = command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::null()).spawn()?;
    let (sender, printed) = mpsc::channel();
    let stdout = child.stdout.take();
    // Not joined: what the program has started may hold the pipe for longer.
    thread::spawn(move || {
        let mut bytes = Vec::new();
        let read = stdout.map_or(Ok(0), |stdout| stdout.take(PRINTED_BYTES_MAX).read_to_end(&mut bytes));
        // Nobody waits for what comes too late.
        sender.send(read.map(|_| bytes)).ok();
    });
    let printed = printed.recv_timeout(limit);
    child.kill()?;
    child.wait()?;
    let bytes = printed.map_err(|_| Error::new(ErrorKind::TimedOut, format!("it took {} s", limit.as_secs())))??;
    Ok(String::from_utf8_lossy(&bytes).into_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_program_is_asked_within_bounds() {
        let shell = |script: &str, limit| ask(Command::new("sh").arg("-c").arg(script), limit);
        assert_eq!(shell("cat; echo asked; echo no >&2; exit 1", LIMIT).unwrap(), "asked\n");
        assert_eq!(shell("exec sleep 1000", Duration::from_millis(1)).unwrap_err().kind(), ErrorKind::TimedOut);
        // It is ended once it prints nothing any more, or too much.
        assert_eq!(shell("echo asked; exec sleep 1000 >&-", LIMIT).unwrap(), "asked\n");
        let bytes = usize::try_from(PRINTED_BYTES_MAX).unwrap();
        assert_eq!(shell("exec yes", LIMIT).unwrap().len(), bytes);
    }
}
