//! The socket that a shim serves at: which containers share one, and how it is bound, looked at and removed.

use std::fs::{DirBuilder, File, Permissions};
use std::io::{self, Read};
use std::os::unix::fs::{DirBuilderExt, PermissionsExt};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;
use std::time::Duration;

use crate::error::{Context, Error, Result};
use crate::spec::config::pod_in;

/// How long a shim that is being killed may take to hang up.
const HANG_UP_LIMIT: Duration = Duration::from_millis(100);

/// The path in a socket's address.
pub(super) fn path_in(address: &str) -> &Path {
    Path::new(address.strip_prefix("unix://").unwrap_or(address))
}

/// What a socket is shared by: the pod of the container in `bundle`, or else only the container `id` itself.
///
/// # Errors
/// `Invalid` for a specification that cannot be read as one; the host's when there is one that cannot be read at all.
pub(super) fn group_of(bundle: &Path, id: &str) -> Result<String> {
    let text = match std::fs::read(bundle.join("config.json")) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(id.into()),
        read => read.doing(|| "cannot read the specification".into())?,
    };
    Ok(pod_in(&text)?.unwrap_or_else(|| id.into()))
}

/// Binds the socket; `None` when a shim serves there already. What a dead shim left is removed.
pub(super) fn listen(path: &Path) -> Result<Option<UnixListener>> {
    let directory = path.parent().unwrap_or(Path::new("/"));
    let made = DirBuilder::new().recursive(true).mode(0o711).create(directory);
    made.doing(|| format!("cannot make `{}`", directory.display()))?;
    // Of several starts of one pod, none may take the socket that another has just bound for a dead shim's.
    let lock = File::open(directory).and_then(|file| file.lock().map(|()| file));
    let _lock = lock.doing(|| format!("cannot lock `{}`", directory.display()))?;
    match bind(path) {
        Err(error) if error.kind() == io::ErrorKind::AddrInUse => {
            if UnixStream::connect(path).is_ok() {
                return Ok(None);
            }
            std::fs::remove_file(path).doing(|| format!("cannot remove the stale socket `{}`", path.display()))?;
            bind(path).map(Some).doing(|| format!("cannot listen on `{}`", path.display()))
        }
        bound => bound.map(Some).doing(|| format!("cannot listen on `{}`", path.display())),
    }
}

fn bind(path: &Path) -> io::Result<UnixListener> {
    let listener = UnixListener::bind(path)?;
    // Whoever may talk to the socket is root here, whatever containerd's umask.
    std::fs::set_permissions(path, Permissions::from_mode(0o600)).map(|()| listener)
}

/// Removes the socket at `address`, if there is one.
pub(super) fn remove(address: &str) -> Result<()> {
    if address.is_empty() {
        return Ok(());
    }
    match std::fs::remove_file(path_in(address)) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            Err(Error::host("cannot remove the shim's socket", error))
        }
        _ => Ok(()),
    }
}

/// Whether a shim serves at `address`: one that is being killed may still accept, but then hangs up. One that serves is
/// known by its silence, which takes 100 ms.
pub(super) fn is_served(address: &str) -> bool {
    let Ok(mut stream) = UnixStream::connect(path_in(address)) else { return false };
    let waits = stream.set_read_timeout(Some(HANG_UP_LIMIT)).and_then(|()| stream.read(&mut [0]));
    waits.is_err_and(|error| error.kind() == io::ErrorKind::WouldBlock)
}
