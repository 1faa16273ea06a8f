//! The account of a guest's memory: in memory that belongs to no file system, and shown in the bundle by a link.

use std::fs::{self, File};
use std::io::{self, ErrorKind};
use std::os::fd::AsRawFd;
use std::os::unix::fs::symlink;
use std::path::Path;
use std::sync::Arc;

use skiff_protocol::ACCOUNT_FILE;

/// Makes the account findable in `bundle`, for as long as this process holds it.
///
/// # Errors
/// Those of making the link.
pub(crate) fn show_in(bundle: &Path, account: File) -> io::Result<Arc<File>> {
    let link = bundle.join(ACCOUNT_FILE);
    match fs::remove_file(&link) {
        Err(error) if error.kind() != ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    symlink(format!("/proc/{}/fd/{}", std::process::id(), account.as_raw_fd()), link)?;
    Ok(Arc::new(account))
}
