//! Reads files that a stranger may have made: only if they are regular, never waiting for one, and up to a bound.

use std::fs::{self, File, Metadata, OpenOptions};
use std::io::{self, ErrorKind, Read};
use std::os::unix::fs::{FileTypeExt, OpenOptionsExt};
use std::path::Path;

use skiff_protocol::MODULE_BYTES_MAX;

use crate::error::{Context, Error, Result};

/// Opens `path` for reading, and returns it with its size in bytes. Symbolic links are followed.
///
/// # Errors
/// `InvalidInput`, with what it is, if it is not a regular file; those of `open(2)`.
pub(crate) fn open(path: &Path) -> io::Result<(File, u64)> {
    // Checked before it is opened, because opening a device may have an effect, and again afterwards, because another file may
    // have taken its place. That one cannot block this process.
    refuse_irregular(&fs::metadata(path)?)?;
    let file = OpenOptions::new().read(true).custom_flags(libc::O_NONBLOCK | libc::O_NOCTTY).open(path)?;
    let metadata = file.metadata()?;
    refuse_irregular(&metadata)?;
    Ok((file, metadata.len()))
}

fn refuse_irregular(metadata: &Metadata) -> io::Result<()> {
    let kind = metadata.file_type();
    let what = match kind {
        _ if kind.is_file() => return Ok(()),
        _ if kind.is_dir() => "a directory",
        _ if kind.is_fifo() => "a pipe",
        _ if kind.is_socket() => "a socket",
        _ => "a device",
    };
    Err(io::Error::new(ErrorKind::InvalidInput, format!("it is {what}, not a regular file")))
}

/// The wasm binary in the file `path`.
///
/// # Errors
/// The host's if it cannot be read; the caller's if it is bigger than what is compiled.
pub(crate) fn read_module(path: &Path) -> Result<Vec<u8>> {
    let name = path.display();
    let reading = || format!("cannot read `{name}`");
    let (file, bytes) = open(path).or_host(reading())?;
    refuse_above_limit(bytes, &name.to_string())?;
    let mut module = Vec::with_capacity(usize::try_from(bytes).or_host(reading())?);
    file.take(MODULE_BYTES_MAX + 1).read_to_end(&mut module).or_host(reading())?;
    refuse_above_limit(u64::try_from(module.len()).or_host(reading())?, &name.to_string())?;
    Ok(module)
}

/// Refuses a module of `bytes` bytes, or more, if it is bigger than what is compiled.
///
/// # Errors
/// The guest's fault.
pub(crate) fn refuse_above_limit(bytes: u64, name: &str) -> Result<()> {
    if bytes <= MODULE_BYTES_MAX {
        return Ok(());
    }
    Err(Error::guest(format!("`{name}` is too big: skiff compiles at most {} MiB", MODULE_BYTES_MAX >> 20)))
}

#[cfg(test)]
mod tests {
    use std::os::unix::net::UnixListener;

    use nix::sys::stat::Mode;
    use nix::unistd::mkfifo;

    use super::*;

    #[test]
    fn what_is_no_regular_file_is_refused_by_what_it_is() {
        let directory = tempfile::tempdir().unwrap();
        let path = |name: &str| directory.path().join(name);
        mkfifo(&path("fifo"), Mode::S_IRUSR).unwrap();
        let _socket = UnixListener::bind(path("socket")).unwrap();
        std::os::unix::fs::symlink(path("fifo"), path("link")).unwrap();
        for (file, what) in [
            (path("fifo"), "a pipe"),
            (path("link"), "a pipe"),
            (path("socket"), "a socket"),
            (directory.path().to_path_buf(), "a directory"),
            ("/dev/zero".into(), "a device"),
        ] {
            let sentence = format!("cannot read `{}`: it is {what}, not a regular file", file.display());
            assert_eq!(read_module(&file).unwrap_err().to_string(), sentence);
        }
    }

    #[test]
    fn a_file_above_the_limit_is_refused_without_being_read() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("big.wasm");
        // A sparse file: it takes no space on the disk.
        File::create(&path).unwrap().set_len(8 << 40).unwrap();
        let sentence = format!("`{}` is too big: skiff compiles at most 512 MiB", path.display());
        assert_eq!(read_module(&path).unwrap_err().to_string(), sentence);
    }
}
