//! Waits for work on a tenant's files, which is done on a separate thread: a volume that does not respond holds up only its
//! own container.

use std::io;

use crate::error::{Context, Result};
use crate::host::module::apart;

/// Does work that may block on a tenant's files, on a thread with its own file table; see [`crate::host::module`].
pub(crate) async fn read_apart<T: Send + 'static>(work: impl FnOnce() -> Result<T> + Send + 'static) -> Result<T> {
    read_in_turn((), work).await
}

/// The same. The `turn` is dropped when the work is done, which may be long after the caller has given up.
pub(crate) async fn read_in_turn<T: Send + 'static>(
    turn: impl Send + 'static,
    work: impl FnOnce() -> Result<T> + Send + 'static,
) -> Result<T> {
    let answer = apart(move || Ok(work())).doing(|| "cannot start a reader".into())?;
    let wait = move || {
        let answer = answer.recv().map_err(io::Error::other).flatten();
        // Here and not in the reader: that wakes whoever is next, for which the runtime needs its descriptors.
        drop(turn);
        answer.doing(|| "a reader ended early".into())?
    };
    blocking(wait).await
}

/// Does blocking work on a thread for such work.
pub(crate) async fn blocking<T: Send + 'static>(work: impl FnOnce() -> Result<T> + Send + 'static) -> Result<T> {
    tokio::task::spawn_blocking(work).await.doing(|| "a task of the shim ended early".into())?
}
