//! The programs that belong to the shim: where they are, and how they are opened for containers.

use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};

use skiff_protocol::names::ENGINE;

use super::read_only;

/// The path of a program of skiff: it is beside the shim.
pub(crate) fn beside_the_shim(program: &str) -> io::Result<PathBuf> {
    let own = std::env::current_exe()?;
    Ok(own.parent().unwrap_or(Path::new("/")).join(program))
}

/// Opens `skiff-engine` to be executed in containers, which cannot write to it.
pub(crate) fn open_engine() -> io::Result<File> {
    open_own(ENGINE)
}

/// Opens the shim's own program to be executed where containers can see it.
pub(crate) fn open_shim() -> io::Result<File> {
    let own = std::env::current_exe()?;
    let name = own.file_name().unwrap_or_default().to_string_lossy();
    // A program that has replaced it since will do as well.
    open_own(name.strip_suffix(" (deleted)").unwrap_or(&name))
}

fn open_own(program: &str) -> io::Result<File> {
    let path = beside_the_shim(program)?;
    read_only::open(path.parent().unwrap_or(Path::new("/")), Path::new(program))
}
