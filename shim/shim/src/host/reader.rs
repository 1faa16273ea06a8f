//! Waits for work on a tenant's files, which is done on a separate thread: a volume that does not respond holds up only its
//! own container.

use std::io;

use crate::error::{Context, Result};
use crate::host::module::apart;

/// Does work that may block on a tenant's files, on a thread with its own file table; see [`crate::host::module`].
pub(crate) async fn read_apart<T: Send + 'static>(work: impl FnOnce() -> Result<T> + Send + 'static) -> Result<T> {
    let answer = apart(move || Ok(work())).doing(|| "cannot start a reader".into())?;
    blocking(move || answer.recv().map_err(io::Error::other).flatten().doing(|| "a reader ended early".into())?).await
}

/// Does blocking work on a thread for such work.
pub(crate) async fn blocking<T: Send + 'static>(work: impl FnOnce() -> Result<T> + Send + 'static) -> Result<T> {
    tokio::task::spawn_blocking(work).await.doing(|| "a task of the shim ended early".into())?
}
