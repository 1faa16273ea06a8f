//! What criu, with which the OCI runtime makes checkpoints, has to know of a container's streams. They are outside of the
//! container's file systems: a checkpoint names them, and a restore puts the new container's streams in their place.
//!
//! The OCI runtime knows such streams as pipes only. The rest reaches criu in a configuration file of its own.

use std::fs::{self, OpenOptions};
use std::io;
use std::iter;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use crate::error::{Error, chain};
use crate::host::kernel_files::listed_id;
use crate::host::logging_program;
use crate::request::StdioPaths;

/// The variable that names a configuration file for criu, which it reads after those of the node.
pub(super) const CONFIG_VARIABLE: &str = "CRIU_CONFIG_FILE";
/// This file, in the bundle.
const CONFIG_FILE: &str = "criu.conf";
/// The names of the streams, in the directory of the checkpoint.
const STREAMS_FILE: &str = "skiff-streams.json";
/// Lets the modes of files differ: those of one client's fifos are not those of another's.
const MODES: &str = "skip-file-rwx-check\n";
/// How many of criu's errors are quoted.
const QUOTED_MAX: usize = 8;

/// A stream as criu names it in a checkpoint.
// Numbers only: a checkpoint may come from anywhere, and nothing else of it must get into the configuration.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Stream {
    /// The process's descriptor.
    descriptor: u8,
    mount: u64,
    inode: u64,
}

impl Stream {
    fn name(self) -> String {
        format!("file[{:x}:{:x}]", self.mount, self.inode)
    }
}

/// Makes the directory `image` for a checkpoint of a process with the streams `stdio`. Returns criu's configuration file,
/// which is written into `bundle`.
pub(super) fn prepare(image: &Path, bundle: &Path, stdio: &StdioPaths) -> io::Result<PathBuf> {
    let streams = streams_of(stdio)?;
    fs::create_dir_all(image)?;
    fs::write(image.join(STREAMS_FILE), serde_json::to_vec(&streams)?)?;
    write_config(bundle, streams.iter().map(|stream| format!("external {}\n", stream.name())))
}

/// The same for a restore from the checkpoint in `image`, which another runtime may have made.
pub(super) fn prepare_restore(image: &Path, bundle: &Path) -> io::Result<PathBuf> {
    let streams: Vec<Stream> = match fs::read(image.join(STREAMS_FILE)) {
        Ok(text) => serde_json::from_slice(&text)?,
        Err(error) if error.kind() == io::ErrorKind::NotFound => Vec::new(),
        Err(error) => return Err(error),
    };
    let streams = streams.into_iter().filter(|stream| stream.descriptor <= 2);
    let lines = streams.map(|stream| format!("inherit-fd fd[{}]:{}\n", stream.descriptor, stream.name()));
    write_config(bundle, iter::once(MODES.to_string()).chain(lines))
}

/// The error of a checkpoint or a restore, with criu's reasons if criu has come so far as to write its `log`.
pub(super) fn explain(error: Error, log: &Path) -> Error {
    let reasons = reasons_in(&fs::read_to_string(log).unwrap_or_default());
    if reasons.is_empty() { error } else { Error::new(error.kind(), format!("{}: {reasons}", chain(&error))) }
}

/// The errors in a log of criu's, each once, without their times and places.
fn reasons_in(log: &str) -> String {
    let mut reasons = Vec::new();
    for line in log.lines() {
        let Some((_, said)) = line.split_once("Error (") else { continue };
        let said = said.split_once("): ").map_or(said, |(_, words)| words);
        // Without the capability for higher limits criu goes on with those that it has.
        if !said.starts_with("rlimit: ") && !reasons.contains(&said) && reasons.len() < QUOTED_MAX {
            reasons.push(said);
        }
    }
    reasons.join("; ")
}

fn streams_of(stdio: &StdioPaths) -> io::Result<Vec<Stream>> {
    // A terminal is the container's own, and logging programs read pipes.
    if stdio.terminal {
        return Ok(Vec::new());
    }
    let mut streams: Vec<Stream> = Vec::new();
    for (descriptor, path) in [(0, &stdio.stdin), (1, &stdio.stdout), (2, &stdio.stderr)] {
        if path.is_empty() || logging_program::is_address(path) {
            continue;
        }
        let stream = stream_at(descriptor, Path::new(path.strip_prefix("file://").unwrap_or(path)))?;
        if !streams.iter().any(|known| known.name() == stream.name()) {
            streams.push(stream);
        }
    }
    Ok(streams)
}

fn stream_at(descriptor: u8, path: &Path) -> io::Result<Stream> {
    let file = OpenOptions::new().read(true).custom_flags(libc::O_PATH).open(path);
    let file = file.map_err(|error| {
        io::Error::new(error.kind(), format!("cannot look at the stream `{}`: {error}", path.display()))
    })?;
    Ok(Stream { descriptor, mount: listed_id(&file)?, inode: file.metadata()?.ino() })
}

fn write_config(bundle: &Path, lines: impl Iterator<Item = String>) -> io::Result<PathBuf> {
    let path = bundle.join(CONFIG_FILE);
    fs::write(&path, lines.collect::<String>())?;
    Ok(path)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::Kind;

    #[test]
    fn a_restore_gets_the_streams_that_the_checkpoint_named() {
        let bundle = tempfile::tempdir().unwrap();
        let (output, image) = (bundle.path().join("output"), bundle.path().join("image"));
        fs::write(&output, "").unwrap();
        let path = output.to_str().unwrap().to_string();
        let stdio = StdioPaths { stdout: format!("file://{path}"), stderr: path, ..StdioPaths::default() };
        let name = stream_at(1, &output).unwrap().name();
        let config = prepare(&image, bundle.path(), &stdio).unwrap();
        assert_eq!(fs::read_to_string(config).unwrap(), format!("external {name}\n"));
        let config = prepare_restore(&image, bundle.path()).unwrap();
        assert_eq!(fs::read_to_string(config).unwrap(), format!("{MODES}inherit-fd fd[1]:{name}\n"));
    }

    #[test]
    fn a_checkpoint_cannot_bring_configuration_of_its_own() {
        let bundle = tempfile::tempdir().unwrap();
        for (streams, well_formed) in [
            (r#"[{"descriptor": 1, "mount": "1]\naction-script /x", "inode": 2}]"#, false),
            (r#"[{"descriptor": 7, "mount": 1, "inode": 2}]"#, true),
        ] {
            fs::write(bundle.path().join(STREAMS_FILE), streams).unwrap();
            let prepared = prepare_restore(bundle.path(), bundle.path());
            assert_eq!(prepared.is_ok(), well_formed, "{streams}");
            assert!(prepared.is_err() || fs::read_to_string(prepared.unwrap()).unwrap() == MODES);
        }
    }

    #[test]
    fn an_error_of_criu_is_told_with_its_reasons() {
        let work = tempfile::tempdir().unwrap();
        let log = "(0.1) nothing\n(0.1) Error (criu/a.c:9): rlimit: no\n(0.2) Error (criu/a.c:1): first\nError (b.c:2): second\n(0.3) Error (criu/a.c:3): first\n";
        fs::write(work.path().join("log"), log).unwrap();
        let told = |name: &str| explain(Error::new(Kind::Host, "criu failed"), &work.path().join(name)).to_string();
        assert_eq!(told("log"), "criu failed: first; second");
        assert_eq!(told("no-log"), "criu failed");
    }
}
