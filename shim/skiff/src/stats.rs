//! `skiff stats`: what the engine of a running container reports about its guest's memory.

use std::fs::File;
use std::io::{self, Write};
use std::path::PathBuf;

use clap::Args;
use skiff_protocol::{ACCOUNT_FILE, Figures};

use crate::error::{Context, Result};

#[derive(Debug, Args)]
pub(crate) struct Arguments {
    /// The container's bundle: its directory below containerd's state directory, `io.containerd.runtime.v2.task/NAMESPACE/ID`.
    bundle: PathBuf,
    /// Print JSON.
    #[arg(long)]
    pub(crate) json: bool,
}

/// Reads the account in a bundle.
///
/// # Errors
/// When there is none: the container is not a wasm container, or it is gone.
pub(crate) fn stats(arguments: &Arguments) -> Result<Figures> {
    let path = arguments.bundle.join(ACCOUNT_FILE);
    let failed = format!("cannot read `{}` (is this the bundle of a running wasm container?)", path.display());
    File::open(&path).and_then(|file| Figures::read(&file)).or_host(&failed)
}

/// Prints figures for people.
///
/// # Errors
/// Those of writing.
pub(crate) fn print(figures: &Figures) -> Result<()> {
    let Figures { linear_memory_bytes, peak_bytes, refusals, ran_out, limit_bytes } = *figures;
    let limit = limit_bytes.map_or("none".into(), |bytes| format!("{bytes} bytes"));
    let ran_out = if ran_out { "yes" } else { "no" };
    let text = format!(
        "memories, tables and heaps  {linear_memory_bytes} bytes\npeak                        {peak_bytes} bytes\n\
         refused growths             {refusals}\nran out of memory           {ran_out}\n\
         limit of the container      {limit}"
    );
    writeln!(io::stdout().lock(), "{text}").or_host("cannot write to standard output")
}
