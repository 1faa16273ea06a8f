//! Reads files of cgroups, and words errors about them.

use std::fs;
use std::io;
use std::path::Path;

/// The text of the file at `path`.
///
/// # Errors
/// Those of reading, with the path; `ESRCH` unchanged.
pub(super) fn read(path: &Path) -> io::Result<String> {
    fs::read_to_string(path).map_err(|error| match error.raw_os_error() {
        Some(libc::ESRCH) => error,
        _ => at("read", path, &error),
    })
}

/// An error of the same kind that names `path`.
pub(super) fn at(doing: &str, path: &Path, error: &io::Error) -> io::Error {
    io::Error::new(error.kind(), format!("cannot {doing} `{}`: {error}", path.display()))
}
