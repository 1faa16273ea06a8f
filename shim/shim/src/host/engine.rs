//! The programs that belong to the shim: where they lie, and the engine as it is handed to containers.

use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};

use super::read_only;

/// Where a program of skiff lies: beside the shim.
pub(crate) fn beside_the_shim(program: &str) -> io::Result<PathBuf> {
    let own = std::env::current_exe()?;
    Ok(own.parent().unwrap_or(Path::new("/")).join(program))
}

/// Opens `skiff-engine` for being executed in containers, from where it cannot be written.
pub(crate) fn open_engine() -> io::Result<File> {
    read_only::open(&beside_the_shim("skiff-engine")?)
}
