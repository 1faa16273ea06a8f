//! Logging programs (`binary://` addresses), which take a container's output instead of containerd.
//!
//! The program gets the container's output as descriptors 3 and 4 and closes descriptor 5 when it is ready.
//! <https://github.com/containerd/containerd/blob/main/core/runtime/v2/README.md#logging>

use std::fs::File;
use std::io::{self, pipe};
use std::os::fd::{AsFd, OwnedFd};
use std::process::Stdio;

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use tokio::process::Command;

use crate::host::process::{OomScore, pass_descriptors, work_for_a_pod};

/// The prefix of addresses of logging programs.
const SCHEME: &str = "binary://";

/// How long a program may take to be ready, in milliseconds.
const READY_WITHIN_MS: u16 = 10_000;

/// The container whose output a logging program takes.
#[derive(Clone, Debug, Default)]
pub(crate) struct Owner {
    pub(crate) container: String,
    /// The namespace in containerd.
    pub(crate) namespace: String,
}

/// Whether `address` names a logging program.
pub(crate) fn is_address(address: &str) -> bool {
    address.starts_with(SCHEME)
}

/// Starts the program of `address` and returns the pipe ends for the container's stdout and stderr. Blocks until the
/// program is ready. The program ends when the container has closed both.
///
/// # Errors
/// `TimedOut` for a program that is not ready in time, which is killed; those of starting it.
pub(crate) fn start(address: &str, owner: &Owner) -> io::Result<(File, File)> {
    let (program, arguments) = parse(address)?;
    let (stdout, stdout_end) = pipe()?;
    let (stderr, stderr_end) = pipe()?;
    let (ready, ready_end) = pipe()?;
    let mut command = Command::new(program);
    command.args(arguments).env("CONTAINER_ID", &owner.container).env("CONTAINER_NAMESPACE", &owner.namespace);
    command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
    pass_descriptors(command.as_std_mut(), vec![stdout.into(), stderr.into(), ready_end.into()]);
    work_for_a_pod(command.as_std_mut(), 0, OomScore::Ordinary);
    let mut child = command.spawn()?;
    // The command also holds the program's ends open.
    drop(command);
    if poll(&mut [PollFd::new(ready.as_fd(), PollFlags::POLLIN)], PollTimeout::from(READY_WITHIN_MS))? == 0 {
        child.start_kill()?;
        let limit = READY_WITHIN_MS / 1000;
        return Err(io::Error::new(io::ErrorKind::TimedOut, format!("the program was not ready within {limit} s")));
    }
    // tokio reaps dropped children.
    drop(child);
    let file = |end| File::from(OwnedFd::from(end));
    Ok((file(stdout_end), file(stderr_end)))
}

/// The program and its arguments: `binary:///path?key=value&…` passes each key and value as an argument of its own.
fn parse(address: &str) -> io::Result<(&str, Vec<&str>)> {
    let rest = address.strip_prefix(SCHEME).unwrap_or(address);
    let (program, query) = rest.split_once('?').unwrap_or((rest, ""));
    if !program.starts_with('/') {
        return Err(io::Error::new(io::ErrorKind::InvalidInput, "a logging program needs an absolute path"));
    }
    let arguments = query.split('&').filter(|pair| !pair.is_empty()).flat_map(|pair| match pair.split_once('=') {
        Some((key, value)) => vec![key, value],
        None => vec![pair],
    });
    Ok((program, arguments.collect()))
}

#[cfg(test)]
mod tests {
    use std::io::Write;
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    #[test]
    fn an_address_is_a_program_with_arguments() {
        assert_eq!(parse("binary:///bin/log?id=1&flag").unwrap(), ("/bin/log", vec!["id", "1", "flag"]));
        assert!(parse("binary://log").is_err());
    }

    #[tokio::test]
    async fn a_program_gets_the_output_of_its_container() {
        let directory = tempfile::tempdir().unwrap();
        let (program, log) = (directory.path().join("log"), directory.path().join("out"));
        let text = format!(
            "#!/bin/sh\nexec 5>&-\necho $CONTAINER_ID $1 > {0}.part\ncat <&3 >> {0}.part\nmv {0}.part {0}\n",
            log.display()
        );
        std::fs::write(&program, text).unwrap();
        std::fs::set_permissions(&program, PermissionsExt::from_mode(0o755)).unwrap();
        let owner = Owner { container: "c1".into(), namespace: "n".into() };
        let (mut stdout, stderr) = start(&format!("binary://{}?key", program.display()), &owner).unwrap();
        stdout.write_all(b"hello").unwrap();
        drop((stdout, stderr));
        let deadline = std::time::Instant::now() + std::time::Duration::from_secs(10);
        while !log.exists() {
            assert!(std::time::Instant::now() < deadline, "the program has not ended");
            tokio::time::sleep(std::time::Duration::from_millis(5)).await;
        }
        assert_eq!(std::fs::read_to_string(&log).unwrap(), "c1 key\nhello");
    }
}
