//! The streams of a process: opened before it is made, and the shim's ends of them while it is there.

use crate::error::{Context, Result};
use crate::host::console::ConsoleSocket;
use crate::host::logging_program::Owner;
use crate::host::stdio::{self, Holds};
use crate::launch::Attachment;
use crate::pod::terminal::{self, Terminal};
use crate::request::StdioPaths;

/// The shim's ends of a process's streams.
pub(crate) enum Attached {
    Files(Holds),
    Terminal(Terminal),
    Detached,
}

/// The shim's side of the streams of a process that is being made.
pub(super) enum Pending {
    Files(Holds),
    Terminal(ConsoleSocket),
}

/// Opens the streams that `paths` describe, for a process that is about to be made.
pub(super) async fn attachment_for(paths: &StdioPaths, owner: &Owner) -> Result<(Attachment, Pending)> {
    if paths.terminal {
        let socket = terminal::listen()?;
        return Ok((Attachment::Console(socket.path().into()), Pending::Terminal(socket)));
    }
    let opened = if stdio::has_program(paths) {
        let (paths, owner) = (paths.clone(), owner.clone());
        tokio::task::spawn_blocking(move || stdio::open(&paths, &owner)).await.map_err(std::io::Error::other).flatten()
    } else {
        stdio::open(paths, owner)
    };
    let (child, holds) = opened.doing(|| "cannot open the streams".into())?;
    Ok((Attachment::Files(child), Pending::Files(holds)))
}

impl Pending {
    /// Takes up the shim's ends, once the process is there.
    pub(super) async fn complete(self, paths: &StdioPaths) -> Result<Attached> {
        match self {
            Pending::Files(holds) => Ok(Attached::Files(holds)),
            Pending::Terminal(socket) => Terminal::receive(socket, paths).await.map(Attached::Terminal),
        }
    }
}
