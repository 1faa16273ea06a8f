//! The account of a guest's memory: a file in memory, to which a link in the bundle leads.

use std::fs::{self, File};
use std::io::{self, ErrorKind};
use std::os::fd::AsRawFd;
use std::os::unix::fs::symlink;
use std::path::Path;
use std::sync::Arc;

use skiff_protocol::ACCOUNT_FILE;

/// Links the account from `bundle`. The link works as long as this process holds the account.
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
