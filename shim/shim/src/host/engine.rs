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
    open_own("skiff-engine")
}

/// Opens the shim's own program, to be executed where containers see it.
pub(crate) fn open_shim() -> io::Result<File> {
    let own = std::env::current_exe()?;
    let name = own.file_name().unwrap_or_default().to_string_lossy();
    // What has taken its place since is as good.
    open_own(name.strip_suffix(" (deleted)").unwrap_or(&name))
}

fn open_own(program: &str) -> io::Result<File> {
    let path = beside_the_shim(program)?;
    read_only::open(path.parent().unwrap_or(Path::new("/")), Path::new(program))
}
