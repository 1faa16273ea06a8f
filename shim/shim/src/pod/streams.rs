//! The streams of a process: opened before it is made, and the shim's ends of them while it is there.

use std::fs::File;
use std::io;

use tokio::task::spawn_blocking;

use crate::error::{Context, Error, Kind, Result};
use crate::host::console::ConsoleSocket;
use crate::host::logging_program::{self, Owner};
use crate::host::stdio::{self, Holds, Voice};
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
    /// With the end of a logging program's pipe, if one takes the output.
    Terminal(ConsoleSocket, Option<File>),
}

/// Opens the streams that `paths` describe, for a process that is about to be made.
///
/// # Errors
/// `Unsupported` for a terminal whose output goes to something else than a fifo or a logging program; `Host` if a stream cannot be
/// opened.
pub(super) async fn attachment_for(paths: &StdioPaths, owner: &Owner) -> Result<(Attachment, Pending)> {
    if paths.terminal {
        let program = program_at_terminal(paths, owner).await?;
        let socket = terminal::listen()?;
        return Ok((Attachment::Console(socket.path().into()), Pending::Terminal(socket, program)));
    }
    let opened = if stdio::has_program(paths) {
        let (paths, owner) = (paths.clone(), owner.clone());
        spawn_blocking(move || stdio::open(&paths, &owner)).await.map_err(io::Error::other).flatten()
    } else {
        stdio::open(paths, owner)
    };
    let (child, holds) = opened.doing(|| "cannot open the streams".into())?;
    Ok((Attachment::Files(child), Pending::Files(holds)))
}

/// The logging program that takes a terminal's output, if there is one. Like containerd's own shim, skiff has no log files for it.
async fn program_at_terminal(paths: &StdioPaths, owner: &Owner) -> Result<Option<File>> {
    let Some((scheme, _)) = paths.stdout.split_once("://") else { return Ok(None) };
    if !stdio::has_program(paths) {
        let sentence =
            format!("a terminal's output to an address `{scheme}://` is not implemented: run it without a terminal");
        return Err(Error::new(Kind::Unsupported, sentence));
    }
    let (address, owner) = (paths.stdout.clone(), owner.clone());
    let started = spawn_blocking(move || logging_program::start(&address, &owner)).await;
    let started = started.map_err(io::Error::other).flatten();
    let (output, _errors) = started.doing(|| format!("cannot open the stream `{}`", paths.stdout))?;
    Ok(Some(output))
}

impl Pending {
    /// Takes up the shim's ends, once the process is there.
    pub(super) async fn complete(self, paths: &StdioPaths) -> Result<Attached> {
        match self {
            Pending::Files(holds) => Ok(Attached::Files(holds)),
            Pending::Terminal(socket, program) => {
                Terminal::receive(socket, paths, program.as_ref()).await.map(Attached::Terminal)
            }
        }
    }

    /// What the shim speaks through to the owner of a process that has `attachment`; nothing for a terminal whose output nobody wants.
    pub(super) fn voice(&self, attachment: &Attachment, paths: &StdioPaths) -> Result<Option<Voice>> {
        let voice = match (attachment, self) {
            (Attachment::Files(stdio), _) => Voice::on(&stdio.stderr).map(Some),
            (Attachment::Console(_), Pending::Terminal(_, Some(program))) => {
                Voice::beside_terminal_of(program).map(Some)
            }
            (Attachment::Console(_), _) if paths.stdout.is_empty() => Ok(None),
            (Attachment::Console(_), _) => Voice::beside_terminal(&paths.stdout).map(Some),
        };
        voice.doing(|| "cannot keep the output open".into())
    }
}
